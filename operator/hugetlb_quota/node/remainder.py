"""What kubelet's pods hold, and what dead ones left: all of it at one moment.

A reservation stays charged to the cgroup that made it, and to those above it, when that
cgroup is removed (mm/hugetlb_cgroup.c). So what kubepods is charged and no pod in it is
left by the dead, to the byte. Reserved and not faulted is what counts: whoever reserves
a page of a file first is charged for it, and who touches it later is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hugetlb_quota.node import cgroup, kubepods
from hugetlb_quota.node.cgroup import CgroupError, CgroupGone, Use
from hugetlb_quota.node.kubepods import PodCgroup
from hugetlb_quota.page_size import PageSize

#: How often everything is read before it is given up to see it twice the same.
_ATTEMPTS: Final = 8


@dataclass(frozen=True, slots=True)
class Moment:
    """What was seen; amounts are bytes.

    ``uses``: of every pod's cgroup, by the UID in its name. ``empty``: those that no
    process was in any more when its use was read. ``left``: what is charged to kubepods
    and to no pod in it; None when it can't be told, for ever when ``steady``, and just
    now when not, because it changed while it was read.
    """

    pods: tuple[PodCgroup, ...]
    uses: Mapping[str, Mapping[PageSize, Use]]
    empty: frozenset[str]
    left: Mapping[PageSize, int] | None
    steady: bool


def look(parents: Iterable[Path], sizes: Iterable[PageSize]) -> Moment:
    """Everything below ``parents``, as :func:`kubepods.parents` gives it.

    The files can't be read all at once, so they are read until they say the same twice.

    :raises OSError: when a directory is there and can't be read.
    """
    parents, sizes = tuple(parents), tuple(sizes)
    before = _count(parents, sizes)
    for _ in range(_ATTEMPTS):
        now = _count(parents, sizes)
        if now.is_same_as(before):
            return now.moment()
        before = now
    return replace(before.moment(), left=None, steady=False)


@dataclass(frozen=True, slots=True)
class _Count:
    totals: Mapping[PageSize, int] | None
    pods: tuple[PodCgroup, ...]
    uses: Mapping[str, Mapping[PageSize, Use]]
    empty: frozenset[str]

    def is_same_as(self, other: _Count) -> bool:
        return self.totals == other.totals and _reserved(self.uses) == _reserved(other.uses)

    def moment(self) -> Moment:
        left = None
        if self.totals is not None:
            left = {
                size: total - sum(use[size].reserved for use in self.uses.values() if size in use)
                for size, total in self.totals.items()
            }
            if any(amount < 0 for amount in left.values()):
                return Moment(self.pods, self.uses, self.empty, left=None, steady=False)
        return Moment(self.pods, self.uses, self.empty, left, steady=True)


def _reserved(uses: Mapping[str, Mapping[PageSize, Use]]) -> dict[str, dict[PageSize, int]]:
    return {
        uid: {size: use.reserved for size, use in by_size.items()} for uid, by_size in uses.items()
    }


def _count(parents: tuple[Path, ...], sizes: tuple[PageSize, ...]) -> _Count:
    totals = _totals(parents, sizes)
    # Most nodes use one size: of one that kubepods has nothing of, no pod has.
    wanted = [size for size in sizes if totals is None or size in totals]
    uses: dict[str, dict[PageSize, Use]] = {}
    populated: set[str] = set()
    pods = tuple(kubepods.pods(parents))
    for pod in pods:
        try:
            if cgroup.is_populated(pod.path):
                populated.add(pod.uid)
            use = {size: cgroup.read_use(pod.path, size) for size in wanted}
        except CgroupGone:
            continue
        except CgroupError:
            # Not limited, which the conditions tell. What it uses is not told apart.
            use, totals = {}, None
        before = uses.get(pod.uid, {})  # under the same UID at another QoS level
        uses[pod.uid] = {size: _sum(use.get(size), before.get(size)) for size in {*use, *before}}
    return _Count(totals, pods, uses, frozenset(uses.keys() - populated))


def _sum(one: Use | None, other: Use | None) -> Use:
    one, other = one or Use(0, 0), other or Use(0, 0)
    return Use(one.reserved + other.reserved, one.faulted + other.faulted)


def _totals(parents: tuple[Path, ...], sizes: tuple[PageSize, ...]) -> dict[PageSize, int] | None:
    """What is charged to all of kubepods, by the sizes of which there is any."""
    totals: dict[PageSize, int] = {}
    roots = list(kubepods.roots(parents))
    for root in roots:
        for size in sizes:
            try:
                use = cgroup.read_use(root, size)
            except CgroupError:
                return None
            if use.most:
                totals[size] = totals.get(size, 0) + use.reserved
    return totals if roots else None
