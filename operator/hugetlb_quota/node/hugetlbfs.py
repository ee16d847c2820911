"""The hugetlbfs of the host: where each is mounted, with which limits. Nothing is opened."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hugetlb_quota.node.host import HostRoot, HostUnreadable, Mount, parse_mountinfo
from hugetlb_quota.page_size import PageSize

logger = logging.getLogger(__name__)

_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class Superblock:
    """One hugetlbfs, however often it is mounted.

    ``device`` is its st_dev; the kernel gives the number to another file system when this one
    is gone. ``limit`` and ``minimum`` are its ``size=`` and ``min_size=`` in bytes, as it was
    mounted. ``point`` is where the host has it, ``path`` where that is to be found from here,
    which need not be within reach.
    """

    device: int
    size: PageSize
    limit: int | None
    minimum: int
    point: str
    path: Path


def superblocks(host: HostRoot) -> tuple[Superblock, ...]:
    """Every hugetlbfs in the host's mount namespace, by device.

    Not among them: one that only a container has mounted, in its own namespace.

    :raises HostUnreadable: when /proc is not there.
    """
    path = host.mountinfo()
    try:
        text = path.read_text(errors="surrogateescape")
    except OSError as error:
        raise HostUnreadable(host.path, path, error) from error
    mounts: dict[str, tuple[str, Mount]] = {}
    for line in text.split("\n"):
        # The last at a point hides those before it, of whatever type; most lines are of no use.
        for mount in parse_mountinfo(line):
            mounts[mount.point] = (line, mount)
    found: dict[int, Superblock] = {}
    for line, mount in mounts.values():
        # A bind mount of one directory shows a part of the superblock only.
        if mount.type != "hugetlbfs" or mount.root != "/" or (device := _device(line)) in found:
            continue
        if (superblock := _superblock(host, device, mount)) is not None:
            found[device] = superblock
    return tuple(superblock for _, superblock in sorted(found.items()))


def _device(line: str) -> int:
    major, _, minor = line.split(" ", 3)[2].partition(":")
    return os.makedev(int(major), int(minor))


def _superblock(host: HostRoot, device: int, mount: Mount) -> Superblock | None:
    options = dict(option.partition("=")[::2] for option in mount.super_options)
    try:
        return Superblock(
            device=device,
            size=PageSize(parse_size(options["pagesize"])),
            limit=parse_size(options["size"]) if "size" in options else None,
            minimum=parse_size(options.get("min_size", "0")),
            point=mount.point,
            path=host.at(mount.point),
        )
    except (KeyError, ValueError) as error:
        logger.warning("The hugetlbfs at %s is not followed: %s", mount.point, error)
        return None


def parse_size(text: str) -> int:
    """Bytes of a mount option as hugetlbfs shows it: ``2M``, ``1024M``, ``8388608``."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if match is None:
        raise ValueError(f"{text!r} is no size that hugetlbfs shows in its mount options.")
    return int(match[1]) * _UNITS.get(match[2], 1)


def is_within_reach(superblock: Superblock) -> bool:
    """Whether its ``path`` leads to it."""
    try:
        return os.stat(superblock.path).st_dev == superblock.device  # noqa: PTH116
    except OSError:
        return False


def used(superblock: Superblock) -> int | None:
    """Bytes taken of ``superblock``'s ``size=``: reserved by mappings or allocated.

    None without a ``size=``, when the kernel counts nothing, or when it is out of reach.
    """
    if superblock.limit is None or not is_within_reach(superblock):
        return None
    try:
        now = os.statvfs(superblock.path)
    except OSError:
        return None
    return (now.f_blocks - now.f_bfree) * now.f_bsize
