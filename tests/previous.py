"""The previous release: the parent of the last commit that changed the product."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

from image.build import TREE

PRODUCT = ("operator", "charts", "crds", "Dockerfile", "image", "requirements.lock")


def commit() -> str | None:
    """Return the hash of the commit; None if the history is too short, as in a shallow clone."""
    try:
        last = _git("rev-list", "-1", "--first-parent", "HEAD", "--", *PRODUCT)
        return _git("rev-parse", "--verify", "--quiet", f"{last}^")
    except (subprocess.SubprocessError, FileNotFoundError):
        return None


def unpack(commit: str, folder: Path) -> Path:
    """Unpack the commit's tree below `folder`; return the tree's path."""
    archive, tree = folder / "tree.tar", folder / "tree"
    with archive.open("wb") as file:
        subprocess.run(["git", "archive", commit], cwd=TREE, stdout=file, check=True, timeout=60)
    with tarfile.open(archive) as tar:
        tar.extractall(tree, filter="tar")
    return tree


def _git(*words: str) -> str:
    command = ["git", *words]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip()
