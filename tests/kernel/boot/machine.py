"""Boots a kernel with an initramfs of static programs, in QEMU without acceleration."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

QEMU = "qemu-system-x86_64"
BUSYBOX = Path("/bin/busybox")
SECONDS = 120
DIRECTORIES = ("bin", "proc", "sys", "dev", "cg", "huge", "ready")
_PROGRAM, _DIRECTORY = 0o100755, 0o040755


class NoOutput(Exception):
    """The machine did not power off; the message has its output."""


def initramfs(files: Mapping[str, bytes]) -> bytes:
    """Return a cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst).

    ``files`` are programs by path. The archive has DIRECTORIES too.
    """

    def entries() -> Iterator[bytes]:
        for name in DIRECTORIES:
            yield _entry(name, _DIRECTORY, b"")
        for name, content in files.items():
            yield _entry(name, _PROGRAM, content)
        yield _entry("TRAILER!!!", 0, b"")

    return b"".join(entries())


def _entry(name: str, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def boot(
    kernel: Path, files: Mapping[str, bytes], pages: int, scratch: Path, words: str = ""
) -> list[str]:
    """Boot ``kernel`` with ``pages`` of 2 MiB; return the lines from its second serial port.

    :param words: more words for the kernel's command line.
    :raises NoOutput: the machine did not power off within SECONDS.
    """
    archive, console, sent = (scratch / name for name in ("initramfs", "console", "sent"))
    archive.write_bytes(initramfs(files))
    command = [
        *(QEMU, "-accel", "tcg,thread=single", "-cpu", "max", "-m", str(512 + 2 * pages)),
        *("-nodefaults", "-no-reboot", "-display", "none", "-nic", "none"),
        *("-serial", f"file:{console}", "-serial", f"file:{sent}"),
        *("-kernel", str(kernel), "-initrd", str(archive)),
        *("-append", f"console=ttyS0 hugepages={pages} panic=-1 quiet {words}"),
    ]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        why = ran.stderr
    except subprocess.TimeoutExpired:
        why = f"The machine did not power off within {SECONDS} s."
    lines = sent.read_text(errors="replace").splitlines() if sent.exists() else []
    if not lines or lines[-1] != "done":
        printed = console.read_text(errors="replace")[-3000:] if console.exists() else ""
        raise NoOutput(f"{why}\n{printed}\nsent: {[line[:200] for line in lines[-5:]]}")
    return lines
