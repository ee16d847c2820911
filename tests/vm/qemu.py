"""QEMU itself: Debian 13's, whichever the host has.

With a thread for each emulated processor a machine is up in half the time. QEMU 7.2 (Debian 12)
can't be trusted with that: when the kernel patched its own code (a static key, as the first CPU
limit turns one), the other processor could meet the breakpoint too late, and the kernel panicked
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
"""The oldest QEMU that is run with a thread for each processor."""


@dataclass(frozen=True)
class Qemu:
    """A QEMU for x86-64 machines."""

    command: tuple[str, ...]
    """The words before its arguments."""
    threads: Literal["single", "multi"]
    """How many threads emulate a machine's processors."""


def best() -> Qemu:
    """Return Debian 13's QEMU, fetched now if it must be; the host's where it can't be had."""
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
                _see_that_it_runs(making)
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


def _see_that_it_runs(root: Path) -> None:
    try:
        run([*_words(root), "--version"], timeout=60)
    except StepFailed as error:
        raise debian.NotFetched(str(error)) from error


def _host_version() -> tuple[int, ...]:
    """Return such as (7, 2, 22); () where there is none, or one that does not say."""
    try:
        done = subprocess.run(
            ["qemu-system-x86_64", "--version"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    _, _, rest = done.stdout.partition("version ")
    return tuple(int(part) for part in rest.split(" ")[0].strip().split(".") if part.isdigit())
