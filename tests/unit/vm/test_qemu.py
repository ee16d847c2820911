"""The QEMU that runs the machines if the QEMU of Debian can't be fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import debian
from tests.vm import qemu


@pytest.mark.parametrize(
    ("version", "threads"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", "single"),
        ("QEMU emulator version 10.0.13 (Debian 1:10.0.13+ds-0+deb13u1)", "multi"),
        ("QEMU emulator version 11.1.0", "multi"),
        ("", "single"),
    ],
)
def test_the_threads_depend_on_the_version_of_the_hosts_qemu(
    version: str,
    threads: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse() -> Path:
        raise debian.NotFetched("apt-get is not installed")

    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\necho '{version}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(qemu, "_unpacked", refuse)
    found = qemu.best()
    assert (found.command, found.threads) == (("qemu-system-x86_64",), threads)
    printed = capsys.readouterr().err
    assert "apt-get is not installed" in printed
    assert f"thread={threads}" in printed
