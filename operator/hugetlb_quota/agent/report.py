"""The report: what HugeTLBNode says of this node, and the writing of it.

The controller releases a pod's charge on this evidence: a report whose
``podsResourceVersion`` has reached the pod's end and that does not list it
(accounting/release.py). So a pod may be missing only when its end was seen first, its
cgroup was seen gone after that, and what it left is in ``retained`` of the same report.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

from hugetlb_quota import api, quantity
from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.lives import charged_beside, pod_of
from hugetlb_quota.accounting.recount import Unreported
from hugetlb_quota.accounting.volume import volume_of
from hugetlb_quota.agent.file_book import SYSTEM, FileShare
from hugetlb_quota.agent.governance import Governance
from hugetlb_quota.agent.ledger import Known
from hugetlb_quota.agent.memory import Account, State
from hugetlb_quota.agent.track import Sight, Tracker
from hugetlb_quota.api.node import KIND, FileStatus, MountStatus
from hugetlb_quota.kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from hugetlb_quota.kube.pods import Pod
from hugetlb_quota.kube.resources import HUGETLB_NODES, NODES, Resource
from hugetlb_quota.node.host import HostRoot, HostUnreadable
from hugetlb_quota.node.hugetlbfs import Superblock, used
from hugetlb_quota.node.pools import Pool, pools

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
#: Mounts in a report: an object's size has a limit.
_MOUNTS: Final = 64
_LONGEST_PATH: Final = 256
#: Pods named in a condition's message; the others are counted.
_NAMED: Final = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What was seen at one moment.

    ``pods_since``, ``pods_resource_version``: from where to where the pods are known without
    a gap. ``ends``: how many ends of pods were seen by then. ``settled``: UIDs of pods that
    quotas tell as unreported and of which all is in ``retained``: what is charged for those
    that are not in ``pods`` any more. ``files``: the largest. ``system``: what the
    host's own processes hold in files. ``problems``: what keeps the node from being
    Ready, a sentence each; ``doubts``: why what is retained may not be right in every part.
    """

    pods_since: int
    pods_resource_version: int
    ends: int
    pods: tuple[Json, ...]
    pools: tuple[Pool, ...]
    settled: tuple[str, ...] = ()
    retained: tuple[Json, ...] = ()
    files: tuple[Json, ...] = ()
    mounts: tuple[Json, ...] = ()
    system: Charge = NOTHING
    problems: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


