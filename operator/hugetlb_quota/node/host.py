"""The host as the agent sees it: every host path goes through one root."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class UnusableHost(Exception):
    """A host that the agent can't work on; the sentence says what to do."""


class HostUnreadable(UnusableHost):
    """A file that every Linux host has is not there below the root."""

    def __init__(self, root: Path, path: Path, error: OSError) -> None:
        super().__init__(
            f"{path} can't be read ({error.strerror}), so {root} is not the root of a host;"
            " give --host-root the place where the host's / is mounted, its /proc and /sys"
            " included."
        )
        self.path = path


class NoCgroup2(UnusableHost):
    """No cgroup2 file system is mounted."""

    def __init__(self, mountinfo: Path) -> None:
        super().__init__(
            f"No cgroup2 file system is mounted on this host ({mountinfo} names none);"
            " boot it with systemd.unified_cgroup_hierarchy=1, or mount one with"
            " `mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`."
        )
        self.mountinfo = mountinfo


class NoHugetlbController(UnusableHost):
    """The cgroup2 hierarchy has no hugetlb controller; ``v1`` is where cgroup v1 holds it."""

    def __init__(self, cgroup2: Path, v1: str | None) -> None:
        remedy = (
            f"cgroup v1 holds it at {v1}; unmount that, or boot with cgroup_no_v1=hugetlb."
            if v1
            else "run a kernel with CONFIG_CGROUP_HUGETLB=y and without cgroup_disable=hugetlb."
        )
        super().__init__(
            f"The cgroup2 hierarchy at {cgroup2} has no hugetlb controller"
            f" (it is not in {cgroup2}/cgroup.controllers): {remedy}"
        )
        self.cgroup2 = cgroup2
        self.v1 = v1


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo: ``root`` within the file system is seen at ``point``."""

    root: str
    point: str
    options: frozenset[str]
    type: str
    super_options: frozenset[str]


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """The mounts of a ``/proc/PID/mountinfo``, in its order (proc_pid_mountinfo(5))."""
    return tuple(mount for line in text.splitlines() if (mount := _mount(line)) is not None)


def _mount(line: str) -> Mount | None:
    # A variable number of optional fields ends with a lone hyphen.
    left, separator, right = line.partition(" - ")
    before, after = left.split(" "), right.split(" ")
    if not separator or len(before) < 6 or len(after) < 3:
        return None
    return Mount(
        root=_unescaped(before[3]),
        point=_unescaped(before[4]),
        options=frozenset(before[5].split(",")),
        type=after[0],
        super_options=frozenset(after[2].split(",")),
    )


def _unescaped(field: str) -> str:
    # Blank, tab, newline and backslash are octal (fs/proc_namespace.c, mangle()).
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), field)


@dataclass(frozen=True, slots=True)
class HostRoot:
    """The directory below which the host's file systems are found."""

    path: Path = Path("/")

    def at(self, absolute: str) -> Path:
        """Where the host's ``absolute`` path is to be found from here."""
        return self.path / absolute.lstrip("/")

    def boot_id(self) -> str:
        """The identity of the running kernel's boot, as Node.status.nodeInfo.bootID.

        :raises HostUnreadable: when /proc is not there.
        """
        return self._read(self.at("/proc/sys/kernel/random/boot_id")).strip()

    def mounts(self) -> tuple[Mount, ...]:
        """What is mounted on the host.

        :raises HostUnreadable: when /proc is not there.
        """
        return parse_mountinfo(self._read(self.mountinfo()))

    def cgroup2(self) -> Path:
        """The root of the cgroup2 hierarchy that has the hugetlb controller.

        :raises NoCgroup2: when none is mounted.
        :raises NoHugetlbController: when it lacks the controller.
        :raises HostUnreadable: when /proc is not there.
        """
        mounts = self.mounts()
        # The whole hierarchy before a part of it, writable before read-only, and of
        # several mounts at one point the last, which hides the others.
        candidates = sorted(
            (mount for mount in reversed(mounts) if mount.type == "cgroup2"),
            key=lambda mount: (mount.root != "/", "ro" in mount.options),
        )
        if not candidates:
            raise NoCgroup2(self.mountinfo())
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

    def mountinfo(self) -> Path:
        """The file that tells what is mounted on the host."""
        # On the host itself, what this process sees is what it can use. Below another
        # root it is init's view: /proc there is the host's, our own mounts are not in it.
        if self.path == Path("/"):
            return Path("/proc/self/mountinfo")
        return self.at("/proc/1/mountinfo")

    def _read(self, path: Path) -> str:
        try:
            # A path in it has whatever bytes a program chose.
            return path.read_text(errors="surrogateescape")
        except OSError as error:
            raise HostUnreadable(self.path, path, error) from error
