"""Programs of the previous commit run beside programs of this tree, with its CRDs and rights."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import previous
from tests.chaos.faults import port_of
from tests.chaos.forwarder import Forwarder
from tests.kube import chart as charts
from tests.kube.api import Api, ApiError, Object
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program, Programs
from tests.kube.reservations import pending
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
ROOM = 8
"""Pods that fit under the quota."""


@dataclass(frozen=True)
class Releases:
    """A control plane with this tree's chart, and starters for the programs of each tree.

    `tree`: the unpacked tree of the commit before.
    """

    plane: ControlPlane
    chart: charts.Chart
    now: Programs
    before: Programs
    tree: Path

    def programs(self, release: str) -> Programs:
        """Return the starter for the programs of "now" or "before"."""
        return self.now if release == "now" else self.before

    def register(self, admission: Program) -> None:
        """Let the API server call this replica."""
        charts.register_webhooks(self.plane, self.chart, admission.address)


@pytest.fixture(scope="module")
def releases(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Releases]:
    commit = previous.commit()
    if commit is None:
        pytest.skip("the repository has no commit before this commit")
    tree = previous.unpack(commit, tmp_path_factory.mktemp("before"))
    helm = assets / "helm"
    chart = charts.render(helm)
    before = charts.render(helm, chart=tree / "charts" / "hugetlb-quota")
    # An upgrade keeps the secret start of the webhooks' paths.
    kept = [each for each in before.objects if each["kind"] != "Secret"]
    before = charts.Chart(chart.namespace, [*kept, *chart.of_kind("Secret")])
    with ControlPlane(assets) as plane:
        charts.install(plane, chart)
        both = (Programs(plane, chart), Programs(plane, before, source=tree / "operator"))
        yield Releases(plane, chart, *both, tree)
        for programs in both:
            programs.stop()


class Tenant:
    """A namespace under two quotas with room for ROOM pods, and the creators of pods."""

    def __init__(self, plane: ControlPlane) -> None:
        self.api: Api = plane.api
        self.namespace = f"test-{uuid.uuid4().hex[:8]}"
        plane.create_namespace(self.namespace)
        for name, parent, labels in (("above", None, {"none": "at-all"}), ("team", "above", {})):
            spec: Object = {
                "hard": {"hugepages-2Mi": f"{2 * ROOM}Mi"},
                "podSelector": {"matchLabels": labels},
            }
            if parent is not None:
                spec["parentRef"] = {"namespace": self.namespace, "name": parent}
            meta = {"namespace": self.namespace, "name": name}
            kind = {"apiVersion": "hugetlb.dev/v1alpha1", "kind": "HugeTLBQuota"}
            self.api.create(QUOTAS, {**kind, "metadata": meta, "spec": spec})
        eventually(lambda: all("observedGeneration" in each for each in self.statuses()))

    def statuses(self) -> list[Object]:
        """Read the status of each quota."""
        return [each.get("status", {}) for each in self.api.list(QUOTAS, namespace=self.namespace)]

    def pods(self) -> list[str]:
        """List the existing pods."""
        found = self.api.list("v1/pods", namespace=self.namespace)
        return [each["metadata"]["name"] for each in found]

    def fill(self) -> None:
        """Create many pods at a time until no more fit; then there are exactly ROOM pods."""

        def full() -> bool:
            with ThreadPoolExecutor(max_workers=8) as users:
                list(users.map(lambda _: self._create(), range(16)))
            assert len(self.pods()) <= ROOM
            return len(self.pods()) == ROOM

        eventually(full, timeout=60)
        # All requests have ended, and still no pod fits.
        assert not self._create()

    def leave(self, count: int) -> None:
        """Delete ``count`` pods."""
        for name in self.pods()[:count]:
            self.api.delete("v1/pods", name, namespace=self.namespace, grace_seconds=0)

    def wait_counted(self) -> None:
        """Wait until both quotas count exactly the existing pods, without reservations."""
        used = f"{2 * ROOM}Mi"
        eventually(
            lambda: all(
                each["used"]["hugepages-2Mi"] == used and not pending(each)
                for each in self.statuses()
            ),
            timeout=120,
            hold=1,
        )

    def _create(self) -> bool:
        resources = {"hugepages-2Mi": "2Mi", "cpu": "1m", "memory": "1Mi"}
        container = {
            "name": "main",
            "image": "none",
            "resources": {"requests": resources, "limits": resources},
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": self.namespace, "name": f"p-{uuid.uuid4().hex[:12]}"},
            "spec": {"containers": [container], "schedulerName": "nobody"},
        }
        try:
            self.api.create("v1/pods", pod)
        except ApiError as error:
            # "failed calling webhook": the connection went to a replica that has just ended.
            expected = ("denied the request", "failed calling webhook")
            if not any(each in error.message for each in expected):
                raise
            return False
        return True


@pytest.mark.parametrize(("admission", "controller"), [("before", "now"), ("now", "before")])
def test_each_program_works_with_programs_of_the_commit_before(
    releases: Releases, admission: str, controller: str
) -> None:
    replica = releases.programs(admission).start_admission()
    leader = releases.programs(controller).start_controller()
    replica.wait_ready()
    leader.wait_ready()
    releases.register(replica)
    tenant = Tenant(releases.plane)
    tenant.fill()
    tenant.leave(3)
    tenant.fill()
    # The upgrade continues: a new program replaces the old program, and no charge is lost.
    if admission == "before":
        successor = releases.now.start_admission()
        successor.wait_ready()
        releases.register(successor)
        replica.stop()
    else:
        leader.stop()
        successor = releases.now.start_controller()
        successor.wait_ready()
        eventually(lambda: "leads" in successor.log(), timeout=60)
    tenant.leave(2)
    tenant.fill()
    tenant.wait_counted()
    for program in (replica, leader, successor):
        program.stop()
        assert "Traceback" not in program.log()


async def test_replicas_of_both_commits_alternate(releases: Releases) -> None:
    leader = releases.now.start_controller()
    replicas = {name: releases.programs(name).start_admission() for name in ("before", "now")}
    forwarder = Forwarder([port_of(each) for each in replicas.values()])
    async with forwarder.running():
        for program in (leader, *replicas.values()):
            await asyncio.to_thread(program.wait_ready)
        address = f"https://127.0.0.1:{forwarder.port}"
        await asyncio.to_thread(charts.register_webhooks, releases.plane, releases.chart, address)
        tenant = await asyncio.to_thread(Tenant, releases.plane)
        for _ in range(4):
            await asyncio.to_thread(tenant.fill)
            await asyncio.to_thread(tenant.leave, 5)
        await asyncio.to_thread(tenant.fill)
        assert min(forwarder.taken.values()) > 0, forwarder.taken
        await asyncio.to_thread(replicas["before"].stop)
        await asyncio.to_thread(tenant.leave, 2)
        await asyncio.to_thread(tenant.fill)
        await asyncio.to_thread(tenant.wait_counted)
    for program in (leader, *replicas.values()):
        program.stop()
        assert "Traceback" not in program.log()
