"""What one pass reads of the host. No I/O here. All amounts are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.node.hugetlbfs import Superblock
from hugetlb_quota.node.pools import Pool
from hugetlb_quota.page_size import PageSize

#: Stands in place of a pod's UID for the host's own processes.
SYSTEM: Final = ""


@dataclass(frozen=True, slots=True)
class ChargedFile:
    """A hugetlbfs file with charged pages.

    ``path`` starts at the root of the file's hugetlbfs. ``mount`` is the mount on the host, or
    None if the host has none. ``charged`` is the charge by the UID in the name of the pod's
    cgroup, and by :data:`SYSTEM` for all other cgroups. ``linked`` is False if the file has no
    name any more.
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
    """A hugetlbfs, and the bytes reserved or allocated on it."""

    mount: Superblock
    used: int


@dataclass(frozen=True, slots=True)
class Reading:
    """The result of one pass, which reads first the cgroups of pods and then the charges.

    Each UID is the UID in the name of the pod's cgroup.

    ``populated`` has every pod that has a cgroup, with True if a process is in the cgroup.
    ``charged`` is the charge of each pod, live or gone. ``system`` is the charge of all other
    cgroups. ``unlisted`` is charged, but no entry of the charge list shows it.

    ``whole`` is True if ``charged`` lacks nothing. Otherwise all gone pods together may be charged
    up to ``missing`` more than ``charged`` says.

    ``bound`` is None if the charge list was read. Otherwise ``charged`` has no gone pods, and all
    gone pods together are charged at most ``bound``; ``unreadable`` says why there is no list.

    ``ceiling`` are the limits of kubepods itself.
    """

    populated: Mapping[str, bool] = field(default_factory=dict)
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
