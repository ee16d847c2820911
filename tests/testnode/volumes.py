"""Pod volumes in the node's state directory, with kubelet's paths and mounts."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.testnode.containers import Mount
from tests.testnode.demand import PREFIX, huge_page_requests, parse_bytes
from tests.testnode.naming import resource_name

_EMPTY_DIR = "kubernetes.io~empty-dir"
_PROJECTED = "kubernetes.io~projected"
_UMOUNT_NOFOLLOW, _MNT_DETACH = 8, 2

_OCTAL = re.compile(r"\\([0-7]{3})")

_libc = ctypes.CDLL(None, use_errno=True)


class VolumeError(RuntimeError):
    """A volume of the pod can't be set up."""


def mount(kind: str, target: Path, options: str) -> None:
    """Mount a file system without a device. Raises OSError."""
    done = _libc.mount(
        kind.encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(0), options.encode()
    )
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind} ({options}) at {target}: {os.strerror(number)}")


def unmount_below(directory: Path) -> None:
    """Unmount all mounts at ``directory`` or below, the newest first."""
    for target in reversed(mounts_below(directory)):
        path = str(target).encode()
        # A busy mount is detached: it disappears with its last process, which is being killed.
        if _libc.umount2(path, _UMOUNT_NOFOLLOW) != 0:
            _libc.umount2(path, _UMOUNT_NOFOLLOW | _MNT_DETACH)


def mounts_below(directory: Path) -> list[Path]:
    """The mount points at ``directory`` or below, in the order of mounting."""
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    # mountinfo has octal escapes for spaces and backslashes in paths.
    paths = [Path(_OCTAL.sub(lambda hit: chr(int(hit[1], 8)), point)) for point in points]
    return [path for path in paths if path == directory or directory in path.parents]


def set_up(pod: Mapping[str, Any], pod_dir: Path) -> dict[str, str]:
    """Make the pod's volumes below ``pod_dir``; return host paths by volume name.

    Raises VolumeError for an unsupported kind of volume. A projected volume (the ServiceAccount's
    token) is an empty directory, because no program of the tests reads it.
    """
    return {
        volume["name"]: _set_up_one(pod, volume, pod_dir / "volumes")
        for volume in pod["spec"].get("volumes") or ()
    }


def _set_up_one(pod: Mapping[str, Any], volume: Mapping[str, Any], volumes: Path) -> str:
    name = volume["name"]
    if "emptyDir" in volume:
        source = volume["emptyDir"] or {}
        path = volumes / _EMPTY_DIR / name
        path.mkdir(parents=True)
        medium = source.get("medium", "")
        if medium.startswith("HugePages"):
            # An emptyDir of huge pages has no size= in kubelet.
            mount("hugetlbfs", path, f"pagesize={_page_size(pod, name, medium)}")
        elif medium == "Memory":
            limit = source.get("sizeLimit")
            mount("tmpfs", path, f"size={parse_bytes(limit)}" if limit else "")
        elif medium:
            raise VolumeError(f"emptyDir {name}: medium {medium!r} is no medium of kubelet")
        return str(_open_to_all(path, pod))
    if "hostPath" in volume:
        return _host_path(name, volume["hostPath"])
    if "projected" in volume:
        path = volumes / _PROJECTED / name
        path.mkdir(parents=True)
        return str(path)
    kind = next((key for key in volume if key != "name"), "none")
    raise VolumeError(f"volume {name}: this test node has no volumes of kind {kind}")


def _open_to_all(path: Path, pod: Mapping[str, Any]) -> Path:
    """Set mode 0777 despite the umask, and the pod's fsGroup, as kubelet does for emptyDir."""
    path.chmod(0o777)
    group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
    if group is not None:
        os.chown(path, -1, group)
        path.chmod(0o2777)
    return path


def _page_size(pod: Mapping[str, Any], name: str, medium: str) -> str:
    """``2Mi`` for ``HugePages-2Mi``; for ``HugePages``, the only size that the pod requests."""
    if medium != "HugePages":
        return medium.removeprefix("HugePages-")
    sizes = [size for size, amount in huge_page_requests(pod["spec"]).items() if amount]
    if len(sizes) != 1:
        requested = ", ".join(map(resource_name, sizes)) or "none"
        raise VolumeError(
            f"emptyDir {name}: medium HugePages needs a pod that requests exactly one huge page "
            f"size, but this pod requests {requested}; write HugePages-<size>"
        )
    return resource_name(sizes[0]).removeprefix(PREFIX)


def _host_path(name: str, source: Mapping[str, Any]) -> str:
    path = Path(source["path"])
    if source.get("type") == "DirectoryOrCreate":
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not path.exists() and source.get("type"):
        raise VolumeError(f"hostPath {name}: {path} is not on this host")
    # Without a type, kubelet checks nothing and containerd makes a missing directory.
    path.mkdir(parents=True, exist_ok=True) if not path.exists() else None
    return str(path)


def tear_down(pod_dir: Path) -> None:
    """Unmount and remove the pod's directory."""
    unmount_below(pod_dir)
    shutil.rmtree(pod_dir, ignore_errors=True)


def container_mounts(container: Mapping[str, Any], volumes: Mapping[str, str]) -> list[Mount]:
    """The bind mounts of a container. Raises VolumeError for a mount of an unknown volume."""
    mounts = []
    for entry in container.get("volumeMounts") or ():
        if entry["name"] not in volumes:
            raise VolumeError(
                f"container {container['name']} mounts unknown volume {entry['name']}"
            )
        source = Path(volumes[entry["name"]])
        if entry.get("subPath"):
            source = source / entry["subPath"]
            source.mkdir(parents=True, exist_ok=True)
        mounts.append(Mount(str(source), entry["mountPath"], bool(entry.get("readOnly"))))
    # Outer mounts come first; otherwise they would hide the inner mounts.
    return sorted(mounts, key=lambda one: one.target.count("/"))
