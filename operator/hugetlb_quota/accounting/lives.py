"""The lives of a pod: what it filled under which quotas, when its labels moved it to others.

In the kernel a task that moves to another cgroup takes none of the charges along that it
made. So what a pod has filled in shared files when other quotas come to govern it stays
with those that governed it then: a *former life* keeps it, an owner of its own in the
charge list. The kernel knows nothing of lives; to it, all of them are one cgroup.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Final, TypeVar

from hugetlb_quota.accounting.charge import Charge

Owner = TypeVar("Owner", bound=Hashable)

#: Between a pod's UID and the number of a former life. No UID has it.
_SEPARATOR: Final = "#"


def former_life(pod: str, taken: Collection[str]) -> str:
    """An owner for a former life of ``pod`` (its UID), other than those that are ``taken``."""
    number = 1
    while (owner := f"{pod}{_SEPARATOR}{number}") in taken:
        number += 1
    return owner


def pod_of(owner: str) -> str:
    """The UID of the pod whose life, present or former, ``owner`` is."""
    return owner.partition(_SEPARATOR)[0]


def share_out(held: Charge, in_files: Mapping[Owner, Charge]) -> tuple[dict[Owner, Charge], Charge]:
    """Share out what a pod's cgroup holds: to each of its former lives, and to the present one.

    :param held: what the kernel says is charged to the cgroup, or was left by it.
    :param in_files: what is still in files that each former life filled, first life first.

    It adds up to ``held``, and none has more than it has in files: what is in none, or was
    in one that is gone, is the present life's.
    """
    parts: dict[Owner, Charge] = {}
    rest = held
    for owner, filled in in_files.items():
        part = rest.within(filled)
        rest = rest.beyond(part)
        parts[owner] = part.without_zeros()
    return parts, rest.without_zeros()


def charged_beside(former: Collection[str], present: Collection[str]) -> tuple[str, ...]:
    """Which quotas are charged for a ``former`` life while the pod runs, sorted.

    Those that govern the pod still, or again, are charged its demand, and everything that
    its cgroup holds is in that, whichever life it is of.
    """
    return tuple(sorted(set(former) - set(present)))
