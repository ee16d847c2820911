"""Make a machine's disk: Debian with systemd, the programs of a node, and the images.

The cache outside the tree keeps the root file system and the disk with images. Their names are
digests of their inputs. A change of the operator makes a new disk, but no new root.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kube import build
from tests.vm.steps import StepFailed, run, step

HERE = Path(__file__).resolve().parent
BASE = HERE / "base"
"""Files that are copied over Debian's files on every machine; the paths are the same."""

SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"
NODE_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "mount", "util-linux", "procps"),
    *("containerd", "runc", "crun", "containernetworking-plugins"),
    *("iptables", "nftables", "conntrack", "iproute2", "openssh-server", "ca-certificates"),
    "linux-image-cloud-amd64",
)
SERVICES_MASKED = (
    # Each takes a second or more on an emulated processor, and is not needed.
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"),
    *("e2scrub_reap.service", "fstrim.timer", "systemd-timesyncd.service"),
    *("systemd-networkd.service", "getty@tty1.service", "console-getty.service"),
    *("serial-getty@ttyS0.service", "systemd-hwdb-update.service", "systemd-udev-settle.service"),
    *("systemd-random-seed.service", "systemd-rfkill.service", "nftables.service"),
    *("ldconfig.service", "systemd-journal-flush.service", "systemd-tpm2-setup.service"),
    *("systemd-tpm2-setup-early.service", "systemd-pcrphase.service"),
)


@dataclass(frozen=True)
class Disk:
    """The files that QEMU boots a node from."""

    image: Path
    """A raw ext4 image without partitions. QEMU does not write to the image."""
    kernel: Path
    """An uncompressed vmlinux, because decompression is slow in emulation."""
    initrd: Path

    @contextmanager
    def held(self) -> Iterator[Disk]:
        """Yield the same disk by paths that stay valid when another run makes a newer disk."""
        files = [path.open("rb") for path in (self.image, self.kernel, self.initrd)]
        try:
            yield Disk(*(Path(f"/proc/{os.getpid()}/fd/{file.fileno()}") for file in files))
        finally:
            for file in files:
                file.close()


@dataclass(frozen=True)
class Recipe:
    """The inputs of a machine's root file system."""

    name: str
    """The name of the folder in the cache."""
    packages: tuple[str, ...]
    overlay: Path
    """A folder of files that are copied over Debian's files and `BASE`."""
    enabled: tuple[str, ...]
    """The systemd services that start at boot."""
    programs: Mapping[str, Path]
    """Programs of the host, by their path on the machine."""

    def cache(self) -> Path:
        """Return the cache folder of the roots and disks."""
        folder = build.cache() / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def node() -> Recipe:
    """Return the recipe of a node with kubelet."""
    assets = build.assets()
    return Recipe(
        "vm",
        NODE_PACKAGES,
        HERE / "node",
        ("node-setup", "kubelet", "kube-proxy", "containerd", "ssh"),
        {f"usr/bin/{name}": assets / name for name in ("kubelet", "kube-proxy")},
    )


def disk(images: Sequence[Path]) -> Disk:
    """Return a node's disk with these images (docker archives); make it if it is missing.

    Raises StepFailed.
    """
    recipe = node()
    root, initrd = machine_root(recipe)
    digest = hashlib.sha256(root.name.encode())
    digest.update(digests(images))
    image = cached_disk(
        recipe,
        digest.hexdigest()[:12],
        root,
        lambda work: import_images(work, images),
    )
    return Disk(image, root / "boot" / "vmlinux", initrd)


def cached_disk(
    recipe: Recipe, digest: str, root: Path, add: Callable[[Path], None], gigabytes: int = 8
) -> Path:
    """Return the disk image with this digest; make it if it is missing. Raises StepFailed.

    `add` adds files to a copy of the folder `root`. The image then has the files of the copy.
    """
    image = recipe.cache() / f"disk-{digest}.img"
    with locked(recipe.cache() / "disk.lock"):
        if not image.exists():
            for stale in recipe.cache().glob("disk-*.img"):
                stale.unlink()  # running machines hold the file open
            with step("importing the images, and writing the machine's disk"):
                work = image.with_suffix(".root")
                shutil.rmtree(work, ignore_errors=True)
                run(["cp", "-a", root, work])
                add(work)
                write_image(work, image, gigabytes)
    return image


@contextmanager
def locked(lock: Path) -> Iterator[None]:
    """Hold the file lock `lock`; wait while another process holds it."""
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digests(files: Iterable[Path]) -> bytes:
    """Return the SHA-256 digests of the files, joined."""
    joined = b""
    for path in files:
        with path.open("rb") as file:
            joined += hashlib.file_digest(file, "sha256").digest()
    return joined


def machine_root(recipe: Recipe) -> tuple[Path, Path]:
    """Return the root's folder and the initrd; make them if missing. Raises StepFailed."""
    made_of = (SUITE, recipe.packages, recipe.enabled, sorted(recipe.programs), SERVICES_MASKED)
    digest = hashlib.sha256(repr(made_of).encode())
    for folder in (BASE, recipe.overlay):
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    digest.update(digests([Path(__file__), *(path for _, path in sorted(recipe.programs.items()))]))
    root = recipe.cache() / f"root-{digest.hexdigest()[:12]}"
    initrd = root.with_suffix(".initrd")
    with locked(recipe.cache() / "root.lock"):
        if not initrd.exists():
            for stale in recipe.cache().glob("root-*"):
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            _make_root(root, recipe)
            _make_initrd(root, initrd)
    return root, initrd


