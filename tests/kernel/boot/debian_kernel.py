"""Debian's kernels, fetched once by apt with a configuration of its own, and cached.

The cache is the control plane's
(tests/kube/build.py), below it ``kernels/SUITE/PACKAGE_VERSION``; remove a suite's folder to have
its newest kernel fetched again.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import tempfile
from pathlib import Path

from tests import debian
from tests.kube.build import cache

META = "linux-image-cloud-amd64"


class NoKernel(Exception):
    """No kernel could be fetched; the sentence says what is missing."""


def kernel(suite: str) -> Path:
    """The vmlinuz of Debian ``suite``'s cloud kernel.

    :raises NoKernel: when it is neither cached nor to be had.
    """
    folder = cache() / "kernels" / suite
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cached = sorted(folder.glob("*/vmlinuz"), key=lambda path: path.stat().st_mtime)
        return cached[-1] if cached else _fetched(suite, folder)


def _fetched(suite: str, folder: Path) -> Path:
    try:
        with (
            debian.apt(suite, folder) as apt,
            tempfile.TemporaryDirectory(dir=folder) as unpacked,
        ):
            package = re.search(r"Depends: (linux-image-\S+)", apt.depends(META))
            if package is None:
                raise debian.NotFetched(f"{META} of {suite} depends on none")
            archive = apt.download(package[1])
            debian.unpack(archive, Path(unpacked))
            (image,) = (Path(unpacked) / "boot").glob("vmlinuz-*")
            kept = folder / archive.stem
            kept.mkdir(exist_ok=True)
            shutil.copyfile(image, kept / "vmlinuz.new")
            return (kept / "vmlinuz.new").rename(kept / "vmlinuz")
    except debian.NotFetched as error:
        raise NoKernel(f"no Debian kernel can be fetched: {error}") from error
