"""Check that the machine has what the tests and the demo need.

This script runs before the installation of dependencies, so it uses only the standard library.
``--require`` exits with status 1 if something is missing for the demo, ``--require-vm`` if
tests/vm can't make virtual machines. ``--layers`` prints 1 if every layer can run here.
``--packages`` prints the missing Debian packages.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CAP_SYS_ADMIN = 21
GO = (1, 26)
#: The programs of tests/kube/build.py, which can't be imported yet.
PROGRAMS = (
    *("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"),
    *("kubelet", "kube-proxy", "helm", "pod-requests"),
)


def missing(*, demo: bool = False) -> list[str]:
    """A sentence for each missing thing that says what to do; the demo needs less."""
    checks = [_root, _cgroup2, _pages, _programs, _reader, *([] if demo else [_spin, _prometheus])]
    return [sentence for check in checks if (sentence := check())]


def _root(status: Path = Path("/proc/self/status")) -> str | None:
    if os.geteuid() != 0:
        return "Root is needed to mount, make cgroups and take huge pages; run it with sudo."
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)", status.read_text(), re.MULTILINE)
    if effective and int(effective[1], 16) >> CAP_SYS_ADMIN & 1:
        return None
    return (
        "This root has no CAP_SYS_ADMIN, as in a container, and can't mount; run it on a host, or"
        " in a container that is privileged."
    )


def _cgroup2(mountinfo: Path = Path("/proc/self/mountinfo")) -> str | None:
    points = [
        mount.split()[4]
        for mount, _, kind in (line.partition(" - ") for line in mountinfo.read_text().splitlines())
        if kind.startswith("cgroup2 ")
    ]
    if not points:
        return "No cgroup2 is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified."
    for point in points:
        try:
            if "hugetlb" in (Path(point) / "cgroup.controllers").read_text().split():
                return None
        except OSError:
            continue  # hidden by another mount
    return (
        f"The cgroup2 hierarchy at {points[0]} has no hugetlb controller; it belongs to cgroup v1"
        " on this host, or the kernel lacks CONFIG_CGROUP_HUGETLB. Boot with"
        " systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=hugetlb."
    )


def _pages() -> str | None:
    if Path("/sys/kernel/mm/hugepages/hugepages-2048kB").is_dir():
        return None
    return "The kernel has no 2 MiB huge pages; the tests need an x86-64 or 4 KiB-granule arm64."


def _reader(include: Path = Path("/usr/include")) -> str | None:
    """A sentence about the programs that the build of the charge list reader lacks."""
    lacking = _lacking_reader_packages(include)
    if not lacking:
        return None
    return (
        "The reader of the kernel's charge list can't be built: install"
        f" {', '.join(lacking)} (apt-get install {' '.join(lacking)})."
    )


def _lacking_reader_packages(include: Path = Path("/usr/include")) -> list[str]:
    packages = {
        "clang": _which("clang"),
        "bpftool": _which("bpftool"),
        "gcc": _which("cc"),
        "make": _which("make"),
        "libbpf-dev": (include / "bpf" / "libbpf.h").is_file(),
        "libc6-dev": (include / "stdio.h").is_file(),
    }
    return [name for name, found in packages.items() if not found]


def _prometheus() -> str | None:
    """A sentence about the programs that the tests of alerts and dashboard queries lack."""
    lacking = _lacking_prometheus_packages()
    if not lacking:
        return None
    return (
        "Alerts and metrics can't be tested with a real Prometheus: install prometheus"
        " (apt-get install --no-install-recommends prometheus)."
    )


def _lacking_prometheus_packages() -> list[str]:
    return [] if _which("prometheus") and _which("promtool") else ["prometheus"]


def _spin() -> str | None:
    """A sentence about the programs that the search of the protocol's model lacks."""
    lacking = _lacking_model_packages()
    if not lacking:
        return None
    return (
        f"The model of the protocol can't be searched (make model): install {', '.join(lacking)}"
        f" (apt-get install {' '.join(lacking)})."
    )


def _lacking_model_packages() -> list[str]:
    return [name for name, program in (("spin", "spin"), ("gcc", "gcc")) if not _which(program)]


def _lacking_bench_packages() -> list[str]:
    return [] if _which("nft") else ["nftables"]


#: Programs that make and run a node in a virtual machine, by the Debian package that has them.
MACHINE_PACKAGES = {
    "qemu-system-x86": "qemu-system-x86_64",
    "debootstrap": "debootstrap",
    "buildah": "buildah",
    "busybox-static": "busybox",
    "cpio": "cpio",
    "zstd": "zstd",
    "xz-utils": "xz",
    "e2fsprogs": "mke2fs",
    "openssh-client": "ssh",
    "iproute2": "ip",
    "git": "git",
    "gcc": "cc",
}


def _machines() -> str | None:
    """A sentence about the programs that tests/vm lacks."""
    lacking = _lacking_machine_packages()
    if not lacking:
        return None
    return (
        f"Nodes in virtual machines (make e2e-vm) can't be made: install {', '.join(lacking)}"
        f" (apt-get install {' '.join(lacking)})."
    )


def _lacking_machine_packages() -> list[str]:
    return [name for name, program in MACHINE_PACKAGES.items() if not _which(program)]


def _which(program: str) -> str | None:
    # Some programs are in /usr/sbin, which only root has on PATH.
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


def _programs() -> str | None:
    needed = f"Go {'.'.join(map(str, GO))} or newer"
    given, lack = os.environ.get("KUBEBUILDER_ASSETS"), "a control plane"
    if given:
        lacking = [name for name in PROGRAMS if not os.access(Path(given, name), os.X_OK)]
        if not lacking:
            return None
        lack = f"the programs that KUBEBUILDER_ASSETS={given} lacks ({', '.join(lacking)})"
    go = shutil.which("go")
    if go is None:
        return (
            f"There is no Go to build {lack}; install {needed}, or let KUBEBUILDER_ASSETS name a"
            " folder that has all programs."
        )
    done = subprocess.run([go, "version"], capture_output=True, text=True, timeout=60, check=False)
    version = re.search(r"go(\d+)\.(\d+)", done.stdout)
    if version and tuple(map(int, version.groups())) >= GO:
        return None
    return (
        f"{needed} is needed to build {lack}, but {go} is {done.stdout.strip()!r}; install a newer"
        " Go, or let KUBEBUILDER_ASSETS name a folder that has all programs."
    )


def main() -> None:
    """Print the missing things."""
    if "--packages" in sys.argv:
        lacking = (
            _lacking_reader_packages,
            _lacking_model_packages,
            _lacking_prometheus_packages,
            _lacking_bench_packages,
            _lacking_machine_packages,
        )
        print(*sorted({package for each in lacking for package in each()}))
        return
    sentences = missing(demo="--require" in sys.argv)
    if "--require-vm" in sys.argv:
        sentences = [each for each in (_root(), _programs(), _machines()) if each]
    if "--layers" in sys.argv:
        print(int(not sentences))
        return
    for sentence in sentences:
        print(f"missing: {sentence}", file=sys.stderr)
    if sentences and {"--require", "--require-vm"} & set(sys.argv):
        sys.exit(1)


if __name__ == "__main__":
    main()
