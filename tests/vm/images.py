"""Make the images of a cluster without a registry, as docker archives that containerd imports.

buildah builds the same Dockerfiles as other engines. debootstrap makes the base of each image,
because there is no registry to pull a base from.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from tests.vm import buildah
from tests.vm.steps import run, step

HERE = Path(__file__).resolve().parent
WORKLOAD = HERE.parent / "e2e" / "workload"

PAUSE_IMAGE = "registry.k8s.io/pause:3.10"
"""The name in containerd's configuration."""
WORKLOAD_IMAGE = "docker.io/library/hugetlb-quota-workload:e2e"

SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"


def pause() -> Path:
    """Return the archive of the sandbox image; make it if it is missing. Raises StepFailed."""
    source = HERE / "pause.c"
    archive = buildah.folder() / f"pause-{_digest(source)}.tar"
    if not archive.exists():
        with step("making the sandbox image"), tempfile.TemporaryDirectory() as scratch:
            run(["cc", "-O2", "-Wall", "-Wextra", "-static", "-o", f"{scratch}/pause", source])
            buildah.commit(PAUSE_IMAGE, Path(scratch), "--entrypoint", '["/pause"]')
            _export(PAUSE_IMAGE, archive)
    return archive


def workload() -> Path:
    """Return the archive of tests/e2e's image; make it if it is missing. Raises StepFailed."""
    sources = sorted(each for each in WORKLOAD.iterdir() if each.is_file())
    archive = buildah.folder() / f"workload-{_digest(*sources, Path(__file__))}.tar"
    if not archive.exists():
        with step("making the workload image: PostgreSQL, libhugetlbfs, strace (2 minutes, once)"):
            base = debian_base()
            buildah.buildah(
                *("bud", "--isolation", "chroot", "--pull-never", "--build-arg", f"BASE={base}"),
                *("--tag", WORKLOAD_IMAGE, WORKLOAD),
            )
            _export(WORKLOAD_IMAGE, archive)
    return archive


def debian_base() -> str:
    """Return the name of an image like Docker's debian:trixie-slim; make it if it is missing."""
    name = f"localhost/debian:{SUITE}-made-here"
    if not buildah.exists(name):
        with tempfile.TemporaryDirectory(dir=buildah.folder()) as scratch:
            root = Path(scratch, "root")
            run(["debootstrap", "--variant=minbase", SUITE, root, MIRROR])
            shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
            path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            buildah.commit(name, root, "--env", path)
    return name


def _export(name: str, archive: Path) -> None:
    """Write the archive, and remove older archives of the same image."""
    for stale in archive.parent.glob(f"{archive.name.rpartition('-')[0]}-*.tar"):
        stale.unlink()
    buildah.export(name, archive)


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
