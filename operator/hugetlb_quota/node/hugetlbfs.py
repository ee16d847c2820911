"""The hugetlbfs mounts of the host, with their limits. The functions open no file in them."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hugetlb_quota.node.host import HostRoot, Mount
from hugetlb_quota.page_size import PageSize

logger = logging.getLogger(__name__)

_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class Superblock:
    """One hugetlbfs, which may be mounted several times.

    ``device`` is its ``st_dev``; the kernel may reuse the number when this file system is gone.
    ``limit`` and ``minimum`` are the mount options ``size=`` and ``min_size=`` in bytes. ``point``
    is the mount point on the host. ``path`` is the same place as a path of this process, which
    may be unable to reach it.
    """

    device: int
    size: PageSize
    limit: int | None
    minimum: int
    point: str
    path: Path


def superblocks(host: HostRoot) -> tuple[Superblock, ...]:
    """Return every hugetlbfs in the host's mount namespace, ordered by device.

    A hugetlbfs that is mounted only in a container's own namespace is not included.

    :raises HostUnreadable: /proc is missing.
    """
    # The last mount at a point hides the earlier mounts there, also of other types.
    visible = {mount.point: mount for mount in host.mounts()}
    found: dict[int, Superblock] = {}
    for mount in visible.values():
        # A bind mount of one directory shows only a part of the file system.
        if mount.type != "hugetlbfs" or mount.root != "/" or mount.device in found:
            continue
        if (superblock := _superblock(host, mount)) is not None:
            found[mount.device] = superblock
    return tuple(superblock for _, superblock in sorted(found.items()))


def _superblock(host: HostRoot, mount: Mount) -> Superblock | None:
    options = dict(option.partition("=")[::2] for option in mount.super_options)
    try:
        return Superblock(
            device=mount.device,
            size=PageSize(parse_size(options["pagesize"])),
            limit=parse_size(options["size"]) if "size" in options else None,
            minimum=parse_size(options.get("min_size", "0")),
            point=mount.point,
            path=host.at(mount.point),
        )
    except (KeyError, ValueError) as error:
        logger.warning("The agent ignores the hugetlbfs at %s: %s", mount.point, error)
        return None


def parse_size(text: str) -> int:
    """Return the bytes of a hugetlbfs mount option: ``2M``, ``1024M``, ``8388608``.

    :raises ValueError: the text is not such a size.
    """
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a size as in the mount options of hugetlbfs.")
    return int(match[1]) * _UNITS.get(match[2], 1)


def is_within_reach(superblock: Superblock) -> bool:
    """Return True if the file system at ``path`` is this one."""
    try:
        return os.stat(superblock.path).st_dev == superblock.device  # noqa: PTH116
    except OSError:
        return False


def used(superblock: Superblock) -> int | None:
    """Return the bytes that are reserved or allocated of ``superblock``'s ``size=``.

    None if the mount has no ``size=`` (the kernel then counts nothing), or if this process can't
    reach the file system.
    """
    if superblock.limit is None or not is_within_reach(superblock):
        return None
    try:
        now = os.statvfs(superblock.path)
    except OSError:
        return None
    return (now.f_blocks - now.f_bfree) * now.f_bsize
