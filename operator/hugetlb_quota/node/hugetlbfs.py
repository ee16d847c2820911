"""The hugetlbfs superblocks of the host: where they are, their limits, their files.

Nothing here stays open on a hugetlbfs: a directory's descriptor would pin the mount, and
kubelet could not unmount a pod's volume.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import select
import stat
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from hugetlb_quota.node.host import HostRoot, HostUnreadable, Mount, parse_mountinfo
from hugetlb_quota.page_size import PageSize

logger = logging.getLogger(__name__)

_UNITS: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SECTOR: Final = 512
#: Names looked up on one descriptor, which is closed before anything is handed out.
_BATCH: Final = 512
#: A node that starts a hundred pods mounts a thousand times: look once for many.
_SETTLE_SECONDS: Final = 0.05
_ONLY_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Superblock:
    """One hugetlbfs, however often it is mounted.

    ``device`` is its st_dev. The kernel gives the number to the next file system as soon
    as this one is gone; ``root``, the inode number of its root directory, tells them apart.
    ``limit`` and ``minimum`` are its ``size=`` and ``min_size=`` in bytes, as it was
    mounted. ``point`` is where the host has it, ``path`` where that is seen from here.
    """

    device: int
    root: int
    size: PageSize
    limit: int | None
    minimum: int
    point: str
    path: Path


@dataclass(frozen=True, slots=True)
class Changes:
    """What mounts and unmounts came to.

    ``moved``: seen at another place now, because that of before was unmounted or hidden.
    """

    appeared: tuple[Superblock, ...]
    gone: tuple[Superblock, ...]
    moved: tuple[Superblock, ...] = ()


class FileState(NamedTuple):
    """A regular file as it was found.

    ``path`` is relative to the superblock's root, with bytes that are not UTF-8 as
    surrogates (os.fsdecode). ``size`` is in bytes, ``pages`` counts the huge pages that
    are allocated; what is reserved and not faulted is in neither. ``links`` counts its
    names. ``changed`` is its ctime, in nanoseconds since 1970.
    """

    device: int
    inode: int
    path: str
    size: int
    pages: int
    links: int
    changed: int


def superblocks(host: HostRoot) -> tuple[Superblock, ...]:
    """Every hugetlbfs in the host's mount namespace that can be reached, by device.

    Not among them: one that only a container has mounted, in its own namespace.

    :raises HostUnreadable: when /proc is not there.
    """
    path = _mountinfo(host)
    try:
        text = path.read_text(errors="surrogateescape")
    except OSError as error:
        raise HostUnreadable(host.path, path, error) from error
    return _superblocks(host, text)


async def follow_superblocks(host: HostRoot) -> AsyncIterator[Changes]:
    """First what is there, then every change, as the kernel tells of it.

    :raises HostUnreadable: when /proc is not there.
    """
    path = _mountinfo(host)
    known: dict[tuple[int, int], Superblock] | None = None
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostUnreadable(host.path, path, error) from error
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()
    # mountinfo is always readable; a change is POLLERR | POLLPRI (mounts_poll). The event
    # loop asks for neither alone, so an epoll of our own does, and is readable then.
    # Edge-triggered: mounts_poll tells of a change once.
    poll = select.epoll()
    poll.register(file, select.EPOLLPRI | select.EPOLLERR | select.EPOLLET)

    def tell() -> None:
        poll.poll(0)
        changed.set()

    loop.add_reader(poll, tell)
    try:
        while True:
            # Before reading: what changes while we read is told of again.
            changed.clear()
            now = {(s.device, s.root): s for s in _superblocks(host, _whole(file))}
            before = known or {}
            changes = Changes(
                appeared=tuple(s for key, s in now.items() if key not in before),
                gone=tuple(s for key, s in before.items() if key not in now),
                moved=tuple(s for key, s in now.items() if before.get(key, s) != s),
            )
            first, known = known is None, now
            if first or changes.appeared or changes.gone or changes.moved:
                yield changes
            await changed.wait()
            await asyncio.sleep(_SETTLE_SECONDS)
    finally:
        loop.remove_reader(poll)
        poll.close()
        os.close(file)


def _whole(file: int) -> str:
    os.lseek(file, 0, os.SEEK_SET)
    parts = []
    while part := os.read(file, 1 << 16):
        parts.append(part)
    return os.fsdecode(b"".join(parts))


def _mountinfo(host: HostRoot) -> Path:
    return host.at("/proc/self/mountinfo" if host.path == Path("/") else "/proc/1/mountinfo")


def _superblocks(host: HostRoot, mountinfo: str) -> tuple[Superblock, ...]:
    found: dict[int, Superblock] = {}
    for line in mountinfo.split("\n"):
        if " - hugetlbfs " not in line:
            continue
        for mount in parse_mountinfo(line):
            device = _device(line)
            # A bind mount of one directory shows a part of the superblock only.
            if device in found or mount.root != "/" or mount.type != "hugetlbfs":
                continue
            if (superblock := _superblock(host, device, mount)) is not None:
                found[device] = superblock
    return tuple(superblock for _, superblock in sorted(found.items()))


def _device(line: str) -> int:
    major, _, minor = line.split(" ", 3)[2].partition(":")
    return os.makedev(int(major), int(minor))


def _superblock(host: HostRoot, device: int, mount: Mount) -> Superblock | None:
    path = _seen_from_here(host, mount.point)
    try:
        root = os.stat(path, follow_symlinks=False)  # noqa: PTH116
    except OSError:
        return None  # unmounted meanwhile
    if root.st_dev != device:
        return None  # hidden by another mount on top of it
    options = dict(option.partition("=")[::2] for option in mount.super_options)
    try:
        return Superblock(
            device=device,
            root=root.st_ino,
            size=PageSize(parse_size(options["pagesize"])),
            limit=parse_size(options["size"]) if "size" in options else None,
            minimum=parse_size(options.get("min_size", "0")),
            point=mount.point,
            path=path,
        )
    except (KeyError, ValueError) as error:
        logger.warning("The hugetlbfs at %s is not followed: %s", mount.point, error)
        return None


def _seen_from_here(host: HostRoot, point: str) -> Path:
    # Through init's root, because the volumes given to an agent in a container end with
    # its own mounts, and a copy of the host's mounts would pin the pods'.
    if host.path == Path("/"):
        return Path(point)
    return host.at("/proc/1/root") / point.lstrip("/")


def parse_size(text: str) -> int:
    """Bytes of a mount option as hugetlbfs shows it: ``2M``, ``1024M``, ``8388608``."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if match is None:
        raise ValueError(f"{text!r} is no size that hugetlbfs shows in its mount options.")
    return int(match[1]) * _UNITS.get(match[2], 1)