class Observer:
    """Takes snapshots.

    :param seen_since: the resourceVersion from which on ``governance`` knows them without a gap.
    :param seen_up_to: the resourceVersion up to which ``governance`` knows the pods.
    """

    def __init__(
        self,
        host: HostRoot,
        cgroup2: Path,
        tracker: Tracker,
        governance: Governance,
        *,
        seen_since: Callable[[], int],
        seen_up_to: Callable[[], int],
        problems: Callable[[], tuple[str, ...]] = lambda: (),
    ) -> None:
        self._host = host
        self._cgroup2 = cgroup2
        self._tracker = tracker
        self._governance = governance
        self._seen_since = seen_since
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
            self._tracker.ledger.adopt(last)

    async def catch_up(self) -> None:
        """Let what happened be taken in before the next :meth:`snapshot`."""
        await self._tracker.catch_up()

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
        since = self._seen_since()
        ends = self._governance.ends
        pods, deleted = tuple(self._governance.pods()), tuple(self._governance.deleted())
        missed = self._governance.unreported()
        known = {each.cgroup: _missed(each) for each in missed}
        known |= {
            uid: _carried(entry, self._tracker.ledger.account(uid))
            for uid, entry in self._carried.items()
            if entry["quotas"] and not self._governance.knows(uid)
        }
        known |= self._governance.known()
        self._check_cgroup2()
        self._tracker.ledger.reparent(self._governance.heirs())
        # What the pods left that are gone is settled in this look, so that it is in the very
        # report in which they are missing.
        sight = self._tracker.look(known)
        there = sight.in_use.keys() | sight.unsettled
        entries = {
            uid: _entry(each.uid, known[uid], sight.in_use.get(uid, NOTHING))
            for each in missed
            if (uid := each.cgroup) in there
        }
        entries |= self._carried_entries(sight)
        entries |= {
            pod.cgroup_uid: entry
            for pod in (*deleted, *pods)
            if not known[uid := pod.cgroup_uid].over or uid in there
            if (entry := self._entry(pod, known[uid], sight)) is not None
        }
        for pod in deleted:
            if pod.cgroup_uid not in there:
                self._governance.forget(pod.uid)
        entries |= self._nameless_entries(sight, known.keys() | self._carried.keys())
        return Snapshot(
            pods_since=since,
            pods_resource_version=self._latest,
            ends=ends,
            pods=tuple(
                sorted(entries.values(), key=lambda e: (e["namespace"], e["name"], e["uid"]))
            ),
            pools=pools(self._host),
            settled=self._settled(missed, known, entries),
            retained=self._retained(entries, sight),
            files=self._files(entries, sight),
            mounts=self._mounts(),
            system=files.book.charge_of(SYSTEM) if (files := self._tracker.files) else NOTHING,
            problems=self._problems(),
            doubts=(*self._tracker.ledger.problems, *(files.problems if files else ())),
        )

    def _check_cgroup2(self) -> None:
        root = self._cgroup2 / "cgroup.controllers"
        try:
            root.read_text()
        except OSError as error:
            raise HostUnreadable(self._host.path, root, error) from error

    def _entry(self, pod: Pod, known: Known, sight: Sight) -> Json | None:
        """What is reported of a pod; None: it is not governed, or has no huge pages."""
        in_use = sight.in_use.get(pod.cgroup_uid, NOTHING)
        if not known.quotas or not (pod.demand or in_use):
            return None
        return _entry(pod.uid, known, in_use)

    def _settled(
        self,
        missed: Iterable[Unreported],
        known: Mapping[str, Known],
        entries: Mapping[str, Json],
    ) -> tuple[str, ...]:
        """Those of ``missed`` of which all that there is to say is in this very snapshot."""

        def is_settled(pod: Unreported) -> bool:
            if (entry := entries.get(pod.cgroup)) is not None:
                # A static pod that was mirrored anew goes on under its new UID.
                return bool(entry["uid"] != pod.uid)
            return known[pod.cgroup].over and self._tracker.ledger.is_settled(pod.cgroup)

        return tuple(sorted(pod.uid for pod in missed if is_settled(pod)))

    def _carried_entries(self, sight: Sight) -> dict[str, Json]:
        self._carried = {
            uid: entry
            for uid, entry in self._carried.items()
            if uid in sight.in_use.keys() | sight.unsettled and not self._governance.knows(uid)
        }
        return {
            uid: {**entry, "inUse": sight.in_use.get(uid, NOTHING).to_resources()}
            for uid, entry in self._carried.items()
        }

    def _nameless_entries(self, sight: Sight, named: Collection[str]) -> dict[str, Json]:
        """Cgroups of pods that nothing is known of, if they hold huge pages.

        Such a pod came and was deleted while no agent ran, or its cgroup was made after
        a forced deletion. All that can be said is its UID; that keeps its charge.
        """
        return {
            uid: {"uid": uid, "namespace": "", "name": "", "quotas": [], "charge": {}}
            | {"inUse": use.to_resources()}
            for uid, use in sight.in_use.items()
            if use and uid not in named
        }

    def _retained(self, entries: Mapping[str, Json], sight: Sight) -> tuple[Json, ...]:
        """What is left of pods that are gone or moved, by the quotas that are charged for it.

        The last row, of no quota, is what nobody is charged for.
        """
        rows: dict[tuple[str, ...], Charge] = {}
        for account in self._tracker.ledger.gone:
            charge = account.charge
            if account.uid in entries and account.uid not in sight.in_use:
                # Listed because its end was not seen yet: what it left is in its charge.
                listed = Charge.from_resources(entries[account.uid]["charge"])
                charge = charge.beyond(listed)
            rows[account.quotas] = rows.get(account.quotas, NOTHING) + charge
        for account in self._tracker.ledger.former:
            if quotas := _charged(account, entries):
                rows[quotas] = rows.get(quotas, NOTHING) + account.charge
        rows[()] = rows.get((), NOTHING) + self._tracker.ledger.stray
        return tuple(
            {"quotas": list(quotas), "charge": charge.without_zeros().to_resources()}
            for quotas, charge in sorted(rows.items(), key=lambda row: (not row[0], row[0]))
            if charge
        )

    def _files(self, entries: Mapping[str, Json], sight: Sight) -> tuple[Json, ...]:
        """The largest files, and who is charged for them."""
        files = self._tracker.files
        shares = files.book.largest() if files is not None else ()
        return tuple(self._file(share, entries, sight) for share in shares)

    def _file(self, share: FileShare, entries: Mapping[str, Json], sight: Sight) -> Json:
        account = self._tracker.ledger.account(share.owner)
        quotas = account.quotas if account else ()
        retained = share.owner != SYSTEM and share.owner not in sight.in_use
        if account is not None and account.state is State.FORMER:
            beside = _charged(account, entries)
            quotas, retained = beside or quotas, bool(beside)
        status = FileStatus(
            path=_printable(share.path),
            mount=_printable(share.superblock.point),
            volume=volume_of(share.superblock.point, share.path, account.volumes)
            if account
            else "",
            page_size=share.superblock.size.resource,
            charged=quantity.render(share.charged),
            pod=account.pod if account else "",
            uid=pod_of(share.owner),
            quotas=list(quotas),
            retained=retained,
            since=share.since.replace(microsecond=0),
        )
        return status.to_json()

    def _mounts(self) -> tuple[Json, ...]:
        files = self._tracker.files
        if files is None:
            return ()
        return tuple(
            _mount(superblock, files.book.held_on(superblock)).to_json()
            for superblock in files.book.superblocks[:_MOUNTS]
        )


