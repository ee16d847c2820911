"""Who has huge pages mapped: the processes of a cgroup, their mappings and descriptors.

Processes come and go while they are read; one that is gone has nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from hugetlb_quota.node.host import HostRoot, UnusableHost

#: Gone, or on its way out; ENODEV from a cgroup's files.
_GONE: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV})
_AT_FDCWD: Final = -100
#: What is cached will do: a server that is away must not block us (statx(2)).
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_BYTES: Final = 256
_STATX_INODE: Final = struct.Struct("=Q")
_STATX_INODE_AT: Final = 32
_STATX_DEVICE: Final = struct.Struct("=II")
_STATX_DEVICE_AT: Final = 136

_libc: Final = ctypes.CDLL(None, use_errno=True)


class ProcessHidden(UnusableHost):
    """The kernel does not show another's mappings or descriptors."""

    def __init__(self, path: str) -> None:
        super().__init__(
            f"{path} may not be read; it takes CAP_SYS_PTRACE to see what other processes map"
            " (proc_pid_maps(5))."
        )
        self.path = path


class Mapping(NamedTuple):
    """The bytes ``start`` to ``end`` (not included) of a file, mapped by a process.

    A private mapping's pages are its own and end with it, also where it maps a file.
    ``name`` is what /proc shows: a path in the process' namespace, ``/memfd:NAME
    (deleted)``, ``/SYSV00000000 (deleted)``, ``/anon_hugepage (deleted)``.
    """

    device: int
    inode: int
    start: int
    end: int
    shared: bool
    name: str


def processes(cgroup: Path) -> Iterator[int]:
    """Every process in ``cgroup`` and below, as this process' PID namespace numbers them.

    Those outside of it, which read as 0, are left out.
    """
    for directory, _, _ in os.walk(cgroup):
        try:
            text = (Path(directory) / "cgroup.procs").read_text()
        except OSError as error:
            # EOPNOTSUPP: a threaded cgroup; the domain above it names its processes.
            if error.errno in _GONE or error.errno == errno.EOPNOTSUPP:
                continue
            raise
        yield from {pid for line in text.split() if (pid := int(line))}


def mappings(host: HostRoot, pid: int, devices: Collection[int]) -> list[Mapping]:
    """What ``pid`` maps of files on ``devices`` (st_dev).

    :raises ProcessHidden: without the right to look.
    """
    wanted = [b" %02x:%02x " % (os.major(device), os.minor(device)) for device in devices]
    found: list[Mapping] = []
    text = _maps(host, pid)
    if not any(device in text for device in wanted):
        return found  # as most processes, and asked of each as often as it opens a file
    for line in text.split(b"\n"):
        if any(device in line for device in wanted):
            mapping = parse_mapping(os.fsdecode(line))
            # A name may hold what looks like a device.
            if mapping.device in devices:
                found.append(mapping)
    return found


def parse_mapping(line: str) -> Mapping:
    """One line of /proc/PID/maps.

    >>> parse_mapping("7f5a00000000-7f5a00400000 rw-s 00200000 00:2a 158713    /mnt/huge/a b")
    Mapping(device=42, inode=158713, start=2097152, end=6291456, shared=True, name='/mnt/huge/a b')
    """
    addresses, rights, offset, device, inode, *name = line.split(None, 5)
    first, last = addresses.split("-")
    start = int(offset, 16)
    major, minor = device.split(":")
    return Mapping(
        device=os.makedev(int(major, 16), int(minor, 16)),
        inode=int(inode),
        start=start,
        end=start + int(last, 16) - int(first, 16),
        shared=rights[3] == "s",
        name=name[0] if name else "",
    )


def open_files(host: HostRoot, pid: int, devices: Collection[int]) -> set[tuple[int, int]]:
    """Device and inode of the files on ``devices`` that ``pid`` has a descriptor of.

    Of a process whose threads have descriptors of their own, the first thread's.

    :raises ProcessHidden: without the right to look.
    """
    process = host.at(f"/proc/{pid}")
    for directory in _threads(process):
        if names := _names(descriptors := f"{directory}/fd"):
            files = {_identity(f"{descriptors}/{name}") for name in names}
            return {file for file in files if file is not None and file[0] in devices}
    return set()


def _maps(host: HostRoot, pid: int) -> bytes:
    process = host.at(f"/proc/{pid}")
    for directory in _threads(process):
        if text := _read(f"{directory}/maps"):
            return text
    return b""


def _threads(process: Path) -> Iterator[Path]:
    """A process outlives its first thread, whose memory and descriptors read as none then."""
    yield process
    yield from (process / "task" / name for name in _names(f"{process}/task"))


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - bare names are enough
    except PermissionError as error:
        raise ProcessHidden(directory) from error
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except PermissionError as error:
        raise ProcessHidden(path) from error
    except OSError as error:
        if error.errno in _GONE:
            return b""
        raise


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode of the file that a descriptor's link leads to, without waiting for it."""
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if _libc.statx(_AT_FDCWD, path.encode(), _AT_STATX_DONT_SYNC, 0, buffer) != 0:
        number = ctypes.get_errno()
        if number in (errno.EACCES, errno.EPERM):
            raise ProcessHidden(path)
        return None  # closed meanwhile, or a file that can't be asked
    (inode,) = _STATX_INODE.unpack_from(buffer, _STATX_INODE_AT)
    major, minor = _STATX_DEVICE.unpack_from(buffer, _STATX_DEVICE_AT)
    return os.makedev(major, minor), inode
