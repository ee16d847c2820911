"""Run a program as a container runtime does: ``python -m tests.kube.container SPEC``.

The program has its own read-only root file system with this machine's Python and this checkout,
without ``/etc/passwd`` and ``/tmp``. The specification sets its user, capabilities, mounts and
environment. The program replaces this process, and keeps the process ID.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import hugetlb_quota
from tests.kube.process import die_with_parent, drop_capabilities

_CLONE_NEWNS, _CLONE_NEWCGROUP = 0x00020000, 0x02000000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 1, 32, 4096
_MS_REC, _MS_SLAVE = 1 << 14, 1 << 19
#: The files in /etc that the dynamic loader and OpenSSL read; none of them names a user.
_ETC: Final = ("ld.so.cache", "ssl", "localtime")
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Mount:
    """A bind mount of a directory of this machine into the container."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Specification:
    """A container as kubelet and a container runtime set it up.

    ``root``: an empty directory for the root mount, which is in the container's mount namespace
    and disappears with the program. ``environment``: the complete environment.
    ``capabilities``: names without CAP_; only user 0 keeps them. ``cgroup``: the directory of the
    cgroup to join, which becomes the root of the cgroup namespace; "" to stay in the parent's
    cgroup and namespace.
    """

    root: str
    command: Sequence[str]
    environment: dict[str, str]
    user: int
    group: int
    capabilities: Sequence[str] = ()
    mounts: Sequence[Mount] = field(default_factory=tuple)
    cgroup: str = ""

    def wrapped(self) -> list[str]:
        """The command that runs this container, in the root directory of the checkout."""
        return [sys.executable, "-m", __name__, json.dumps(asdict(self))]

    @classmethod
    def parse(cls, text: str) -> Specification:
        """Parse the JSON that `wrapped` wrote."""
        raw = json.loads(text)
        return cls(**{**raw, "mounts": [Mount(**each) for each in raw["mounts"]]})


def run(specification: Specification) -> None:
    """Replace this process by the program. Needs root; raises OSError."""
    _join(specification.cgroup)
    root = Path(specification.root)
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare the mount namespace")
    _mount("none", Path("/"), None, _MS_REC | _MS_SLAVE)
    _mount("tmpfs", root, "tmpfs", 0, b"mode=755")
    read_only = list(_system(root))
    for mount in specification.mounts:
        target = root / mount.target.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        _mount(mount.source, target, None, _MS_BIND | _MS_REC)
        if mount.read_only:
            read_only.append(target)
    for target in (*read_only, root):
        _mount("none", target, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
    os.chroot(root)
    os.chdir("/")
    drop_capabilities(specification.capabilities)
    os.setgroups([specification.group])
    os.setgid(specification.group)
    os.setuid(specification.user)
    die_with_parent()  # again, because setuid clears the setting
    os.execvpe(specification.command[0], list(specification.command), specification.environment)


def _join(cgroup: str) -> None:
    if cgroup:
        Path(cgroup, "cgroup.procs").write_text("0")
        _checked(_libc.unshare(_CLONE_NEWCGROUP), "unshare the cgroup namespace")


def _system(root: Path) -> Iterator[Path]:
    """Mount the directories of every image; yield the mounts to make read-only."""
    source = str(Path(hugetlb_quota.__file__).parents[1])
    shared = ["/usr", "/lib", "/lib64", "/bin", "/sbin", sys.base_prefix, sys.prefix, source]
    for path in map(Path, dict.fromkeys(shared)):
        target = root / str(path).lstrip("/")
        if path.is_symlink():
            target.symlink_to(path.readlink())
        elif path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            _mount(str(path), target, None, _MS_BIND)
            yield target
    for name in _ETC:
        if (path := Path("/etc", name)).exists():
            _bind(path, root / "etc" / name)
    for name in _DEVICES:
        _bind(Path("/dev", name), root / "dev" / name)
    for name in ("proc", "sys"):
        _bind(Path("/", name), root / name)


def _bind(path: Path, target: Path) -> None:
    if path.is_dir():
        target.mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    _mount(str(path), target, None, _MS_BIND | _MS_REC)


def _mount(
    source: str, target: Path, kind: str | None, flags: int, data: bytes | None = None
) -> None:
    done = _libc.mount(
        source.encode(),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data,
    )
    _checked(done, f"mount {source} on {target}")


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    run(Specification.parse(sys.argv[1]))
