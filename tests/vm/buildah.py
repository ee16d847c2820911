"""Run buildah without a daemon, a registry or user namespaces."""

from __future__ import annotations

import os
from pathlib import Path

from tests.kube import build
from tests.vm.steps import run


def folder() -> Path:
    """Return the cache folder of archives and buildah's storage, outside the tree."""
    path = build.cache() / "image"
    path.mkdir(parents=True, exist_ok=True)
    return path


def environment() -> dict[str, str]:
    """Return this process's environment, with the vfs storage driver and chroot isolation."""
    storage = folder() / "storage.conf"
    folders = f'graphroot = "{folder()}/storage"\nrunroot = "{folder()}/run"\n'
    storage.write_text(f'[storage]\ndriver = "vfs"\n{folders}')
    return {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(storage),
        "STORAGE_DRIVER": "vfs",
        "BUILDAH_ISOLATION": "chroot",
    }


def buildah(*words: str | Path) -> str:
    """Run buildah; return its output without the trailing newline. Raises StepFailed."""
    return run(["buildah", *words], env=environment()).strip()


def exists(name: str) -> bool:
    """Return whether the storage has an image of this name."""
    return bool(buildah("images", "--filter", f"reference={name}", "--quiet"))


def commit(name: str, root: Path, *config: str) -> None:
    """Make an image with one layer from a root file system."""
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, root, "/")
    buildah("config", *config, container)
    buildah("commit", "--quiet", "--rm", container, name)


def export(name: str, archive: Path) -> None:
    """Write an image as a docker archive; the rename at the end is atomic."""
    making = archive.with_suffix(".making")
    making.unlink(missing_ok=True)
    buildah("push", "--quiet", name, f"docker-archive:{making}:{name}")
    making.rename(archive)
    # Remove the untagged image of an earlier build with this name.
    buildah("rmi", "--prune", "--force")
