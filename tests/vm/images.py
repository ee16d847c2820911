"""The images of a cluster without a registry, as docker archives that containerd imports.

buildah makes them from the Dockerfiles that everybody uses; only the base of each is made here,
by debootstrap, because no registry can be asked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from tests.kube import build
from tests.vm.steps import run, step

HERE = Path(__file__).resolve().parent
WORKLOAD = HERE.parent / "e2e" / "workload"

PAUSE_IMAGE = "registry.k8s.io/pause:3.10"
"""As containerd's configuration names it."""
WORKLOAD_IMAGE = "docker.io/library/hugetlb-quota-workload:e2e"

SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"


def pause() -> Path:
    """Return the archive of the sandbox image, made now if it must be."""
    source = HERE / "pause.c"
    archive = _folder() / f"pause-{_digest(source)}.tar"
    if not archive.exists():
        with step("making the sandbox image"), tempfile.TemporaryDirectory() as scratch:
            program = Path(scratch, "pause")
            run(["cc", "-O2", "-Wall", "-Wextra", "-static", "-o", program, source])
            container = buildah("from", "scratch")
            buildah("copy", container, program, "/pause")
            buildah("config", "--entrypoint", '["/pause"]', container)
            buildah("commit", "--rm", container, PAUSE_IMAGE)
            export(PAUSE_IMAGE, archive)
    return archive


def workload() -> Path:
    """Return the archive of the image that tests/e2e runs, made now if it must be."""
    sources = sorted(each for each in WORKLOAD.iterdir() if each.is_file())
    archive = _folder() / f"workload-{_digest(*sources, Path(__file__))}.tar"
    if not archive.exists():
        with step("making the workload image: PostgreSQL, libhugetlbfs, strace (2 minutes, once)"):
            base = debian_base()
            buildah(
                *("bud", "--isolation", "chroot", "--pull-never", "--build-arg", f"BASE={base}"),
                *("--tag", WORKLOAD_IMAGE, WORKLOAD),
            )
            export(WORKLOAD_IMAGE, archive)
    return archive


def debian_base() -> str:
    """Return the name of an image like Docker's debian:trixie-slim, made now if it must be."""
    name = f"localhost/debian:{SUITE}-made-here"
    if buildah("images", "--quiet", "--filter", f"reference={name}").strip():
        return name
    with tempfile.TemporaryDirectory(dir=_folder()) as scratch:
        root = Path(scratch, "root")
        run(["debootstrap", "--variant=minbase", SUITE, root, MIRROR])
        shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
        container = buildah("from", "scratch")
        buildah("copy", "--quiet", container, root, "/")
        buildah(
            "config", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", container
        )
        buildah("commit", "--quiet", "--rm", container, name)
    return name


def buildah(*words: str | Path) -> str:
    """Run buildah on storage of its own; its output without the last line end."""
    storage = _folder() / "storage"
    policy = storage / "policy.json"
    if not policy.exists():
        storage.mkdir(parents=True, exist_ok=True)
        # Nothing is pulled, so nothing is verified.
        policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}\n')
    flags = ["--root", storage / "root", "--runroot", storage / "run", "--storage-driver", "vfs"]
    env = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
    return run(["buildah", *flags, *words], env=env).strip()


def export(name: str, archive: Path) -> None:
    """Write an image as a docker archive; a half written one is never seen under its name."""
    making = archive.with_suffix(".making")
    making.unlink(missing_ok=True)
    buildah("push", "--quiet", name, f"docker-archive:{making}:{name}")
    for stale in archive.parent.glob(f"{archive.name.partition('-')[0]}-*.tar"):
        stale.unlink()
    making.rename(archive)


def _folder() -> Path:
    folder = build.cache() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]
