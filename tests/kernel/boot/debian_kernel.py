"""Debian's kernels, fetched once by apt with a configuration of their own, and cached.

apt verifies them by the archive's keyring. The cache is the control plane's
(tests/kube/build.py), below it ``kernels/SUITE/PACKAGE_VERSION``; remove a suite's folder to have
its newest kernel fetched again.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.kube.build import cache

MIRROR = "http://deb.debian.org"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
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
    for program in ("apt-get", "apt-cache", "dpkg-deb", "tar"):
        if shutil.which(program) is None:
            raise NoKernel(f"no Debian kernel can be fetched: {program} is not installed")
    if not KEYRING.exists():
        raise NoKernel(
            f"no Debian kernel can be fetched: {KEYRING} is missing; install debian-archive-keyring"
        )
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        options = _configuration(suite, Path(scratch))
        _run("apt-get", *options, "--error-on=any", "update")
        depends = _run("apt-cache", *options, "depends", META)
        package = re.search(r"Depends: (linux-image-\S+)", depends)
        if package is None:
            raise NoKernel(f"no Debian kernel can be fetched: {META} of {suite} depends on none")
        _run("apt-get", *options, "download", package[1], at=Path(scratch))
        [archive] = Path(scratch).glob("*.deb")
        unpacked = Path(scratch) / "unpacked"
        _run("dpkg-deb", "--extract", str(archive), str(unpacked))
        [image] = (unpacked / "boot").glob("vmlinuz-*")
        kept = folder / archive.stem
        kept.mkdir(exist_ok=True)
        shutil.copyfile(image, kept / "vmlinuz.new")
        return (kept / "vmlinuz.new").rename(kept / "vmlinuz")


def _configuration(suite: str, folder: Path) -> list[str]:
    """The host's sources and lists are not touched."""
    sources = folder / "sources.list"
    sources.write_text(
        "".join(
            f"deb [signed-by={KEYRING} arch=amd64] {MIRROR}/{archive} main\n"
            for archive in (f"debian {suite}", f"debian-security {suite}-security")
        )
    )
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True)
    settings = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder,
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Acquire::Languages": "none",
        "APT::Architecture": "amd64",
        # Without it apt would change to a user who can't write here.
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _run(*command: str, at: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, cwd=at
        )
    except subprocess.TimeoutExpired as error:
        raise NoKernel(f"no Debian kernel can be fetched: {command[0]} took 300 s") from error
    if done.returncode:
        why = (done.stderr or done.stdout).strip().splitlines()
        raise NoKernel(f"no Debian kernel can be fetched: {why[-1] if why else command}")
    return done.stdout
