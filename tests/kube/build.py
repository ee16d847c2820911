"""Build the control plane, a node's programs, helm and pod-requests from their Go modules, once.

The last line that `python -m tests.kube.build` prints is the directory of the programs.

The build goes to a cache folder outside the tree (`$HUGETLB_QUOTA_CACHE`, or else
`$XDG_CACHE_HOME/hugetlb-quota`, or else `~/.cache/hugetlb-quota`). The directory's name depends
on the Kubernetes version, the sources and the Go version. `KUBEBUILDER_ASSETS` names a directory
of ready programs, as from setup-envtest; this module builds the programs that are missing there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

MODULE = Path(__file__).resolve().parent
"""The folder of go.mod."""

MULTI_CALL = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
"""The names of the multi-call binary `kube`."""

PROGRAMS = (*MULTI_CALL, "kubelet", "kube-proxy", "helm", "pod-requests")

PACKAGES = (
    "./cmd/kube",
    "./cmd/pod-requests",
    "helm.sh/helm/v4/cmd/helm",
    "k8s.io/kubernetes/cmd/kubelet",
    "k8s.io/kubernetes/cmd/kube-proxy",
)

BUILD_TIMEOUT = 3600.0
"""In seconds. Two cores need about seven minutes with an empty Go cache."""

Progress = Callable[[str], None]


class AssetsMissingError(Exception):
    """Programs of the control plane are missing, and this machine can't build them."""


@dataclass(frozen=True)
class BuildRecord:
    """Time and memory of a build; stored as build.json beside the programs."""

    kubernetes: str
    go: str
    processors: int
    seconds: float
    peak_memory_bytes: int
    """The resident memory of all build processes together, sampled twice a second."""
    packages: int
    packages_compiled: int
    """Less than `packages` if the Go build cache had the others; then `seconds` is less than
    a build from an empty cache takes."""


def kubernetes_version() -> str:
    """Return the Kubernetes version in go.mod, such as "v1.37.2"; no other file has it."""
    found = re.search(
        r"^\s*k8s\.io/kubernetes (v\S+)", (MODULE / "go.mod").read_text(), re.MULTILINE
    )
    if found is None:
        raise AssetsMissingError(f"{MODULE / 'go.mod'} requires no k8s.io/kubernetes: add it.")
    return found[1]


def linker_flags() -> str:
    """Return go build's -ldflags, which set the version of Kubernetes' programs."""
    version = kubernetes_version()
    major, minor = version.removeprefix("v").split(".")[:2]
    stamp = "k8s.io/component-base/version.git"
    return f"-s -w -X {stamp}Version={version} -X {stamp}Major={major} -X {stamp}Minor={minor}"


def assets(progress: Progress | None = None) -> Path:
    """Return a directory with all of `PROGRAMS`; build the missing ones first.

    Raises AssetsMissingError; the message says what is missing and what to do.
    """
    given = os.environ.get("KUBEBUILDER_ASSETS", "")
    if not given:
        return _built(progress or _to_stderr())
    ready = {name for name in PROGRAMS if os.access(Path(given, name), os.X_OK)}
    lacking = [name for name in PROGRAMS if name not in ready]
    if not lacking:
        return Path(given)
    try:
        built = _built(progress or _to_stderr())
    except AssetsMissingError as error:
        raise AssetsMissingError(
            f"KUBEBUILDER_ASSETS={given} lacks {', '.join(lacking)}, and they cannot be built: "
            f"{error}"
        ) from error
    return _merged(Path(given), ready, built)


def cache() -> Path:
    """Return the cache folder, outside the tree."""
    if named := os.environ.get("HUGETLB_QUOTA_CACHE"):
        return Path(named)
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "hugetlb-quota"


def _sources_digest() -> str:
    digest = hashlib.sha256()
    sources = [MODULE / "go.mod", MODULE / "go.sum", *sorted((MODULE / "cmd").rglob("*.go"))]
    for source in sources:
        digest.update(f"{source.relative_to(MODULE)}\0".encode())
        digest.update(source.read_bytes())
    digest.update(f"{platform.system()} {platform.machine()}".encode())
    return digest.hexdigest()[:12]


def _built(progress: Progress) -> Path:
    prefix = f"{kubernetes_version()}-{_sources_digest()}-"
    folder = cache()
    if shutil.which("go") is None:
        # Without Go, use an existing build of any Go version.
        for directory in sorted(folder.glob(f"{prefix}*")):
            if (directory / "build.json").exists():
                return directory
        raise AssetsMissingError(
            "there is no `go` on PATH. Install Go "
            f"{_required_go()} or newer, or point KUBEBUILDER_ASSETS at a directory with "
            f"{', '.join(PROGRAMS)}."
        )
    go_version = _go("env", "GOVERSION").strip()
    directory = folder / f"{prefix}{go_version}"
    if (directory / "build.json").exists():
        return directory
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / f"{directory.name}.lock", progress):
        # The process that held the lock may have built the directory.
        if not (directory / "build.json").exists():
            _build(directory, go_version, progress)
    return directory