def _missed(pod: Unreported) -> Known:
    namespace, _, name = pod.pod.partition("/")
    quotas = tuple(sorted(map(str, pod.quotas)))
    return Known(namespace, name, quotas, pod.charge, over=True, missed=True)


def _carried(entry: Json, account: Account | None) -> Known:
    """A pod that the last report listed: it was deleted while no agent ran."""
    return Known(
        entry["namespace"],
        entry["name"],
        tuple(entry["quotas"]),
        Charge.from_resources(entry["charge"]),
        over=True,
        volumes=account.volumes if account else (),
    )


def _entry(uid: str, known: Known, in_use: Charge) -> Json:
    return {
        "uid": uid,
        "namespace": known.namespace,
        "name": known.name,
        "quotas": list(known.quotas),
        "charge": known.demand.to_resources(),
        "inUse": in_use.to_resources(),
    }


def _charged(former: Account, entries: Mapping[str, Json]) -> tuple[str, ...]:
    """Which quotas are charged for a former life of a pod beside what it is listed with."""
    listed = entries.get(pod_of(former.uid))
    return charged_beside(former.quotas, listed["quotas"] if listed else ())


def _mount(superblock: Superblock, held: int) -> MountStatus:
    counted = used(superblock)
    return MountStatus(
        path=_printable(superblock.point),
        page_size=superblock.size.resource,
        limit=None if superblock.limit is None else quantity.render(superblock.limit),
        minimum=quantity.render(superblock.minimum) if superblock.minimum else None,
        # Without a size= the kernel counts nothing.
        used=quantity.render(held if counted is None else counted),
    )


def _printable(path: str) -> str:
    """A path as JSON can have it, its end if it is long."""
    text = path.encode(errors="backslashreplace").decode()
    return text if len(text) <= _LONGEST_PATH else f"…{text[1 - _LONGEST_PATH :]}"


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
        self._conditions: dict[str, Json] = {}

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
                await self._observer.catch_up()
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
        self._conditions = {each["type"]: each for each in status.get("conditions") or ()}
        return status

    async def _report(self, snapshot: Snapshot) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        conditions = (
            ready_condition(snapshot.problems, self._conditions.get("Ready", {}), now),
            exact_condition(snapshot.doubts, self._conditions.get("Exact", {}), now),
            room_condition(snapshot.mounts, self._conditions.get("MountsHaveRoom", {}), now),
        )
        self._conditions = {each["type"]: each for each in conditions}
        content = {
            "bootID": self._boot_id,
            "pools": [_pool(pool) for pool in snapshot.pools],
            "pods": list(snapshot.pods),
            "settled": list(snapshot.settled),
            "retained": list(snapshot.retained),
            "files": list(snapshot.files),
            "mounts": list(snapshot.mounts),
            "system": snapshot.system.to_resources(),
            "conditions": list(conditions),
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
                "podsSince": str(snapshot.pods_since),
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
    reasons = ("Enforced", "NotEnforced")
    return _condition(
        "Ready", reasons, "The limits of all pods are in place.", problems, before, now
    )


def exact_condition(doubts: tuple[str, ...], before: Mapping[str, Any], now: str) -> Json:
    """The condition Exact: whether what is retained is charged to the right quota, to the byte."""
    reasons = ("Agrees", "InDoubt")
    fine = "What is retained is what the kernel counts, and it is known who left it."
    return _condition("Exact", reasons, fine, doubts, before, now)


def room_condition(mounts: Iterable[Json], before: Mapping[str, Any], now: str) -> Json:
    """The condition MountsHaveRoom: whether a failure on a mount may be its own limit's.

    The two look alike to a program: beyond ``size=`` mmap fails with ENOMEM as beyond a
    quota, and only fallocate with ENOSPC (fs/hugetlbfs/inode.c).
    """
    full = tuple(
        f"{mount['path']} is full: it holds {mount['used']} and was mounted with"
        f" size={mount['limit']}. What fails there (ENOSPC in fallocate, ENOMEM in mmap) fails on"
        " that and on no quota; truncate files there, or remount it with a larger size."
        for mount in mounts
        if "limit" in mount and quantity.parse(mount["used"]) >= quantity.parse(mount["limit"])
    )
    fine = "No hugetlbfs is used up to its own limit (size=)."
    return _condition("MountsHaveRoom", ("HaveRoom", "Full"), fine, full, before, now)


def _condition(
    kind: str,
    reasons: tuple[str, str],
    fine: str,
    problems: tuple[str, ...],
    before: Mapping[str, Any],
    now: str,
) -> Json:
    status = "False" if problems else "True"
    more = len(problems) - _NAMED
    return {
        "type": kind,
        "status": status,
        "reason": reasons[bool(problems)],
        "message": " ".join(problems[:_NAMED]) + (f" And {more} more." if more > 0 else "")
        if problems
        else fine,
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
