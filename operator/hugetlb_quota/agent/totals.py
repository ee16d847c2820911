"""Where the kernel's charge list can't be read: what the counters of cgroups alone tell.

A reservation stays charged to those above a cgroup when that is removed (mm/hugetlb_cgroup.c).
So what kubepods is charged and no pod in it bounds what all that are gone still hold. Each of
them is charged what it held as it was seen last, but not more than that bound. What is left of
the bound then is charged to those that have ended since, each up to what it asked for: together
that may be too much.
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
    """Everything below ``parents``, as :class:`kubepods.Parents` tells.

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
    pods: dict[str, Charge] = {}
    for pod in kubepods.pods(parents):
        # One UID may be at two QoS levels. What one without files of the controller has is
        # counted above it, with what those have that are gone.
        pods[pod.uid] = pods.get(pod.uid, Charge()) + _reserved(pod.path, sizes)
    return Totals(pods, total.beyond(Charge.total(pods.values())))


def _reserved(path: Path, sizes: tuple[PageSize, ...]) -> Charge:
    """What is reserved; a page that is touched without a reservation counts as reserved too."""
    amounts = {}
    for size in sizes:
        try:
            amounts[size] = cgroup.read_use(path, size).reserved
        except CgroupError:
            continue  # gone, or without the controller, of which the condition Ready tells
    return Charge(amounts)


def left(
    held: Mapping[str, Charge], more: Mapping[str, Charge], bound: Charge
) -> tuple[dict[str, Charge], Charge]:
    """What pods that are gone are charged, and what of ``bound`` none of them can hold.

    :param held: what each held when it was seen last.
    :param more: what each may have filled since, of those of which the end was not seen.
    """
    charged = {uid: charge.within(bound).without_zeros() for uid, charge in held.items()}
    rest = bound.beyond(Charge.total(charged.values()))
    filled = {uid: charge.within(rest) for uid, charge in more.items()}
    for uid, charge in filled.items():
        charged[uid] = (charged.get(uid, Charge()) + charge).without_zeros()
    return charged, rest.beyond(Charge.total(filled.values())).without_zeros()