def _required_go() -> str:
    found = re.search(r"^go (\S+)", (MODULE / "go.mod").read_text(), re.MULTILINE)
    return found[1] if found else "(see go.mod)"


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that is building the control plane")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _go(*args: str) -> str:
    """Run a short go command in the module; return its standard output."""
    try:
        done = subprocess.run(
            ["go", *args], cwd=MODULE, capture_output=True, text=True, timeout=BUILD_TIMEOUT
        )
    except subprocess.TimeoutExpired as error:
        raise AssetsMissingError(
            f"`go {' '.join(args)}` did not end in {BUILD_TIMEOUT:.0f} s."
        ) from error
    if done.returncode:
        raise AssetsMissingError(
            f"`go {' '.join(args)}` in {MODULE} failed: {done.stderr.strip()[-2000:]}"
        )
    return done.stdout


def _build(directory: Path, go_version: str, progress: Progress) -> None:
    version = kubernetes_version()
    progress(f"Kubernetes {version}: reading the module graph (downloads it the first time)")
    packages = len(_go("list", "-deps", *PACKAGES).split())
    # Stage the directory on the same file system, so that the rename is atomic.
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        command = ["go", "build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", linker_flags()]
        command += ["-o", f"{staging}/", *PACKAGES]
        started = time.monotonic()
        compiled, peak = _run_build(command, packages, version, progress)
        seconds = time.monotonic() - started
        for name in MULTI_CALL:
            os.link(staging / "kube", staging / name)
        record = BuildRecord(
            kubernetes=version,
            go=go_version,
            processors=len(os.sched_getaffinity(0)),
            seconds=round(seconds, 1),
            peak_memory_bytes=peak,
            packages=packages,
            packages_compiled=compiled,
        )
        (staging / "build.json").write_text(json.dumps(asdict(record), indent=2) + "\n")
        staging.chmod(0o755)
        if directory.exists():  # a directory without build.json, which this code never leaves
            shutil.rmtree(directory)
        staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    progress(
        f"Kubernetes {version}: built in {seconds:.0f} s, {compiled} of {packages} packages "
        f"compiled, peak memory {peak / 2**30:.1f} GiB"
    )


def _run_build(
    command: list[str], packages: int, version: str, progress: Progress
) -> tuple[int, int]:
    """Run go build; return the number of compiled packages and the peak memory in bytes."""
    process = subprocess.Popen(
        command,
        cwd=MODULE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    compiled = 0
    complaints: list[str] = []

    def read(lines: Iterator[str]) -> None:
        nonlocal compiled
        for line in lines:
            # With -v, go prints the path of each package that it compiles.
            if re.fullmatch(r"[\w.~/@+-]+\n", line):
                compiled += 1
            elif not line.startswith("go: downloading"):
                complaints.append(line)

    reader = threading.Thread(target=read, args=(iter(process.stderr),), daemon=True)
    reader.start()
    started = time.monotonic()
    peak = 0
    reported = 0.0
    try:
        while process.poll() is None:
            peak = max(peak, _session_memory(process.pid))
            elapsed = time.monotonic() - started
            if elapsed - reported >= 2:
                reported = elapsed
                progress(
                    f"Kubernetes {version}: {compiled} of at most {packages} packages compiled, "
                    f"{elapsed:.0f} s"
                )
            if elapsed > BUILD_TIMEOUT:
                raise AssetsMissingError(f"go build did not end in {BUILD_TIMEOUT:.0f} s.")
            time.sleep(0.5)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
        reader.join(timeout=10)
    if process.returncode:
        tail = "".join(complaints)[-3000:].strip()
        raise AssetsMissingError(f"go build of Kubernetes {version} failed: {tail}")
    return compiled, peak


def _session_memory(session: int) -> int:
    """The resident bytes of all processes of a session; a build is one session."""
    pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The command, in parentheses, may contain spaces.
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session:
            pages += int(fields[21])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _merged(given: Path, ready: set[str], built: Path) -> Path:
    """Make a directory of links: to `given` for the programs `ready`, to `built` for the rest."""
    digest = hashlib.sha256(f"{given.resolve()}\0{sorted(ready)}\0{built}".encode()).hexdigest()
    directory = cache() / f"assets-{digest[:12]}"
    if directory.exists():
        return directory
    staging = Path(tempfile.mkdtemp(prefix=".assets.", dir=cache()))
    for name in PROGRAMS:
        (staging / name).symlink_to((given.resolve() if name in ready else built) / name)
    staging.chmod(0o755)
    try:
        staging.rename(directory)
    except OSError:  # another process made the same directory
        shutil.rmtree(staging)
    return directory


def _to_stderr() -> Progress:
    """Overwrite one line on a terminal; elsewhere write a line at most every 15 seconds."""
    terminal = sys.stderr.isatty()
    last = -60.0

    def show(text: str) -> None:
        nonlocal last
        if terminal:
            sys.stderr.write(f"\r\x1b[K{text}")
            if "compiled, " not in text or "built in" in text:
                sys.stderr.write("\n")
        elif " of at most " not in text or time.monotonic() - last >= 15:
            last = time.monotonic()
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    return show


def main() -> int:
    try:
        print(assets())
    except AssetsMissingError as error:
        print(f"The control plane cannot be had: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
