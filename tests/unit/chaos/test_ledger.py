"""The observer of the chaos test counts the pages that ended pods still hold on their nodes."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from tests.chaos import load
from tests.chaos.machine import Machine
from tests.chaos.observer import PODS, QUOTAS, Ledger

MIB = 1 << 20
TEAM = ("ns", "team")


class Etcd:
    """Puts objects into a ledger, revision after revision."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.machine = Machine("node", self.ledger, random.Random(1), Counter())
        self.machine.power_on()
        self.count(0)

    def count(self, mib: int, hard: int = 16) -> None:
        """Write the quota's status, as the controller."""
        spec = load.quota(TEAM, 3, None, {})["spec"] | {"hard": {"hugepages-2Mi": f"{hard}Mi"}}
        used = {"used": {"hugepages-2Mi": f"{mib}Mi"}}
        self._put(f"{QUOTAS}ns/team", {"metadata": {}, "spec": spec, "status": used})

    def put(self, phase: str = "Running", node: str = "node") -> None:
        """Write a pod of 8Mi."""
        raw = load.pod("p", "x", 8)
        raw["metadata"]["uid"] = "uid-p"
        raw["spec"]["nodeName"] = node
        self._put(f"{PODS}ns/p", raw | {"status": {"phase": phase}})

    def delete(self) -> None:
        """Delete the pod."""
        self._put(f"{PODS}ns/p", None)

    def _put(self, path: str, raw: dict[str, Any] | None) -> None:
        self.ledger.put(self.ledger.revision + 1, path, raw)

    @property
    def taken(self) -> int:
        """In MiB."""
        return self.ledger.taken()[TEAM] // MIB


async def test_a_deleted_pod_takes_the_pages_that_its_node_holds() -> None:
    etcd = Etcd()
    etcd.count(8)
    etcd.put()
    (pod,) = etcd.ledger.pods.values()
    etcd.machine.start(pod)
    etcd.delete()
    assert etcd.taken == 8
    etcd.machine.end(pod)
    etcd.machine.left[pod.uid] = 2 * MIB
    etcd.machine.settle()
    assert (etcd.taken, etcd.ledger.left()[TEAM]) == (2, 2 * MIB)
    etcd.machine.power_off()
    assert etcd.taken == 0
    assert etcd.ledger.breaches == []


async def test_a_count_that_forgets_a_deleted_pod_is_a_breach() -> None:
    etcd = Etcd()
    etcd.count(8)
    etcd.put()
    etcd.machine.start(next(iter(etcd.ledger.pods.values())))
    etcd.delete()
    etcd.count(0)
    (breach,) = etcd.ledger.breaches
    assert f"pods take {8 * MIB} of ns/team, uncounted" in breach


async def test_pods_and_retained_pages_are_over_the_limit_together() -> None:
    etcd = Etcd()
    etcd.count(8, hard=8)
    etcd.put()
    etcd.machine.start(next(iter(etcd.ledger.pods.values())))
    etcd.put("Succeeded")
    assert etcd.ledger.breaches == []
    etcd.count(8, hard=4)
    assert etcd.ledger.breaches == []  # a limit below the present charge
    etcd.machine.power_off()
    etcd.count(0, hard=4)
    etcd.put()
    (breach,) = etcd.ledger.breaches
    assert f"pods take {8 * MIB} of ns/team" in breach


async def test_a_pod_that_never_started_takes_nothing_after_its_end() -> None:
    etcd = Etcd()
    etcd.count(8)
    etcd.put(node="")
    assert etcd.taken == 8
    etcd.put("Failed", node="")
    assert etcd.taken == 0
    # The scheduler binds the pod late.
    etcd.put("Failed")
    assert etcd.taken == 0


async def test_after_a_boot_a_pod_that_has_not_ended_starts_again() -> None:
    etcd = Etcd()
    etcd.count(8)
    etcd.put()
    (pod,) = etcd.ledger.pods.values()
    etcd.machine.start(pod)
    etcd.machine.power_off()
    assert etcd.ledger.held == {}
    etcd.machine.power_on()
    etcd.delete()
    assert etcd.taken == 8  # until kubelet has seen the deletion
    etcd.machine.settle()
    assert etcd.taken == 0
