"""Estimates the charges of gone pods from the counters of cgroups, without the charge list.

When a cgroup is removed, its reservations stay charged to its ancestors (mm/hugetlb_cgroup.c). So
the charge of kubepods minus the charges of all its pods bounds what all gone pods hold together.
Each gone pod is charged what it held when it was last seen, but not more than this bound. The rest
of the bound is charged to the pods that have ended since, each up to its demand. The sum may be
too large.
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

#: The most times that all counters are read until two readings in a row are equal.
_ATTEMPTS: Final = 8


@dataclass(frozen=True, slots=True)
class Totals:
    """The counters of all pods, in bytes.

    ``pods`` is the charge of each pod's cgroup, by the UID in its name. ``bound`` is the charge of
    kubepods that belongs to no pod in it.
    """

    pods: Mapping[str, Charge]
    bound: Charge


def count(parents: Iterable[Path], sizes: Iterable[PageSize]) -> Totals:
    """Read the counters of kubepods and all pods below ``parents``.

    The kernel can't read all files at one moment. So the files are read until two readings in a
    row are equal. If no two are, ``bound`` is the largest bound of all readings.

    :raises OSError: a directory exists but can't be read.
    """
    parents, sizes = tuple(parents), tuple(sizes)
    before = _count_once(parents, sizes)
    bound = before.bound
    for _ in range(_ATTEMPTS):
        now = _count_once(parents, sizes)
        if now == before:
            return now
        before, bound = now, bound.peak(now.bound)
    return Totals(before.pods, bound)


def _count_once(parents: tuple[Path, ...], sizes: tuple[PageSize, ...]) -> Totals:
    total = Charge.total(reserved(root, sizes) for root in kubepods.roots(parents))
    pods: dict[str, Charge] = {}
    for pod in kubepods.pods(parents):
        # One UID may have cgroups at two QoS levels. A cgroup without files of the controller
        # counts 0, and its pages are part of the bound.
        pods[pod.uid] = pods.get(pod.uid, Charge()) + reserved(pod.path, sizes)
    return Totals(pods, total.beyond(Charge.total(pods.values())))


def reserved(path: Path, sizes: Iterable[PageSize]) -> Charge:
    """Return the bytes that the cgroup at ``path`` has reserved; nothing if the cgroup is gone.

    The kernel also counts a page as reserved if a program touched it without a reservation.
    """
    amounts = {}
    for size in sizes:
        try:
            amounts[size] = cgroup.read_use(path, size).reserved
        except CgroupError:
            continue  # gone, or without the controller: then the condition Ready says so
    return Charge(amounts)


def estimate(
    held: Mapping[str, Charge], more: Mapping[str, Charge], bound: Charge
) -> tuple[dict[str, Charge], Charge]:
    """Return the charge of each gone pod, and the part of ``bound`` that belongs to none of them.

    :param held: what each gone pod held when it was last seen.
    :param more: what each pod may have reserved since, if no agent saw the pod end.
    """
    charged = {uid: charge.within(bound).without_zeros() for uid, charge in held.items()}
    rest = bound.beyond(Charge.total(charged.values()))
    added = {uid: charge.within(rest) for uid, charge in more.items()}
    for uid, charge in added.items():
        charged[uid] = (charged.get(uid, Charge()) + charge).without_zeros()
    return charged, rest.beyond(Charge.total(added.values())).without_zeros()