def is_seen(superblock: Superblock) -> bool:
    """Whether ``superblock`` is where it was; if not, that nothing is found tells nothing."""
    try:
        root = os.stat(superblock.path)  # noqa: PTH116
    except OSError:
        return False
    return (root.st_dev, root.st_ino) == (superblock.device, superblock.root)


def used(superblock: Superblock) -> int | None:
    """Bytes taken of ``superblock``'s ``size=``: reserved by mappings or allocated.

    None without a ``size=``, when the kernel counts nothing, or when it was unmounted.
    """
    if superblock.limit is None:
        return None
    try:
        now = os.statvfs(superblock.path)
    except OSError:
        return None
    return (now.f_blocks - now.f_bfree) * now.f_bsize


def scan(superblock: Superblock) -> Iterator[FileState]:
    """Every regular file on ``superblock``; files that come or go meanwhile may be missed.

    One descriptor is open for as long as it takes to look up a batch of files, none while
    the caller has a turn. Memory is the names of one directory. Other file systems
    mounted below are left out.

    :raises PermissionError: when a directory may not be read; it takes
        CAP_DAC_READ_SEARCH.
    """
    pending = [""]
    while pending:
        directory = pending.pop()
        names = _names(superblock, directory)
        for start in range(0, len(names), _BATCH):
            files, below = _look_up(superblock, directory, names[start : start + _BATCH])
            pending += below
            yield from files


