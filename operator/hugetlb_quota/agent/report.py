"""The report: what HugeTLBNode says of this node, and the writing of it.

The controller releases a pod's charge on this evidence: a report whose
``podsResourceVersion`` has reached the pod's end and that does not list it
(accounting/release.py). So a pod may be missing only when its end was seen first, and
its cgroup was seen gone after that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from hugetlb_quota import api
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.governance import Governance, cgroup_uid
from hugetlb_quota.api.node import KIND
from hugetlb_quota.kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.resources import HUGETLB_NODES, NODES, Resource
from hugetlb_quota.node import cgroup, kubepods
from hugetlb_quota.node.cgroup import CgroupError
from hugetlb_quota.node.host import HostRoot, HostUnreadable
from hugetlb_quota.node.pools import Pool, pools
from hugetlb_quota.page_size import PageSize

Json = dict[str, Any]

#: At least between two writes, in seconds: a burst of changes is one.
COALESCE: Final = 0.2
#: Between two looks at what no event tells, pools and use, in seconds.
SAMPLE: Final = 5.0
#: At most between two writes, in seconds.
HEARTBEAT: Final = 60.0
#: Waits after an error, in seconds: doubled up to the last.
FIRST_BACKOFF: Final = 0.5
LONGEST_BACKOFF: Final = 15.0
#: Pods named in a condition's message; the others are counted.
_NAMED: Final = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was seen at one moment.

    ``ends``: how many ends of pods were seen by then. ``problems``: what keeps the node
    from being Ready, a sentence each.
    """

    pods_resource_version: int
    ends: int
    pods: tuple[Json, ...]
    pools: tuple[Pool, ...]
    problems: tuple[str, ...] = ()


