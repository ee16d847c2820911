"""The first program of a container: it sets the container up, then execs the command.

Run as ``python3 -I -S container_init.py BUNDLE/config.json``. The program does what a container
runtime does between clone and exec: it enters the cgroup and the IPC and mount namespaces, makes
the root, drops privileges, and execs. The file descriptor ``report_fd`` closes at a successful
exec; otherwise the program writes the error to it. The program uses only the standard library,
because it starts once per container.
"""

# pathlib would double the start time, and this program starts once per container:
# ruff: noqa: PTH102, PTH103, PTH106, PTH112, PTH118, PTH120, PTH123

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any, NoReturn

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384
MS_SLAVE = 1 << 19
MNT_DETACH = 2
PR_CAPBSET_READ, PR_CAPBSET_DROP = 23, 24
# The numbers of containerd's default bounding set (pkg/oci: defaultUnixCaps). CAP_IPC_LOCK is
# not in the set: SHM_HUGETLB in a pod needs hugetlb_shm_group, as on a real node.
DEFAULT_CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31})

libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Call mount of libc."""
    done = libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()
    )
    _checked(done, f"mount {kind or 'bind'} {source} at {target}")


def enter_cgroup(cgroup: str) -> None:
    """Join the cgroup before mmap and exec: huge pages stay charged to the cgroup of the mmap."""
    with open(os.path.join(cgroup, "cgroup.procs"), "wb", buffering=0) as procs:
        procs.write(b"0")


def enter_namespaces(ipc: str | None) -> None:
    """Enter the pod's IPC namespace, and a new mount namespace hidden from the host."""
    if ipc is not None:
        descriptor = os.open(ipc, os.O_RDONLY)
        _checked(libc.setns(descriptor, CLONE_NEWIPC), f"setns {ipc}")
        os.close(descriptor)
    _checked(libc.unshare(CLONE_NEWNS), "unshare")
    # Slave, not private: an unmount on the host also unmounts the copy in this namespace.
    mount("", "/", flags=MS_REC | MS_SLAVE)


def make_root(bundle: str, image_paths: list[str]) -> None:
    """Mount an overlay over the host's root; its upper layer is a tmpfs of the namespace."""
    mount("tmpfs", bundle, "tmpfs", options="mode=0755")
    upper, work, root = (os.path.join(bundle, name) for name in ("upper", "work", "root"))
    for directory in (upper, work, root):
        os.mkdir(directory, 0o755)
    mount("overlay", root, "overlay", options=f"lowerdir=/,upperdir={upper},workdir={work}")
    for path in ("/proc", "/sys", "/dev", *image_paths):
        os.makedirs(root + path, exist_ok=True)
        mount(path, root + path, flags=MS_BIND | MS_REC)
    mount("shm", root + "/dev/shm", "tmpfs", options="mode=1777,size=64m")
    os.mkdir(root + "/.host")
    os.chdir(root)
    _checked(libc.pivot_root(b".", b".host"), "pivot_root")
    os.chdir("/")


def bind_volumes(mounts: list[dict[str, Any]]) -> None:
    """Bind-mount the volumes after the pivot, so that symlinks resolve in the new root."""
    for volume in mounts:
        source, target = "/.host" + volume["source"], volume["target"]
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "a"):
                pass
        mount(source, target, flags=MS_BIND | MS_REC)
        if volume["read_only"]:
            mount("", target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def leave_host_root() -> None:
    """Unmount the old root: a copy of another pod's hugetlbfs mount would keep its pages."""
    _checked(libc.umount2(b"/.host", MNT_DETACH), "umount /.host")
    os.rmdir("/.host")


def drop_privileges(uid: int, gid: int, groups: list[int], privileged: bool) -> None:
    """Drop all but containerd's default capabilities, then switch to the pod's user."""
    if not privileged:
        for number in range(64):
            if number in DEFAULT_CAPABILITIES or libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) != 1:
                continue
            _checked(libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), f"drop capability {number}")
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def become(argv: list[str], env: dict[str, str], cwd: str) -> NoReturn:
    """Exec the command with default signal handling; Python ignores SIGPIPE."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o022)
    os.chdir(cwd)
    os.execvpe(argv[0], argv, env)


def main(config_path: str) -> NoReturn:
    """Start the container that the bundle's config.json describes."""
    with open(config_path) as file:
        config = json.load(file)
    report_fd: int = config["report_fd"]
    os.set_inheritable(report_fd, False)
    try:
        enter_cgroup(config["cgroup"])
        enter_namespaces(config["ipc"])
        make_root(os.path.dirname(config_path), config["image_paths"])
        bind_volumes(config["mounts"])
        leave_host_root()
        os.makedirs(config["cwd"], exist_ok=True)
        drop_privileges(config["uid"], config["gid"], config["groups"], config["privileged"])
        become(config["argv"], config["env"], config["cwd"])
    except BaseException as error:
        os.write(report_fd, f"{' '.join(config['argv'])}: {error}".encode())
        os._exit(128)


if __name__ == "__main__":
    main(sys.argv[1])
