"""What is read of the host in one pass; no I/O here. Amounts are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.node.pools import Pool
from hugetlb_quota.page_size import PageSize

#: In the place of a pod: the host's own processes.
SYSTEM: Final = ""


@dataclass(frozen=True, slots=True)
class ChargedFile:
    """A hugetlbfs file that pages are charged for.

    ``path`` is below the mount, ``mount`` where the host has that (None: nowhere that is
    known). ``linked``: it still has a name. ``charged`` is by UID in the name of the pod's
    cgroup; :data:`SYSTEM` for others.
    """

    path: str
    mount: Superblock | None
    page_size: PageSize
    device: int
    inode: int
    charged: Mapping[str, int]
    linked: bool = True


@dataclass(frozen=True, slots=True)
class MountUse:
    """A hugetlbfs and what is reserved or allocated on it."""

    mount: Superblock
    used: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read in one pass, in the order: pods' cgroups, then charges.

    UIDs are those in the names of pods' cgroups. ``there``: whose cgroup is there, and
    whether a process is in it. ``charged``: what is charged to whom, gone pods among them.
    ``whole``: nothing is missing in it; ``missing``: else at most so much is charged to all pods
    that are gone together, beyond what ``charged`` has of them. ``bound``: where the charge list
    can't be read, at most so much is charged to all pods that are gone together; ``charged``
    has none of them then. ``ceiling``: limits of kubepods itself. ``unreadable``: why there is
    no charge list; "" where there is one.
    """

    there: Mapping[str, bool] = field(default_factory=dict)
    charged: Mapping[str, Charge] = field(default_factory=dict)
    whole: bool = True
    missing: Charge = NOTHING
    bound: Charge | None = None
    system: Charge = NOTHING
    unlisted: Charge = NOTHING
    files: tuple[ChargedFile, ...] = ()
    mounts: tuple[MountUse, ...] = ()
    pools: tuple[Pool, ...] = ()
    ceiling: Charge = NOTHING
    unreadable: str = ""