class Observer:
    """Takes snapshots.

    :param parents: where kubepods is, as :func:`kubepods.parents` gives it.
    :param seen_up_to: the resourceVersion up to which ``governance`` knows the pods.
    """

    def __init__(
        self,
        host: HostRoot,
        cgroup2: Path,
        parents: Iterable[Path],
        sizes: Iterable[PageSize],
        governance: Governance,
        seen_up_to: Callable[[], int],
        problems: Callable[[], tuple[str, ...]] = lambda: (),
    ) -> None:
        self._host = host
        self._cgroup2 = cgroup2
        self._parents = tuple(parents)
        self._sizes = tuple(sizes)
        self._governance = governance
        self._seen_up_to = seen_up_to
        self._problems = problems
        self._latest = 0
        self._carried: dict[str, Json] = {}

    def carry_over(self, last: Mapping[str, Any] | None) -> None:
        """Go on from the ``status`` of this node's last report, before the first snapshot.

        Pods may have been deleted while no agent ran; what their cgroups still hold is
        known from there alone. After a boot nothing of it is left.
        """
        last = last or {}
        if last.get("bootID") == self._host.boot_id():
            self._carried = {entry["uid"]: dict(entry) for entry in last.get("pods") or ()}

    def snapshot(self) -> Snapshot:
        """What there is now.

        :raises HostUnreadable: when the cgroups can't be seen; that they are gone must
            not be concluded from it.
        :raises OSError: the same.
        """
        # The order matters: first what the API has told, then the cgroups. Kubelet makes
        # no cgroup for a pod that has ended, so one whose end is in the first and whose
        # cgroup is not in the second is gone for good. The other way round, a cgroup made
        # after the one look and a pod ended before the other would let a pod vanish that
        # still runs.
        # While a list is under way the informer has no position: what is known is still
        # what it was at the last.
        self._latest = max(self._latest, self._seen_up_to())
        ends = self._governance.ends
        pods, deleted = tuple(self._governance.pods()), tuple(self._governance.deleted())
        present = self._present()
        for pod in deleted:
            if cgroup_uid(pod) not in present:
                self._governance.forget(pod.uid)
        entries = [
            entry
            for over, pod in (
                *((pod.finished, pod) for pod in pods),
                *((True, pod) for pod in deleted),
            )
            if not over or cgroup_uid(pod) in present
            if (entry := self._entry(pod, present)) is not None
        ]
        entries += self._carried_entries(present)
        named = {cgroup_uid(pod) for pod in (*pods, *deleted)} | self._carried.keys()
        entries += self._nameless_entries({uid: present[uid] for uid in present.keys() - named})
        return Snapshot(
            pods_resource_version=self._latest,
            ends=ends,
            pods=tuple(sorted(entries, key=lambda e: (e["namespace"], e["name"], e["uid"]))),
            pools=pools(self._host),
            problems=self._problems(),
        )

    def _present(self) -> dict[str, Path]:
        """The pod cgroups there are, by the UID in their names."""
        root = self._cgroup2 / "cgroup.controllers"
        try:
            root.read_text()
        except OSError as error:
            raise HostUnreadable(self._host.path, root, error) from error
        return {pod.uid: pod.path for pod in kubepods.pods(self._parents)}

    def _entry(self, pod: Pod, present: Mapping[str, Path]) -> Json | None:
        """What is reported of a pod; None: it is not governed, or has no huge pages."""
        quotas = self._governance.governors(pod)
        path = present.get(cgroup_uid(pod))
        in_use = self._in_use(path)
        if not quotas or not (pod.demand or in_use):
            return None
        return {
            "uid": pod.uid,
            "namespace": pod.namespace,
            "name": pod.name,
            "quotas": [str(quota) for quota in quotas],
            "charge": pod.demand.to_resources(),
            "inUse": in_use.to_resources(),
        }

    def _carried_entries(self, present: Mapping[str, Path]) -> list[Json]:
        self._carried = {
            uid: entry
            for uid, entry in self._carried.items()
            if uid in present and not self._governance.knows(uid)
        }
        return [
            {**entry, "inUse": self._in_use(present[uid]).to_resources()}
            for uid, entry in self._carried.items()
        ]

    def _nameless_entries(self, present: Mapping[str, Path]) -> list[Json]:
        """Cgroups of pods that nothing is known of, if they hold huge pages.

        Such a pod came and was deleted while no agent ran, or its cgroup was made after
        a forced deletion. All that can be said is its UID; that keeps its charge.
        """
        in_use = {uid: self._in_use(path) for uid, path in present.items()}
        return [
            {"uid": uid, "namespace": "", "name": "", "quotas": [], "charge": {}}
            | {"inUse": use.to_resources()}
            for uid, use in in_use.items()
            if use
        ]

    def _in_use(self, path: Path | None) -> Charge:
        if path is None:
            return Charge()
        try:
            use = {size: cgroup.read_use(path, size).most for size in self._sizes}
        except CgroupError:
            return Charge()  # going, or not limited, which the conditions tell
        return Charge(use).without_zeros()


class NodeApi(Protocol):
    """The part of a Connection that a Reporter needs."""

    async def get(self, resource: Resource, name: str) -> Json:
        """One object."""
        ...

    async def create(self, resource: Resource, body: Json) -> Json:
        """POST one object."""
        ...

    async def replace(
        self, resource: Resource, name: str, body: Json, *, subresource: str | None = None
    ) -> Json:
        """PUT one object."""
        ...


