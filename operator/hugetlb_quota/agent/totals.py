"""Where the kernel's charge list can't be read: what the counters of cgroups alone tell.

A reservation stays charged to those above a cgroup when that is removed (mm/hugetlb_cgroup.c).
So what kubepods is charged and no pod in it bounds what all that are gone still hold. Each of
them is charged what it held as it was seen last, but not more than that bound: together that
may be too much, and is never too little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.node import cgroup, kubepods
from hugetlb_quota.node.cgroup import CgroupError
from hugetlb_quota.page_size import PageSize

#: How often everything is read before it is given up to see it twice the same.
_ATTEMPTS: Final = 8


@dataclass(frozen=True, slots=True)
class Totals:
    """What was counted; bytes.

    ``pods``: what each pod's cgroup is charged, by the UID in its name. ``bound``: what
    kubepods is charged and no pod in it.
    """

    pods: Mapping[str, Charge]
    bound: Charge


def look(parents: Iterable[Path], sizes: Iterable[PageSize]) -> Totals:
    """Everything below ``parents``, as :func:`kubepods.parents` gives it.

    The files can't be read all at once, so they are read until they say the same twice; where
    they never do, ``bound`` is the largest that was seen.

    :raises OSError: when a directory is there and can't be read.
    """
    parents, sizes = tuple(parents), tuple(sizes)
    before = _count(parents, sizes)
    bound = before.bound
    for _ in range(_ATTEMPTS):
        now = _count(parents, sizes)
        if now == before:
            return now
        before, bound = now, bound.peak(now.bound)
    return Totals(before.pods, bound)


def _count(parents: tuple[Path, ...], sizes: tuple[PageSize, ...]) -> Totals:
    total = Charge.total(_reserved(root, sizes) for root in kubepods.roots(parents))
    uses: dict[str, Charge] = {}
    reserved: list[Charge] = []
    for pod in kubepods.pods(parents):
        # One without files of the controller is counted above it, with those that are gone.
        charge, own = _use(pod.path, sizes)
        uses[pod.uid] = uses.get(pod.uid, Charge()) + charge
        reserved.append(own)
    return Totals(uses, total.beyond(Charge.total(reserved)))


def _use(path: Path, sizes: tuple[PageSize, ...]) -> tuple[Charge, Charge]:
    """The larger of reserved and faulted, and what is reserved."""
    most, reserved = {}, {}
    for size in sizes:
        try:
            use = cgroup.read_use(path, size)
        except CgroupError:
            continue
        most[size], reserved[size] = use.most, use.reserved
    return Charge(most).without_zeros(), Charge(reserved)


def _reserved(root: Path, sizes: tuple[PageSize, ...]) -> Charge:
    amounts = {}
    for size in sizes:
        try:
            amounts[size] = cgroup.read_use(root, size).reserved
        except CgroupError:
            continue  # told by the condition Ready: no pod in it is limited
    return Charge(amounts)


def left(held: Mapping[str, Charge], bound: Charge) -> tuple[dict[str, Charge], Charge]:
    """What pods that are gone are charged, and what of ``bound`` none of them held.

    :param held: what each held when it was seen last.
    """
    charged = {uid: charge.within(bound).without_zeros() for uid, charge in held.items()}
    return charged, bound.beyond(Charge.total(charged.values())).without_zeros()
