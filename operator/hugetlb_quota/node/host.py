"""The host's file systems as the agent sees them: every path of the host goes through HostRoot."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_DEVICE: Final = re.compile(r"(\d+):(\d+)", re.ASCII)


class UnusableHost(Exception):
    """The agent can't work on this host; the sentence says what to do."""


class HostUnreadable(UnusableHost):
    """A file that every Linux host has is missing below the root."""

    def __init__(self, root: Path, path: Path, error: OSError) -> None:
        super().__init__(
            f"{path} can't be read ({error.strerror}), so {root} is not the root of a host;"
            " set --host-root to the directory where the host's / is mounted, with its /proc and"
            " /sys."
        )
        self.path = path


class NoCgroup2(UnusableHost):
    """No cgroup2 file system is mounted."""

    def __init__(self, mountinfo: Path) -> None:
        super().__init__(
            f"No cgroup2 file system is mounted on this host ({mountinfo} lists none);"
            " boot the host with systemd.unified_cgroup_hierarchy=1, or run"
            " `mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`."
        )
        self.mountinfo = mountinfo


class NoHugetlbController(UnusableHost):
    """The cgroup2 hierarchy has no hugetlb controller.

    ``v1`` is the mount point of the cgroup v1 hierarchy that has the controller, or None.
    """

    def __init__(self, cgroup2: Path, v1: str | None) -> None:
        remedy = (
            f"cgroup v1 has the controller at {v1}; unmount {v1}, or boot with"
            " cgroup_no_v1=hugetlb."
            if v1
            else "run a kernel with CONFIG_CGROUP_HUGETLB=y and without cgroup_disable=hugetlb."
        )
        super().__init__(
            f"The cgroup2 hierarchy at {cgroup2} has no hugetlb controller"
            f" ({cgroup2}/cgroup.controllers does not list it): {remedy}"
        )
        self.cgroup2 = cgroup2
        self.v1 = v1


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo.

    ``device`` is the file system's ``st_dev``. ``root`` is the directory of the file system that
    is mounted at ``point``. ``options`` belong to the mount, ``super_options`` to the file system.
    """

    device: int
    root: str
    point: str
    options: frozenset[str]
    type: str
    super_options: frozenset[str]


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Return the mounts in a ``/proc/PID/mountinfo``, in the file's order (proc_pid_mountinfo(5)).

    Lines that are not mountinfo are left out.
    """
    # Not splitlines(): the kernel escapes newlines in a path, but not form feeds and the like.
    return tuple(mount for line in text.split("\n") if (mount := _mount(line)) is not None)


def _mount(line: str) -> Mount | None:
    # A single hyphen ends a variable number of optional fields.
    left, separator, right = line.partition(" - ")
    before, after = left.split(" "), right.split(" ")
    if not separator or len(before) < 6 or len(after) < 3:
        return None
    device = _DEVICE.fullmatch(before[2])
    if device is None:
        return None
    return Mount(
        device=os.makedev(int(device[1]), int(device[2])),
        root=_unescaped(before[3]),
        point=_unescaped(before[4]),
        options=frozenset(before[5].split(",")),
        type=after[0],
        super_options=frozenset(after[2].split(",")),
    )


def _unescaped(field: str) -> str:
    # The kernel writes space, tab, newline and backslash in octal (fs/proc_namespace.c, mangle()).
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)


@dataclass(frozen=True, slots=True)
class HostRoot:
    """The directory where the host's ``/`` is mounted."""

    path: Path = Path("/")

    def at(self, absolute: str) -> Path:
        """Return the path, from this process, of the host's ``absolute`` path."""
        return self.path / absolute.lstrip("/")

    def boot_id(self) -> str:
        """Return the ID of the kernel's current boot, as in Node.status.nodeInfo.bootID.

        :raises HostUnreadable: /proc is missing.
        """
        return self._read(self.at("/proc/sys/kernel/random/boot_id")).strip()

    def mounts(self) -> tuple[Mount, ...]:
        """Return what is mounted on the host.

        :raises HostUnreadable: /proc is missing.
        """
        return parse_mountinfo(self._read(self._mountinfo()))

    def cgroup2(self) -> Path:
        """Return the root of the cgroup2 hierarchy that has the hugetlb controller.

        :raises NoCgroup2: no cgroup2 is mounted.
        :raises NoHugetlbController: no cgroup2 has the controller.
        :raises HostUnreadable: /proc is missing.
        """
        mounts = self.mounts()
        # Prefer the whole hierarchy to a part, then writable to read-only. Among several mounts
        # at one point take the last, which hides the others.
        candidates = sorted(
            (mount for mount in reversed(mounts) if mount.type == "cgroup2"),
            key=lambda mount: (mount.root != "/", "ro" in mount.options),
        )
        if not candidates:
            raise NoCgroup2(self._mountinfo())
        for mount in candidates:
            point = self.at(mount.point)
            try:
                controllers = (point / "cgroup.controllers").read_text().split()
            except OSError:
                continue  # hidden by another mount, or not visible from here
            if "hugetlb" in controllers:
                return point
        v1 = (m.point for m in mounts if m.type == "cgroup" and "hugetlb" in m.super_options)
        raise NoHugetlbController(self.at(candidates[0].point), next(v1, None))

    def _mountinfo(self) -> Path:
        # On the host itself this process's own view is right. Below another root /proc is the
        # host's, and only the view of init (process 1) shows the host's mounts.
        if self.path == Path("/"):
            return Path("/proc/self/mountinfo")
        return self.at("/proc/1/mountinfo")

    def _read(self, path: Path) -> str:
        try:
            # A path in the file may have any bytes.
            return path.read_text(errors="surrogateescape")
        except OSError as error:
            raise HostUnreadable(self.path, path, error) from error
