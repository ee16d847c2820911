"""Debian's kernels, which apt fetches once with its own configuration into a cache.

The cache is ``kernels/SUITE/PACKAGE_VERSION`` in the cache of the control plane
(tests/kube/build.py). Remove the folder of a suite to fetch its newest kernel again.
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
    """The kernel can't be fetched; the sentence says what is missing."""


def kernel(suite: str) -> Path:
    """Return the path of the vmlinuz of Debian ``suite``'s cloud kernel.

    :raises NoKernel: the kernel is not in the cache and can't be fetched.
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