def look_up(superblock: Superblock, path: str) -> FileState | None:
    """The regular file at ``path``, relative to the superblock's root; None: there is none.

    :raises PermissionError: as :func:`scan`.
    """
    directory, _, name = path.rpartition("/")
    files, _ = _look_up(superblock, directory, [name])
    return files[0] if files else None


def _names(superblock: Superblock, directory: str) -> list[str]:
    try:
        return os.listdir(superblock.path / directory)  # noqa: PTH208 - bare names are enough
    except (FileNotFoundError, NotADirectoryError):
        return []


def _look_up(
    superblock: Superblock, directory: str, names: Iterable[str]
) -> tuple[list[FileState], list[str]]:
    """The regular files and the directories among ``names``."""
    files: list[FileState] = []
    below: list[str] = []
    device, page = superblock.device, superblock.size.bytes
    prefix = f"{directory}/" if directory else ""
    try:
        descriptor = os.open(superblock.path / directory, _ONLY_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return files, below
    try:
        for name in names:
            try:
                state = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if state.st_dev != device:
                continue
            if stat.S_ISREG(state.st_mode):
                pages = state.st_blocks * _SECTOR // page
                files.append(
                    FileState(
                        device,
                        state.st_ino,
                        prefix + name,
                        state.st_size,
                        pages,
                        state.st_nlink,
                        state.st_ctime_ns,
                    )
                )
            elif stat.S_ISDIR(state.st_mode):
                below.append(prefix + name)
    finally:
        os.close(descriptor)
    return files, below


def internal_devices(sizes: Iterable[PageSize]) -> dict[int, PageSize]:
    """The device numbers of the mounts that the kernel keeps for itself, one of each size.

    memfd_create(MFD_HUGETLB), shmget(SHM_HUGETLB) and anonymous MAP_HUGETLB have their
    files there; /proc/PID/maps shows them with this device. An empty memfd takes no page.
    """
    devices: dict[int, PageSize] = {}
    for size in sizes:
        order = size.bytes.bit_length() - 1
        file = os.memfd_create(
            "hugetlb-quota", os.MFD_CLOEXEC | os.MFD_HUGETLB | order << os.MFD_HUGE_SHIFT
        )
        try:
            devices[os.fstat(file).st_dev] = size
        finally:
            os.close(file)
    return devices


class Segment(NamedTuple):
    """A System V shared memory segment: shmget(2).

    ``size`` is in bytes, ``creator`` the process that made it, ``attached`` counts its
    mappings, which /proc/PID/maps shows with ``id`` as inode number. How much of it is
    allocated is not told: the kernel's count is of huge pages, and 512 times too large
    where its page cache counts small ones (ipc/shm.c, ``shm_add_rss_swap``).
    """

    id: int
    key: int
    size: int
    creator: int
    attached: int


def segments(host: HostRoot) -> tuple[Segment, ...]:
    """The segments of this process' own IPC namespace, of huge pages or not.

    The kernel shows neither another namespace's segments (the reader's counts, not the
    mount's) nor whether one is of huge pages before it is mapped. A pod's namespace ends
    with the pod and takes its segments along; one that outlives its pod was made by a pod
    with ``hostIPC: true``, and is seen by an agent that has it too.
    """
    lines = host.at("/proc/sysvipc/shm").read_text().splitlines()
    if not lines:
        return ()
    names = lines[0].split()
    return tuple(_segment(dict(zip(names, line.split(), strict=False))) for line in lines[1:])


def _segment(row: dict[str, str]) -> Segment:
    return Segment(
        id=int(row["shmid"]),
        key=int(row["key"]),
        size=int(row["size"]),
        creator=int(row["cpid"]),
        attached=int(row["nattch"]),
    )
