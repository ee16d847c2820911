"""Fetch Debian packages with a separate apt configuration, and unpack them without installing.

apt verifies the packages with the archive's keyring. This module neither reads nor changes the
host's sources, lists and packages.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

MIRROR = "http://deb.debian.org"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PROGRAMS = ("apt-get", "apt-cache", "dpkg-deb", "tar")
TIMEOUT = 300


class NotFetched(Exception):
    """The packages can't be fetched; the message says what is missing."""


class Apt:
    """apt for one suite. Its methods raise NotFetched."""

    def __init__(self, suite: str, folder: Path) -> None:
        self._folder = folder
        self._options = _configuration(suite, folder)

    def depends(self, package: str) -> str:
        """Return the output of `apt-cache depends` for a package."""
        return _run("apt-cache", *self._options, "depends", package)

    def download(self, package: str) -> Path:
        """Fetch a package without its dependencies."""
        _run("apt-get", *self._options, "download", package, at=self._folder)
        (archive,) = self._folder.glob("*.deb")
        return archive

    def download_all(self, *packages: str) -> list[Path]:
        """Fetch packages with all dependencies, also libc."""
        _run("apt-get", *self._options, "--yes", "--download-only", "install", *packages)
        return sorted((self._folder / "archives").glob("*.deb"))


@contextmanager
def apt(suite: str, beside: Path) -> Iterator[Apt]:
    """Make an Apt with the package lists of ``suite``, in a temporary folder in ``beside``.

    :raises NotFetched: if a program or the keyring is missing, or the archive does not respond.
    """
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise NotFetched(f"{program} is not installed")
    if not KEYRING.exists():
        raise NotFetched(f"{KEYRING} is missing; install debian-archive-keyring")
    with TemporaryDirectory(dir=beside) as scratch:
        made = Apt(suite, Path(scratch))
        _run("apt-get", *made._options, "--error-on=any", "update")
        yield made


def unpack(archive: Path, into: Path) -> None:
    """Unpack a package's files without its maintainer scripts. Raises NotFetched."""
    _run("dpkg-deb", "--extract", str(archive), str(into))


def _configuration(suite: str, folder: Path) -> list[str]:
    sources = folder / "sources.list"
    sources.write_text(
        "".join(
            f"deb [signed-by={KEYRING} arch=amd64] {MIRROR}/{archive} main\n"
            for archive in (f"debian {suite}", f"debian-security {suite}-security")
        )
    )
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True)
    # With an empty dpkg status, apt downloads all dependencies.
    (folder / "status").touch()
    settings = {
        "Dir::State": folder,
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Acquire::Languages": "none",
        "APT::Architecture": "amd64",
        "APT::Install-Recommends": "false",
        # The default sandbox user can't write to this folder.
        "APT::Sandbox::User": "root",
        # The dpkg lock is the host's, and nothing is installed.
        "Debug::NoLocking": "true",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _run(*command: str, at: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, check=False, cwd=at
        )
    except subprocess.TimeoutExpired as error:
        raise NotFetched(f"{command[0]} took {TIMEOUT} s") from error
    if done.returncode:
        why = (done.stderr or done.stdout).strip().splitlines()
        raise NotFetched(why[-1] if why else str(command))
    return done.stdout
