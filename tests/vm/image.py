"""Build the operator's image without a registry, as an archive that containerd imports.

The last line that `python -m tests.vm.image` prints is the archive's path.

Some machines can't pull the Dockerfile's base image. So debootstrap makes a similar base
(Debian's Python; pip and setuptools below /usr/local), and buildah builds the Dockerfile on this
base, without a daemon or user namespaces. The results are in the cache folder; the names depend
on the inputs.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image.build import TREE, version
from tests.vm import buildah
from tests.vm.root import MIRROR, locked
from tests.vm.steps import StepFailed, run, step

SUITE = "bookworm"
PACKAGES = (
    *("python3", "python3-distutils", "ca-certificates"),
    # The recipe installs the wheels of these packages, and then purges the packages.
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
"""A script that runs in the new root. The official image has no compiled modules either."""

INPUTS = (
    *("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE"),
    *("requirements.lock", "image/requirements-build.lock", "image/prune.py", "operator"),
)
"""The inputs of the image, besides its base."""

COMPILERS = "bpftool clang gcc libbpf-dev libc6-dev make"
"""The packages that the Dockerfile's first stage installs."""

PREFIX = "operator-"
"""The prefix of the archives' names."""


@dataclass(frozen=True)
class Image:
    """A built image."""

    name: str
    """The name in the chart's defaults, such as "hugetlb-quota:0.1.0"."""
    archive: Path
    """The image as a docker archive."""


def built(tree: Path = TREE, name: str = f"hugetlb-quota:{version()}") -> Image:
    """Return the image of a source tree; build it if the cache lacks it. Raises StepFailed."""
    digest = _digest(tree, name)
    archive = buildah.folder() / f"{PREFIX}{digest}.tar"
    with locked(_lock()):
        if not archive.exists():
            base = _base()
            # The revision depends on the inputs only, so other commits need no new image.
            chosen = {"ENGINE": "buildah", "IMAGE": name, "BASE": base}
            chosen["READER_BASE"] = _reader_base(base)
            chosen["REVISION"] = f"content-{digest}"
            with step(f"building {name}"):
                build = tree / "image" / "build.py"
                run([sys.executable, build], env={**buildah.environment(), **chosen})
                buildah.export(name, archive)
            _forget_stale()
    os.utime(archive)
    return Image(name, archive)


@contextmanager
def unpacked(image: Image) -> Iterator[Path]:
    """Mount the image's root file system read-only; yield the folder.

    A lock prevents other builds inside the context. Raises StepFailed.
    """
    with locked(_lock()):
        name = buildah.buildah("from", f"docker-archive:{image.archive}")
        try:
            root = Path(buildah.buildah("mount", name))
            with tempfile.TemporaryDirectory() as folder:
                run(["mount", "--bind", root, folder])
                try:
                    run(["mount", "-o", "remount,bind,ro", folder])
                    yield Path(folder)
                finally:
                    run(["umount", folder])
        finally:
            buildah.buildah("rm", name)


def configuration(image: Image) -> dict[str, Any]:
    """Return the image's OCI configuration: User, Env, Labels, Cmd."""
    with tarfile.open(image.archive) as archive:
        (manifest,) = _json(archive, "manifest.json")
        return dict(_json(archive, manifest["Config"])["config"])


def _json(archive: tarfile.TarFile, name: str) -> Any:
    member = archive.extractfile(name)
    assert member is not None
    return json.load(member)


def _digest(tree: Path, name: str) -> str:
    digest = hashlib.sha256(f"{name} {_base_name()}".encode())
    for entry in (tree / each for each in INPUTS):
        for file in sorted(entry.rglob("*")) if entry.is_dir() else [entry]:
            if file.is_dir() or file.parent.name == "__pycache__":
                continue
            # The build of the image does not use the output of `make reader`.
            if "charge-reader" in (file.name, file.parent.stem):
                continue
            digest.update(f"{file.relative_to(tree)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _base_name() -> str:
    made_of = f"{SUITE} {MIRROR} {PACKAGES} {RECIPE}"
    return f"localhost/hugetlb-quota-base:{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def _base() -> str:
    """Return the base's name in buildah's storage; make the base if it is missing."""
    name = _base_name()
    if buildah.exists(name):
        return name
    with tempfile.TemporaryDirectory(dir=buildah.folder()) as folder:
        root = Path(folder, "root")
        wanted = f"--include={','.join(PACKAGES)}"
        with step(f"debootstrap of Debian {SUITE} for the image's base (two minutes, once)"):
            run(["debootstrap", "--variant=minbase", wanted, SUITE, root, MIRROR])
        run(["chroot", root, "sh", "-c", RECIPE])
        path = "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        buildah.commit(name, root, "--env", path, "--env", "LANG=C.UTF-8")
    return name


def _reader_base(base: str) -> str:
    """Return the name of an image with `base` and COMPILERS; make the image if it is missing."""
    name = base.replace("hugetlb-quota-base", "hugetlb-quota-reader-base")
    if not buildah.exists(name):
        script = f"apt-get -qq update && apt-get -qq install --no-install-recommends {COMPILERS}"
        with step("installing clang for the reader (once)"):
            container = buildah.buildah("from", "--pull-never", base)
            buildah.buildah("run", container, "--", "sh", "-c", f"({script}) < /dev/null")
            buildah.buildah("commit", "--quiet", "--rm", container, name)
    return name


def _forget_stale() -> None:
    """Remove all archives but the three last used; other checkouts share the folder."""
    archives = buildah.folder().glob(f"{PREFIX}*.tar")
    newest = sorted(archives, key=lambda each: each.stat().st_mtime, reverse=True)
    for stale in newest[3:]:
        stale.unlink()


def _lock() -> Path:
    """The file lock of buildah's storage."""
    return buildah.folder() / "lock"


def main() -> int:
    """Build, and print the archive's path."""
    try:
        print(built().archive)
    except StepFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