class Reporter:
    """Writes the HugeTLBNode of this node whenever a snapshot says something new."""

    def __init__(self, connection: NodeApi, node: str, boot_id: str, observer: Observer) -> None:
        self._connection = connection
        self._node = node
        self._boot_id = boot_id
        self._observer = observer
        self._nudged = asyncio.Event()
        self._metadata: Json | None = None
        self._written: Json | None = None
        self._written_ends = 0
        self._written_at = 0.0
        self._condition: Json = {}

    def nudge(self) -> None:
        """Something changed that may have to be reported."""
        self._nudged.set()

    async def run(self, ready: asyncio.Event) -> None:
        """Report for ever, beginning when ``ready`` is set: pods and quotas are known."""
        await ready.wait()
        backoff = FIRST_BACKOFF
        adopted = False
        while True:
            self._nudged.clear()
            pause, wait = COALESCE, SAMPLE
            try:
                if not adopted:
                    self._observer.carry_over(await self._last_status())
                    adopted = True
                await self._report(self._observer.snapshot())
                backoff = FIRST_BACKOFF
            except (ApiError, HostUnreadable, OSError) as error:
                logger.warning("HugeTLBNode %s is not up to date: %s", self._node, error)
                pause, wait = backoff, 0.0
                backoff = min(backoff * 2, LONGEST_BACKOFF)
            await asyncio.sleep(pause)
            if wait and not self._nudged.is_set():
                await _wait_at_most(self._nudged, wait)

    async def _last_status(self) -> Mapping[str, Any] | None:
        """What the last report said, whoever wrote it; None when there is none."""
        try:
            found = await self._connection.get(HUGETLB_NODES, self._node)
        except NotFound:
            return None
        self._metadata = found["metadata"]
        status: Mapping[str, Any] = found.get("status") or {}
        for condition in status.get("conditions") or ():
            if condition["type"] == "Ready":
                self._condition = condition
        return status

    async def _report(self, snapshot: Snapshot) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._condition = ready_condition(snapshot.problems, self._condition, now)
        content = {
            "bootID": self._boot_id,
            "pools": [_pool(pool) for pool in snapshot.pools],
            "pods": list(snapshot.pods),
            "conditions": [self._condition],
        }
        clock = asyncio.get_running_loop().time()
        if (
            content == self._written
            # An end may change nothing in the list, and its charge waits for the version.
            and snapshot.ends == self._written_ends
            and clock - self._written_at < HEARTBEAT
        ):
            return
        await self._write(
            {
                **content,
                "podsResourceVersion": str(snapshot.pods_resource_version),
                "reportedAt": now,
            }
        )
        self._written, self._written_ends, self._written_at = content, snapshot.ends, clock

    async def _write(self, status: Json) -> None:
        """PUT the status, compared by resourceVersion: no write may overtake a later one."""
        if self._metadata is None:
            self._metadata = await self._create()
        body = {
            "apiVersion": api.API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": self._node,
                "uid": self._metadata["uid"],
                "resourceVersion": self._metadata["resourceVersion"],
            },
            "status": status,
        }
        try:
            written = await self._connection.replace(
                HUGETLB_NODES, self._node, body, subresource="status"
            )
        except (Conflict, NotFound):
            # Deleted with its Node, or written past us: read it anew, or make it anew.
            self._metadata = None
            raise
        self._metadata = written["metadata"]

    async def _create(self) -> Json:
        """The metadata of this node's HugeTLBNode, which is made when it is not there."""
        node = await self._connection.get(NODES, self._node)
        body = {
            "apiVersion": api.API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": self._node,
                # Deleted with its Node, by garbage collection.
                "ownerReferences": [
                    {
                        "apiVersion": "v1",
                        "kind": "Node",
                        "name": self._node,
                        "uid": node["metadata"]["uid"],
                    }
                ],
            },
        }
        try:
            made = await self._connection.create(HUGETLB_NODES, body)
        except AlreadyExists:
            made = await self._connection.get(HUGETLB_NODES, self._node)
        metadata: Json = made["metadata"]
        return metadata


def ready_condition(problems: tuple[str, ...], before: Mapping[str, Any], now: str) -> Json:
    """The condition Ready, which keeps the time of its last transition.

    :param before: the condition as it was; empty when there was none.
    """
    status = "False" if problems else "True"
    more = len(problems) - _NAMED
    return {
        "type": "Ready",
        "status": status,
        "reason": "NotEnforced" if problems else "Enforced",
        "message": " ".join(problems[:_NAMED]) + (f" And {more} more." if more > 0 else "")
        if problems
        else "The limits of all pods are in place.",
        "lastTransitionTime": before["lastTransitionTime"]
        if before.get("status") == status
        else now,
    }


def _pool(pool: Pool) -> Json:
    status = {
        "pageSize": pool.size.resource,
        "numaNode": pool.numa_node,
        "total": pool.total,
        "free": pool.free,
        "reserved": pool.reserved,
        "surplus": pool.surplus,
    }
    return {name: value for name, value in status.items() if value is not None}


async def _wait_at_most(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
