"""Make the disk of the machine that runs Docker and kind: Debian, with the images loaded.

The steps that are slow on an emulated processor run here on the host: Docker loads the node's
image, and containerd imports the node's container images into a folder that kind mounts into it.
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
"""The machine's folder that is the containerd folder of the node."""
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "mount", "util-linux", "procps"),
    *("docker.io", "docker-cli", "containerd", "runc"),
    *("iptables", "nftables", "iproute2", "openssh-server", "ca-certificates"),
    "linux-image-cloud-amd64",
)
LOAD = """\
set -eu
mount --make-rprivate /
# dockerd needs a mount point as root.
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t tmpfs tmpfs run
mount --rbind /dev dev
mount --rbind /sys sys
ip link set lo up
touch run/image.tar
mount --bind "$2" run/image.tar
# The machine's configuration of Docker does not fit here: no network, and maybe no systemd.
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


def machine_recipe(programs: Programs) -> root.Recipe:
    """Return the recipe of the machine's root."""
    return root.Recipe(
        "kind",
        PACKAGES,
        HERE / "machine",
        ("machine-setup", "containerd", "docker", "ssh"),
        {"usr/local/bin/kind": programs.kind},
    )


def disk(programs: Programs, images: Sequence[Path]) -> root.Disk:
    """Return the machine's disk; make it if it is missing.

    `images`: the archives of the node's images, besides Kubernetes. Raises StepFailed.
    """
    recipe = machine_recipe(programs)
    bare, initrd = root.machine_root(recipe)
    loaded = _loaded(recipe, bare, node.image(programs))
    imported = [node.kubernetes(), *images]
    digest = hashlib.sha256(loaded.name.encode() + root.digests([Path(__file__), *imported]))
    image = root.cached_disk(
        recipe,
        digest.hexdigest()[:12],
        loaded,
        lambda work: _import(work, imported, node.aliases(programs)),
        gigabytes=16,
    )
    return root.Disk(image, bare / "boot" / "vmlinux", initrd)


def _loaded(recipe: root.Recipe, bare: Path, archive: Path) -> Path:
    """Return the root with the node's image in Docker's storage."""
    digest = hashlib.sha256(f"{bare.name} {archive.name} {LOAD}".encode()).hexdigest()[:12]
    loaded = recipe.cache() / f"loaded-{digest}"
    with root.locked(recipe.cache() / "loaded.lock"):
        if not loaded.exists():
            for stale in recipe.cache().glob("loaded-*"):
                if stale.is_dir():
                    shutil.rmtree(stale)
            making = loaded.with_suffix(".making")
            with step("loading the node's image into Docker"):
                run(["cp", "-a", bare, making])
                # New namespaces: mounts and processes disappear with them.
                apart = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
                run([*apart, "sh", "-c", LOAD, "load", making, archive])
            making.rename(loaded)
    return loaded


def _import(work: Path, images: Sequence[Path], aliases: dict[str, str]) -> None:
    """Import the images with the machine's containerd, which has the node's version."""
    own = work / "var/lib/containerd"
    shutil.rmtree(own, ignore_errors=True)
    root.import_images(work, images, aliases)
    own.rename(work / STORE[1:])
    own.mkdir(mode=0o711)
