"""The disk of the machine that Docker and kind run on: Debian, with the images loaded.

All that takes long on an emulated processor is done here, natively: Docker loads the node's image,
and containerd imports what the node runs into a folder that kind mounts into it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.kind import node
from tests.kind.programs import Programs
from tests.vm import root
from tests.vm.steps import run, step

HERE = Path(__file__).resolve().parent
STORE = "/var/lib/node-images"
"""containerd's folder of the node, on the machine."""
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "mount", "util-linux", "procps"),
    *("docker.io", "docker-cli", "containerd", "runc"),
    *("iptables", "nftables", "iproute2", "openssh-server", "ca-certificates"),
    "linux-image-cloud-amd64",
)
LOAD = """\
set -eu
mount --make-rprivate /
# dockerd wants its root to be a mount point.
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t tmpfs tmpfs run
mount --rbind /dev dev
mount --rbind /sys sys
ip link set lo up
touch run/image.tar
mount --bind "$2" run/image.tar
# Docker's own configuration is for the machine; here there is no network, and maybe no systemd.
chroot . dockerd --config-file /dev/null --storage-driver overlay2 --bridge none \\
    --iptables=false --ip6tables=false --exec-opt native.cgroupdriver=cgroupfs \\
    --host unix:///run/docker.sock > run/dockerd.log 2>&1 &
dockerd=$!
trap 'kill $dockerd; wait $dockerd || :' EXIT
for _ in $(seq 300); do
    chroot . docker version > /dev/null 2>&1 && break
    sleep 0.1
done
chroot . docker load --quiet --input /run/image.tar || { tail -30 run/dockerd.log; exit 1; }
"""


def recipe(programs: Programs) -> root.Recipe:
    """Return what the machine's root is made of."""
    return root.Recipe(
        "kind",
        PACKAGES,
        HERE / "machine",
        ("machine-setup", "containerd", "docker", "ssh"),
        {"usr/local/bin/kind": programs.kind},
    )


def disk(programs: Programs, images: Sequence[Path]) -> root.Disk:
    """Return the machine's disk, made now if it must be.

    `images`: archives of what runs on the node, besides Kubernetes itself. Raises StepFailed.
    """
    made_of = recipe(programs)
    bare, initrd = root.machine_root(made_of)
    loaded = _loaded(made_of, bare, node.image(programs))
    imported = [node.kubernetes(), *images]
    digest = hashlib.sha256(loaded.name.encode() + root.digests([Path(__file__), *imported]))
    image = made_of.cache() / f"disk-{digest.hexdigest()[:12]}.img"
    with root.locked(made_of.cache() / "disk.lock"):
        if not image.exists():
            for stale in made_of.cache().glob("disk-*.img"):
                stale.unlink()  # who runs machines from it holds it open
            with step("importing what the node runs, and writing the machine's disk"):
                work = image.with_suffix(".root")
                shutil.rmtree(work, ignore_errors=True)
                run(["cp", "-a", loaded, work])
                _import(work, imported, node.aliases(programs))
                root.write_image(work, image, gigabytes=16)
    return root.Disk(image, bare / "boot" / "vmlinux", initrd)


def _loaded(made_of: root.Recipe, bare: Path, archive: Path) -> Path:
    """Return the root with the node's image in Docker's storage."""
    digest = hashlib.sha256(f"{bare.name} {archive.name} {LOAD}".encode()).hexdigest()[:12]
    loaded = made_of.cache() / f"loaded-{digest}"
    with root.locked(made_of.cache() / "loaded.lock"):
        if not loaded.exists():
            for stale in made_of.cache().glob("loaded-*"):
                if stale.is_dir():
                    shutil.rmtree(stale)
            making = loaded.with_suffix(".making")
            with step("loading the node's image into Docker"):
                run(["cp", "-a", bare, making])
                # What it mounts, and its processes, go with its namespaces.
                apart = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
                run([*apart, "sh", "-c", LOAD, "load", making, archive])
            making.rename(loaded)
    return loaded


def _import(work: Path, images: Sequence[Path], aliases: dict[str, str]) -> None:
    """Import the images as the node's containerd keeps them: the machine has the same one."""
    own = work / "var/lib/containerd"
    shutil.rmtree(own, ignore_errors=True)
    root.import_images(work, images, aliases)
    own.rename(work / STORE[1:])
    own.mkdir(mode=0o711)
