"""Runs a program as a container runtime would: ``python -m tests.kube.container SPEC``.

The program sees a root file system of its own, read-only, with this machine's Python and this
checkout in it, no ``/etc/passwd`` and no ``/tmp``; its user, capabilities, mounts and environment
are those of the specification alone. It keeps the process ID of whoever was started.
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
#: What the dynamic loader and OpenSSL read; nothing that names a user.
_ETC: Final = ("ld.so.cache", "ssl", "localtime")
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Mount:
    """A directory of this machine, and where the program sees it."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Specification:
    """A container: what the kubelet and a runtime make of a pod.

    ``root``: an empty directory to mount its root on; the mount is in a namespace of its own and
    goes with the program. ``environment`` is all of it. ``capabilities``: names without CAP_, kept
    by user 0 alone.
    ``cgroup``: the directory that it joins and that is the root of its cgroup namespace; "" for
    the cgroup and the namespace of whoever starts it.
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
        """The command that runs this container, from the top of the checkout."""
        return [sys.executable, "-m", __name__, json.dumps(asdict(self))]

    @classmethod
    def parse(cls, text: str) -> Specification:
        """Read what `wrapped` wrote."""
        raw = json.loads(text)
        return cls(**{**raw, "mounts": [Mount(**each) for each in raw["mounts"]]})


def run(specification: Specification) -> None:
    """Become the program. Needs root; raises OSError."""
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
    die_with_parent()  # another user's process: the kernel has forgotten it
    os.execvpe(specification.command[0], list(specification.command), specification.environment)


def _join(cgroup: str) -> None:
    if cgroup:
        Path(cgroup, "cgroup.procs").write_text("0")
        _checked(_libc.unshare(_CLONE_NEWCGROUP), "unshare the cgroup namespace")


def _system(root: Path) -> Iterator[Path]:
    """Mount what every image holds; those that are to be read-only."""
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
