"""The image as an archive that containerd imports, built without a registry.

`python -m tests.vm.image` prints the archive's path as its last line.

The base that the Dockerfile names can't be pulled everywhere. Here debootstrap makes one that
looks like it (Debian's own Python; pip and setuptools below /usr/local), and buildah builds the
Dockerfile on it: no daemon, no user namespaces. What is made goes to the cache folder, under
names that follow from what it is made of.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image.build import TREE, version
from tests.kube import build

SUITE = "bookworm"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = (
    *("python3", "python3-distutils", "ca-certificates"),
    # Wheels that the recipe installs, and purges.
    *("python3-pip-whl", "python3-setuptools-whl"),
)
RECIPE = r"""
set -eu
cd /usr/share/python-wheels
python3 "$(echo pip-*.whl)/pip" install --quiet --no-index --no-compile --break-system-packages \
    --root-user-action=ignore pip-*.whl setuptools-*.whl
# As the official image has it: a link that pip's list of its files does not know.
ln -sf pip3 /usr/local/bin/pip
sed -i '\#/bin/pip,#d' /usr/local/lib/python3*/dist-packages/pip-*/RECORD
ln -s python3 /usr/bin/python
cd /
dpkg --purge --force-depends python3-pip-whl python3-setuptools-whl > /dev/null
rm -r /usr/lib/python3*/EXTERNALLY-MANAGED /var/cache/apt /var/lib/apt/lists /var/log/* \
    /usr/share/doc /usr/share/man /usr/share/locale /usr/share/info /etc/resolv.conf /etc/hostname
find / -xdev -name __pycache__ -prune -exec rm -r {} +
"""
"""Run in the new root. The official image holds no compiled modules either."""

INPUTS = (
    *("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE"),
    *("requirements.lock", "image/requirements-build.lock", "image/prune.py", "operator"),
)
"""What the image is made of, besides its base."""

TIMEOUT = 1200.0
"""Seconds that one step may take; debootstrap takes two minutes where nobody else works."""


class ImageError(Exception):
    """The image can't be built here; the message says why, with the end of the output."""


@dataclass(frozen=True)
class Image:
    """A built image."""

    name: str
    """As the chart's defaults name it, such as "hugetlb-quota:0.1.0"."""
    archive: Path
    """A docker-archive of it."""


def built() -> Image:
    """Return the image of this tree, built now if it must be. Raises ImageError."""
    name = f"hugetlb-quota:{version()}"
    digest = _digest()
    archive = _cache() / f"{digest}.tar"
    with _locked():
        if not archive.exists():
            base = _base()
            with _step(f"building {name}"):
                # The revision follows from the content: a commit of other files makes no new image.
                _run(
                    [sys.executable, TREE / "image" / "build.py"],
                    ENGINE="buildah",
                    IMAGE=name,
                    BASE=base,
                    REVISION=f"content-{digest}",
                )
            _write(name, archive)
    os.utime(archive)
    return Image(name, archive)


@contextmanager
def unpacked(image: Image) -> Iterator[Path]:
    """Give the image's root file system, read-only, in a folder that goes with the context.

    No other image is built meanwhile. Raises ImageError.
    """
    with _locked():
        name = _run(["buildah", "from", f"docker-archive:{image.archive}"]).strip()
        try:
            root = Path(_run(["buildah", "mount", name]).strip())
            with tempfile.TemporaryDirectory() as folder:
                _run(["mount", "--bind", root, folder])
                try:
                    _run(["mount", "-o", "remount,bind,ro", folder])
                    yield Path(folder)
                finally:
                    _run(["umount", folder])
        finally:
            _run(["buildah", "rm", name])


def configuration(image: Image) -> dict[str, Any]:
    """Return the image's configuration, as OCI has it: User, Env, Labels, Cmd."""
    with tarfile.open(image.archive) as archive:
        (manifest,) = _json(archive, "manifest.json")
        return dict(_json(archive, manifest["Config"])["config"])


def _json(archive: tarfile.TarFile, name: str) -> Any:
    member = archive.extractfile(name)
    assert member is not None
    return json.load(member)


def _digest() -> str:
    digest = hashlib.sha256(_base_name().encode())
    for entry in (TREE / name for name in INPUTS):
        files = sorted(entry.rglob("*.py")) if entry.is_dir() else [entry]
        for file in files:
            digest.update(f"{file.relative_to(TREE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _base_name() -> str:
    made_of = f"{SUITE} {MIRROR} {PACKAGES} {RECIPE}"
    return f"localhost/hugetlb-quota-base:{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def _base() -> str:
    """Return the base's name in buildah's storage, made now if it is not there."""
    name = _base_name()
    if _run(["buildah", "images", "--filter", f"reference={name}", "--quiet"]).strip():
        return name
    with tempfile.TemporaryDirectory(dir=_cache()) as folder:
        root = Path(folder, "root")
        wanted = f"--include={','.join(PACKAGES)}"
        with _step(f"debootstrap of Debian {SUITE} for the image's base (two minutes, once)"):
            _run(["debootstrap", "--variant=minbase", wanted, SUITE, root, MIRROR])
        _run(["chroot", root, "sh", "-c", RECIPE])
        with _step("committing the base"):
            container = _run(["buildah", "from", "scratch"]).strip()
            _run(["buildah", "copy", "--quiet", container, root, "/"])
            path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
            _run(["buildah", "config", "--env", path, "--env", "LANG=C.UTF-8", container])
            _run(["buildah", "commit", "--quiet", "--rm", container, name])
    return name


def _write(name: str, archive: Path) -> None:
    making = archive.with_suffix(".making")
    making.unlink(missing_ok=True)
    with _step(f"writing {archive}"):
        _run(["buildah", "push", "--quiet", name, f"docker-archive:{making}:{name}"])
    making.rename(archive)
    # What an earlier build had under this name, and archives that nobody asked for lately.
    _run(["buildah", "rmi", "--prune", "--force"])
    newest = sorted(_cache().glob("*.tar"), key=lambda each: each.stat().st_mtime, reverse=True)
    for stale in newest[3:]:
        stale.unlink()


def _cache() -> Path:
    folder = build.cache() / "image"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked() -> Iterator[None]:
    with (_cache() / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _environment() -> dict[str, str]:
    """The process's own, with buildah's storage in the cache, where it needs no kernel feature."""
    storage = _cache() / "storage.conf"
    folders = f'graphroot = "{_cache()}/storage"\nrunroot = "{_cache()}/run"\n'
    storage.write_text(f'[storage]\ndriver = "vfs"\n{folders}')
    return {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(storage),
        "STORAGE_DRIVER": "vfs",
        "BUILDAH_ISOLATION": "chroot",
    }


@contextmanager
def _step(what: str) -> Iterator[None]:
    started = time.monotonic()
    print(what, file=sys.stderr, flush=True)
    yield
    print(f"{what}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _run(command: Sequence[str | Path], **environment: str) -> str:
    """Run a command and return its standard output. Raises ImageError with what it printed."""
    words = [str(word) for word in command]
    if shutil.which(words[0]) is None:
        raise ImageError(f"{words[0]} is not on PATH: install it (Debian's package is named so).")
    try:
        done = subprocess.run(
            words,
            env={**_environment(), **environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"`{' '.join(words)[:200]}` did not end in {TIMEOUT:.0f} s.") from error
    if done.returncode:
        end = (done.stdout + done.stderr)[-3000:].strip()
        raise ImageError(f"`{' '.join(words)[:200]}` ended with status {done.returncode}:\n{end}")
    return done.stdout


def main() -> int:
    """Build, and print the archive's path."""
    try:
        print(built().archive)
    except ImageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
