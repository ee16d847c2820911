"""Fetch QEMU: Debian 13's version, independent of the host's.

With one thread for each emulated processor, a machine boots in half the time. QEMU 7.2 (Debian 12)
is not reliable with several threads: when the kernel patched its own code (the first CPU limit does
so, by a static key), the other processor could hit the breakpoint too late, and the kernel panicked
("Oops: int3 in pick_task_fair"). Debian 13's packages are unpacked into the cache and run through
their own dynamic loader; nothing is installed.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from tests import debian
from tests.kube import build
from tests.vm.root import locked
from tests.vm.steps import StepFailed, run, say, step

SUITE = "trixie"
PACKAGES = ("qemu-system-x86",)
LIBRARIES = "usr/lib/x86_64-linux-gnu"
FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
TRUSTED = (10, 0)
"""The oldest QEMU version that runs with one thread for each processor."""


@dataclass(frozen=True)
class Qemu:
    """A QEMU for x86-64 machines."""

    command: tuple[str, ...]
    """The start of the command, before the arguments."""
    threads: Literal["single", "multi"]
    """multi: one thread for each emulated processor."""


def best() -> Qemu:
    """Return Debian 13's QEMU, or the host's QEMU if Debian 13's can't be fetched."""
    try:
        return Qemu(_words(_unpacked()), "multi")
    except debian.NotFetched as error:
        say(f"Debian {SUITE}'s QEMU can't be fetched: {error}")
    threads: Literal["single", "multi"] = "multi" if _host_version() >= TRUSTED else "single"
    slow = ": machines are half as fast" if threads == "single" else ""
    say(f"the host's QEMU is used, with tcg,thread={threads}{slow}")
    return Qemu(("qemu-system-x86_64",), threads)


def _unpacked() -> Path:
    folder = build.cache() / "qemu"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{SUITE} {PACKAGES} {Path(__file__).read_text()}".encode())
    kept = folder / f"root-{digest.hexdigest()[:12]}"
    with locked(folder / "lock"):
        if not kept.exists():
            with (
                step(f"fetching Debian {SUITE}'s QEMU (38 MB, once)"),
                debian.apt(SUITE, folder) as apt,
                TemporaryDirectory(dir=folder) as scratch,
            ):
                making = Path(scratch, "root")
                for archive in apt.download_all(*PACKAGES):
                    debian.unpack(archive, making)
                _check_runs(making)
                making.rename(kept)
    return kept


def _words(root: Path) -> tuple[str, ...]:
    firmware = [word for folder in FIRMWARE for word in ("-L", f"{root / folder}")]
    return (
        *("env", f"QEMU_MODULE_DIR={root / LIBRARIES / 'qemu'}"),
        f"{root / LIBRARIES / 'ld-linux-x86-64.so.2'}",
        *("--library-path", f"{root / LIBRARIES}", f"{root / 'usr/bin/qemu-system-x86_64'}"),
        *firmware,
    )


def _check_runs(root: Path) -> None:
    try:
        run([*_words(root), "--version"], timeout=60)
    except StepFailed as error:
        raise debian.NotFetched(str(error)) from error


def _host_version() -> tuple[int, ...]:
    """Return the version of the host's QEMU, such as (7, 2, 22); () if it is unknown."""
    try:
        done = subprocess.run(
            ["qemu-system-x86_64", "--version"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    _, _, rest = done.stdout.partition("version ")
    return tuple(int(part) for part in rest.split(" ")[0].strip().split(".") if part.isdigit())
