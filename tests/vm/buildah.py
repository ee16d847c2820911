"""buildah: images without a daemon, without a registry and without user namespaces."""

from __future__ import annotations

import os
from pathlib import Path

from tests.kube import build
from tests.vm.steps import run


def folder() -> Path:
    """Return the folder outside the tree for archives and buildah's storage."""
    path = build.cache() / "image"
    path.mkdir(parents=True, exist_ok=True)
    return path


def environment() -> dict[str, str]:
    """Return the process's own, with buildah's storage where it needs no kernel feature."""
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
    """Run buildah; its output without the last line end. Raises StepFailed."""
    return run(["buildah", *words], env=environment()).strip()


def exists(name: str) -> bool:
    """Say whether an image of this name is in the storage."""
    return bool(buildah("images", "--filter", f"reference={name}", "--quiet"))


def commit(name: str, root: Path, *config: str) -> None:
    """Make an image of one layer from a root file system."""
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, root, "/")
    buildah("config", *config, container)
    buildah("commit", "--quiet", "--rm", container, name)


def export(name: str, archive: Path) -> None:
    """Write an image as a docker archive; a half written one is never seen under its name."""
    making = archive.with_suffix(".making")
    making.unlink(missing_ok=True)
    buildah("push", "--quiet", name, f"docker-archive:{making}:{name}")
    making.rename(archive)
    # What an earlier build had under this name.
    buildah("rmi", "--prune", "--force")
