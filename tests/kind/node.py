"""Make the image of kind's node and the image of Kubernetes' programs without a registry.

The recipe is that of images/base/Dockerfile and of `kind build node-image` in kind's module: kind's
files on top of Debian, then kubelet, kubeadm and kubectl. containerd, runc and the CNI plugins are
Debian's. The node's image has no container images: they are on the machine's disk, and kind mounts
them. This saves a copy of a gigabyte at the start of the node.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from tests.kind.programs import Programs
from tests.kube import build
from tests.vm import buildah, images, root
from tests.vm.steps import StepFailed, run, step

HERE = Path(__file__).resolve().parent
OVERLAY = HERE / "node"
KUBERNETES = "localhost/kubernetes:here"
PACKAGES = (
    # kind's list, without the packages for network storage and fuse.
    *("systemd", "systemd-sysv", "conntrack", "iptables", "nftables", "iproute2", "ethtool"),
    *("util-linux", "mount", "kmod", "libseccomp2", "pigz", "e2fsprogs", "bash"),
    *("ca-certificates", "curl", "jq", "procps"),
    # These replace kind's own builds.
    *("containerd", "runc", "containernetworking-plugins"),
)
CONFIG = (
    *("--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    *("--env", "container=docker", "--stop-signal", "SIGRTMIN+3"),
    *("--entrypoint", '["/usr/local/bin/entrypoint", "/sbin/init"]', "--cmd", ""),
)
PREPARE = r"""
set -eu
# From kind's Dockerfile.
rm -f lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service
for target in multi-user local-fs basic; do
    rm -f lib/systemd/system/$target.target.wants/*
done
rm -f etc/systemd/system/*.wants/*
for socket in udev initctl; do
    rm -f lib/systemd/system/sockets.target.wants/*$socket*
done
echo ReadKMsg=no >> etc/systemd/journald.conf
mkdir -p etc/kubernetes/manifests opt/cni etc/systemd/system/multi-user.target.wants
for unit in kubelet containerd undo-mount-hacks; do
    ln -s /etc/systemd/system/$unit.service etc/systemd/system/multi-user.target.wants/
done
# kind waits 30 s until its node's systemd is up. On an emulated processor each of these takes a
# good part of a second, and does nothing here.
for unit in systemd-binfmt ldconfig systemd-hwdb-update systemd-journal-catalog-update \
    systemd-journal-flush systemd-update-utmp systemd-update-done systemd-firstboot \
    systemd-tmpfiles-setup-dev systemd-tmpfiles-setup-dev-early systemd-sysusers kmod-static-nodes \
    systemd-udev-trigger systemd-udevd systemd-random-seed systemd-machine-id-commit \
    systemd-modules-load systemd-remount-fs modprobe@configfs modprobe@fuse modprobe@drm \
    modprobe@dm_mod modprobe@loop modprobe@efi_pstore; do
    ln -sf /dev/null etc/systemd/system/$unit.service
done
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    fstrim.timer systemd-tmpfiles-clean.timer sys-kernel-debug.mount sys-kernel-tracing.mount \
    sys-kernel-config.mount sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount \
    systemd-ask-password-console.path systemd-ask-password-wall.path systemd-creds.socket \
    systemd-sysext.socket systemd-hostnamed.socket; do
    ln -sf /dev/null etc/systemd/system/$unit
done
ln -sf /lib/systemd/system/multi-user.target etc/systemd/system/default.target
# Where kind's units and containerd's defaults look for Debian's programs.
for program in containerd containerd-shim-runc-v2 ctr; do
    ln -s /usr/bin/$program usr/local/bin/
done
ln -s /usr/lib/cni opt/cni/bin
chroot . ctr oci spec \
    | jq '.hooks.createContainer += [{"path": "/kind/bin/mount-product-files.sh"}]
          | del(.process.rlimits)' > etc/containerd/cri-base.json
rm -rf usr/share/doc usr/share/man usr/share/locale
"""
"""A script that runs in the root's folder."""


def name() -> str:
    """Return the node image's name for kind."""
    return f"hugetlb-quota/kind-node:{build.kubernetes_version()}"


def image(programs: Programs) -> Path:
    """Return the archive of the node's image; make it if it is missing. Raises StepFailed."""
    own = sorted(each for each in OVERLAY.rglob("*") if each.is_file())
    kinds = sorted(each for each in programs.files.rglob("*") if each.is_file())
    binaries = _binaries(programs)
    digest = hashlib.sha256(f"{PACKAGES} {CONFIG} {PREPARE} {name()}".encode())
    digest.update(root.digests([Path(__file__), *own, *kinds, *binaries.values()]))
    archive = buildah.folder() / f"kind-node-{digest.hexdigest()[:12]}.tar"
    if not archive.exists():
        debian = root.debian(PACKAGES)
        with (
            step("making the image of kind's node"),
            tempfile.TemporaryDirectory(dir=buildah.folder()) as scratch,
        ):
            tree = Path(scratch, "root")
            run(["cp", "-a", debian, tree])
            _fill(tree, programs, binaries)
            buildah.commit(f"docker.io/{name()}", tree, *CONFIG)
            _export(f"docker.io/{name()}", archive)
    return archive


def _binaries(programs: Programs) -> dict[str, Path]:
    assets = build.assets()
    return {
        "kubeadm": programs.kubeadm,
        "kubelet": assets / "kubelet",
        "kubectl": assets / "kubectl",
    }


def _fill(tree: Path, programs: Programs, binaries: dict[str, Path]) -> None:
    """Copy kind's files and Kubernetes' programs over Debian."""
    # The files of a Go module are read-only and not executable.
    run(["cp", "-r", "--no-preserve=mode,ownership", f"{programs.files}/.", tree])
    for folder in ("kind/bin", "usr/local/bin"):
        for script in (programs.files / folder).iterdir():
            (tree / folder / script.name).chmod(0o755)
    run(["cp", "-a", "--no-preserve=ownership", f"{OVERLAY}/.", tree])
    for program, source in binaries.items():
        shutil.copy2(source, tree / "usr/bin" / program)
    (tree / "kind/version").write_text(build.kubernetes_version())
    run(["sh", "-c", PREPARE], cwd=tree)


def kubernetes() -> Path:
    """Return the archive of the image with the control plane and kube-proxy. Raises StepFailed."""
    assets = build.assets()
    programs = [assets / "kube", assets / "kube-proxy"]
    if not programs[0].exists():
        raise StepFailed("KUBEBUILDER_ASSETS names other programs than are built here: unset it")
    digest = hashlib.sha256(root.digests([HERE / "kube" / "Dockerfile", *programs]))
    archive = buildah.folder() / f"kubernetes-{digest.hexdigest()[:12]}.tar"
    if not archive.exists():
        with (
            step("making the image of the control plane and kube-proxy"),
            tempfile.TemporaryDirectory(dir=buildah.folder()) as scratch,
        ):
            for program in (HERE / "kube" / "Dockerfile", *programs):
                shutil.copy2(program, scratch)
            buildah.buildah(
                *("bud", "--isolation", "chroot", "--pull-never"),
                *("--build-arg", f"BASE={images.debian_base()}"),
                *("--tag", KUBERNETES, scratch),
            )
            _export(KUBERNETES, archive)
    return archive


def aliases(programs: Programs) -> dict[str, str]:
    """Return kubeadm's names of the programs' images; all of them map to the one image."""
    version = build.kubernetes_version()
    listed = run([programs.kubeadm, "config", "images", "list", "--kubernetes-version", version])
    wanted = ("kube-", "etcd")
    return {
        each: KUBERNETES for each in listed.split() if each.rpartition("/")[2].startswith(wanted)
    }


def _export(image: str, archive: Path) -> None:
    """Write the archive, and remove older archives of the same image."""
    for stale in archive.parent.glob(f"{archive.stem.rpartition('-')[0]}-*.tar"):
        stale.unlink()
    buildah.export(image, archive)
