"""etcd, kube-apiserver, kube-scheduler and kube-controller-manager as child processes."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tests.kube.process import Child, ProgramError

READY_TIMEOUT = 60.0
"""For each program, in seconds; on two idle cores the slowest program needs about five."""


class PortTakenError(Exception):
    """Another process took a free port before the program bound it."""


class Servers:
    """The running programs of one control plane.

    `assets`: the directory of the programs. `home`: the programs' home directory.
    """

    children: dict[str, Child]
    """The processes by the name of their program, in the order of the first start."""

    def __init__(self, assets: Path, home: Path, logs: Path) -> None:
        self._assets = assets
        self._home = home
        self._logs = logs
        self.children = {}

    def start(self, program: str, flags: Sequence[str]) -> None:
        """Start a program that does not run; the program is not ready yet."""
        self.children[program] = Child(
            program,
            [str(self._assets / program), *flags],
            self._logs / f"{program}.log",
            {"PATH": os.environ.get("PATH", ""), "HOME": str(self._home)},
        )

    def wait_ready(self, program: str, url: str, tls: ssl.SSLContext) -> None:
        """Wait until GET `url` returns 200. Raises PortTakenError or ProgramError."""

        def ready() -> bool:
            try:
                with urllib.request.urlopen(url, timeout=2, context=tls) as answer:
                    return int(answer.status) == 200
            except (urllib.error.URLError, OSError):
                return False

        child = self.children[program]
        try:
            child.wait_ready(ready, READY_TIMEOUT)
        except ProgramError as error:
            if "address already in use" in child.output():
                raise PortTakenError(str(error)) from error
            raise

    def start_again(self, program: str) -> None:
        """Start an ended program again with the same flags; the program is not ready yet."""
        self.children[program] = self.children[program].again()

    def stop(self) -> None:
        """Stop all programs, the first started last.

        The first is etcd: without etcd the other programs would fill their logs with errors.
        """
        for program, child in reversed(self.children.items()):
            child.stop(timeout=10 if program == "etcd" else 3)
        self.children.clear()
