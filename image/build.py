"""Build the image with docker, podman or buildah: `make image`. Uses only the standard library.

Optional variables, from the environment or make's command line, and their defaults:

ENGINE    docker, podman or buildah; by default the first of these that works.
IMAGE     the image's name and tag; by default hugetlb-quota:<version of pyproject.toml>.
BASE      the base image; by default the Dockerfile's base image, by digest.
READER_BASE  the image in which the reader is built; by default BASE with compilers from apt.
PLATFORM  such as linux/arm64; by default the platform of this machine.
CA        a file with the certificates of a proxy, which pip then trusts; by default PIP_CERT or
          SSL_CERT_FILE. The build uses the file; the image does not contain it.
SOURCE    the source's address, for the label; by default git's remote `origin` if it is https.
REVISION  the commit, for the label; by default git's HEAD, with "-dirty" if the tree has changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

TREE = Path(__file__).resolve().parent.parent
ENGINES = ("docker", "podman", "buildah")
LABEL = "org.opencontainers.image"


class CannotBuildError(Exception):
    """No engine works, or a file is missing; the message says what to do."""


def engine(named: str = "") -> str:
    """Return the engine to build with: `named`, or else the first that works.

    Raises CannotBuildError if there is none.
    """
    amiss = []
    for name in (named,) if named else ENGINES:
        if name not in ENGINES:
            raise CannotBuildError(f"ENGINE={name} is none of {', '.join(ENGINES)}.")
        if shutil.which(name) is None:
            amiss.append(f"{name} is not on PATH")
        elif name == "docker" and not _docker_answers():
            amiss.append("docker is there and its daemon does not answer")
        else:
            return name
    raise CannotBuildError(
        f"No engine to build the image with: {'; '.join(amiss)}. Install one of "
        f"{', '.join(ENGINES)}, or start docker's daemon."
    )


def _docker_answers() -> bool:
    done = subprocess.run(["docker", "version"], capture_output=True, timeout=60, check=False)
    return done.returncode == 0


def version() -> str:
    """Return the version of pyproject.toml."""
    with (TREE / "pyproject.toml").open("rb") as file:
        return str(tomllib.load(file)["project"]["version"])


def image_name(environment: Mapping[str, str]) -> str:
    """Return the name and tag of the image."""
    return environment.get("IMAGE") or f"hugetlb-quota:{version()}"


def command(chosen: str, environment: Mapping[str, str]) -> list[str]:
    """Return the engine's command line. Raises CannotBuildError if the CA file is missing."""
    words = [chosen, "build", "--file", str(TREE / "Dockerfile"), "--tag", image_name(environment)]
    for name, value in _labels(environment).items():
        words += ["--label", f"{LABEL}.{name}={value}"]
    for argument in ("BASE", "READER_BASE"):
        if base := environment.get(argument):
            words += ["--build-arg", f"{argument}={base}"]
    if platform := environment.get("PLATFORM"):
        words += ["--platform", platform]
    if authorities := _first(environment, "CA", "PIP_CERT", "SSL_CERT_FILE"):
        if not Path(authorities).is_file():
            raise CannotBuildError(
                f"There is no file {authorities}, which CA, PIP_CERT or"
                " SSL_CERT_FILE names: set CA to the proxy's certificates."
            )
        words += ["--secret", f"id=ca,src={Path(authorities).resolve()}"]
    return [*words, str(TREE)]


def _first(environment: Mapping[str, str], *names: str) -> str:
    return next((value for name in names if (value := environment.get(name))), "")


def _labels(environment: Mapping[str, str]) -> dict[str, str]:
    """The labels that the Dockerfile can't set; a label without a value is left out."""
    revision = environment.get("REVISION") or _git("rev-parse", "HEAD")
    if revision and not environment.get("REVISION") and _git("status", "--porcelain"):
        revision += "-dirty"
    source = environment.get("SOURCE") or _public(_git("remote", "get-url", "origin"))
    labels = {"version": version(), "revision": revision, "source": source}
    return {name: value for name, value in labels.items() if value}


def _public(remote: str) -> str:
    """The remote without user and password; empty if the remote is not https."""
    parts = urlsplit(remote)
    if parts.scheme != "https" or not parts.hostname:
        return ""
    port = f":{parts.port}" if parts.port else ""
    return f"https://{parts.hostname}{port}{parts.path}"


def _git(*words: str) -> str:
    """The output of a git command; empty without git or a repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(TREE), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def main() -> int:
    """Build; the engine writes to the terminal."""
    try:
        chosen = engine(os.environ.get("ENGINE", ""))
        words = command(chosen, os.environ)
    except CannotBuildError as error:
        print(error, file=sys.stderr)
        return 1
    started = time.monotonic()
    # Old releases of docker use the builder before BuildKit by default; it has no secrets.
    done = subprocess.run(words, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=False)
    if done.returncode:
        print(f"{chosen} failed with status {done.returncode}.", file=sys.stderr)
        return 1
    print(f"{image_name(os.environ)}: built with {chosen} in {time.monotonic() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