def debian(packages: tuple[str, ...]) -> Path:
    """Return a root with only Debian's packages; make it if it is missing, which is slow."""
    folder = build.cache() / "vm"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{SUITE} {packages}".encode()).hexdigest()[:12]
    kept = folder / f"debian-{digest}"
    with locked(kept.with_suffix(".lock")):
        if kept.exists():
            return kept
        making = kept.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        include = f"--include={','.join(packages)}"
        with step(f"debootstrap of Debian {SUITE} for a machine (90 s or more, once)"):
            run(["debootstrap", "--variant=minbase", include, SUITE, making, MIRROR])
        shutil.rmtree(making / "var/cache/apt", ignore_errors=True)
        shutil.rmtree(making / "var/lib/apt/lists", ignore_errors=True)
        making.rename(kept)
    return kept


def _make_root(root: Path, recipe: Recipe) -> None:
    making = root.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    packages = debian(recipe.packages)
    with step("adding the machine's programs and configuration"):
        run(["cp", "-a", packages, making])
        for overlay in (BASE, recipe.overlay):
            run(["cp", "-a", "--no-preserve=ownership", f"{overlay}/.", making])
        for at, program in recipe.programs.items():
            shutil.copy2(program, making / at)
        units = making / "etc/systemd/system"
        wants = units / "multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        for service in recipe.enabled:
            _link(wants / f"{service}.service", _unit(making, service))
        for masked in SERVICES_MASKED:
            _link(units / masked, "/dev/null")
        _link(units / "default.target", "/lib/systemd/system/multi-user.target")
        (making / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
        (vmlinuz,) = (making / "boot").glob("vmlinuz-*")
        (making / "boot/vmlinux").write_bytes(_uncompressed(vmlinuz))
    making.rename(root)


def _unit(root: Path, service: str) -> str:
    own = f"/etc/systemd/system/{service}.service"
    return own if (root / own[1:]).exists() else f"/lib/systemd/system/{service}.service"


def _link(link: Path, target: str) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


COMPRESSIONS = (
    (b"\x28\xb5\x2f\xfd", ("zstd", "-dc")),
    (b"\xfd7zXZ\0", ("xz", "-dc")),
    (b"\x1f\x8b\x08", ("gzip", "-dc")),
)


def _uncompressed(vmlinuz: Path) -> bytes:
    """Return the ELF image in a bzImage, as the kernel's scripts/extract-vmlinux does."""
    packed = vmlinuz.read_bytes()
    for magic, command in COMPRESSIONS:
        start = packed.find(magic)
        while start >= 0:
            # Bytes after the payload make the program fail, so ignore the status.
            done = subprocess.run(command, input=packed[start:], capture_output=True)
            if done.stdout.startswith(b"\x7fELF"):
                return done.stdout
            start = packed.find(magic, start + 1)
    raise StepFailed(f"{vmlinuz} has no kernel in a supported compression")


INIT = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox insmod /virtio_blk.ko
/bin/busybox mount -t ext4 -o rw,noatime /dev/vda /root || exec /bin/busybox sh
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""


def _make_initrd(root: Path, initrd: Path) -> None:
    """Write an initrd with the disk's module; ext4 is built into the kernel."""
    tree = initrd.with_suffix(".tree")
    shutil.rmtree(tree, ignore_errors=True)
    for folder in ("bin", "dev", "root"):
        (tree / folder).mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise StepFailed("`busybox` is not installed")
    shutil.copy2(busybox, tree / "bin/busybox")
    (module,) = root.glob("lib/modules/*/kernel/drivers/block/virtio_blk.ko*")
    with (tree / "virtio_blk.ko").open("wb") as out:
        subprocess.run(["xz", "-dc", module], stdout=out, check=True)
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    names = "\n".join(str(each.relative_to(tree)) for each in tree.rglob("*"))
    making = initrd.with_suffix(".making")
    with making.open("wb") as out:
        subprocess.run(
            ["cpio", "-o", "--quiet", "-H", "newc"],
            cwd=tree,
            input=names.encode(),
            stdout=out,
            check=True,
        )
    shutil.rmtree(tree)
    making.rename(initrd)


IMPORT = """\
set -eu
cd "$1"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs run
mount --rbind /dev dev
shift
chroot . containerd --log-level warn &
containerd=$!
trap 'kill $containerd; wait $containerd || :' EXIT
for _ in $(seq 100); do
    chroot . ctr version > /dev/null 2>&1 && break
    sleep 0.1
done
mkdir run/images
for image in "$@"; do
    touch "run/images/${image##*/}"
    mount --bind "$image" "run/images/${image##*/}"
    chroot . ctr -n k8s.io images import --digests=false "/run/images/${image##*/}"
done
for alias in $ALIASES; do
    chroot . ctr -n k8s.io images tag --force "${alias%=*}" "${alias#*=}"
done
"""


def import_images(
    root: Path, images: Sequence[Path], aliases: Mapping[str, str] | None = None
) -> None:
    """Import docker archives with the root's containerd, so that kubelet finds the images.

    `aliases`: more names of images, each with the name in the archive.
    """
    words = " ".join(f"{name}={alias}" for alias, name in (aliases or {}).items())
    # A new mount namespace: its mounts disappear with it, also after an error.
    apart = ("unshare", "--mount", "sh", "-c", IMPORT, "import")
    run([*apart, root, *images], env={**os.environ, "ALIASES": words})


def write_image(root: Path, image: Path, gigabytes: int) -> None:
    """Write the root as an ext4 image, and remove the root."""
    making = image.with_suffix(".making")
    making.unlink(missing_ok=True)
    with making.open("wb") as file:
        os.truncate(file.fileno(), gigabytes << 30)
    run(
        [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"),
            *("-E", "lazy_itable_init=1,nodiscard", "-d", root, making),
        ]
    )
    shutil.rmtree(root)
    making.rename(image)
