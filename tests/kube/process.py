"""Child processes that log to files, die with their parent, and are killed by process group."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

CAPABILITIES: Final = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "DAC_READ_SEARCH": 2,
    "FOWNER": 3,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
    "SYS_RESOURCE": 24,
    "LEASE": 28,
    "PERFMON": 38,
    "BPF": 39,
}
"""The numbers of capabilities that a node program may keep, from linux/capability.h."""

LAST_CAPABILITY = 63
"""The kernel refuses to drop an unknown number, and drop_capabilities ignores that error."""

_libc = ctypes.CDLL(None, use_errno=True)

# The kernel sends the PR_SET_PDEATHSIG signal when the *thread* that forked ends. So one thread,
# which lives as long as the interpreter, forks all children.
_forker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forker")


class ProgramError(Exception):
    """A program ended early or was not ready in time; the message has the end of the log."""


PORTS = range(12000, 32000)
"""Below those that the kernel gives to connections."""


def free_ports(count: int, address: str = "127.0.0.1") -> list[int]:
    """`count` different free ports of a loopback address.

    All processes of this user draw ports in turn, so that two programs never get the same port.
    Raises OSError if all ports are taken.
    """
    drawn = Path(tempfile.gettempdir(), f"hugetlb-quota-ports-{os.getuid()}")
    with drawn.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        first = int(file.read() or 0)
        turns = range(first, first + len(PORTS))
        free = (turn for turn in turns if _is_free(PORTS[turn % len(PORTS)], address))
        found = list(islice(free, count))
        if len(found) < count:
            raise OSError(f"no {count} ports of {address} are free")
        file.truncate(0)
        file.write(str(found[-1] + 1))
    return [PORTS[turn % len(PORTS)] for turn in found]


def _is_free(port: int, address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as tried:
        try:
            tried.bind((address, port))
        except OSError:
            return False
    return True


class Child:
    """A program in its own process group, with its output in a log file.

    `log`: the program appends to this file, so a restarted program keeps its earlier log.
    `capabilities`: the capabilities (names without CAP_) that a child of root keeps, as in a
    container; None for those of the parent.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        *,
        capabilities: Iterable[str] | None = None,
    ) -> None:
        kept = None if capabilities is None else tuple(capabilities)
        self._env = None if env is None else dict(env)
        self._capabilities = kept
        self.name = name
        self.command = tuple(command)
        self.log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._process = _forker.submit(
                subprocess.Popen[bytes],
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
                process_group=0,
                preexec_fn=partial(_before_exec, kept),
            ).result()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status: None while the program runs, negative after a signal."""
        return self._process.poll()

    def wait_ready(self, ready: Callable[[], bool], timeout: float) -> None:
        """Call `ready` until it is true; ProgramError if the program ends or time is up."""
        deadline = time.monotonic() + timeout
        pause = 0.02
        while not ready():
            if self.exit_status is not None:
                raise self._failed(f"ended with status {self.exit_status} before it was ready")
            if time.monotonic() >= deadline:
                raise self._failed(f"was not ready in {timeout:.0f} s")
            time.sleep(pause)
            pause = min(pause * 1.5, 0.25)

    def stop(self, timeout: float = 15.0) -> int:
        """Send SIGTERM, and SIGKILL after `timeout` seconds; return the exit status."""
        if self.exit_status is None:
            self._signal(signal.SIGTERM)
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                return self.kill9()
        return self._process.wait()

    def kill9(self) -> int:
        """Send SIGKILL to the process group; return the exit status."""
        self._signal(signal.SIGKILL)
        return self._process.wait()

    def wait(self, timeout: float) -> int:
        """Wait until the program ends; return the exit status. ProgramError if time is up."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise self._failed(f"did not end in {timeout:.0f} s") from error

    def pause(self) -> None:
        """Send SIGSTOP to the process group; the program's connections stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Send SIGCONT to the process group."""
        self._signal(signal.SIGCONT)

    def again(self) -> Child:
        """Start the same program again after its end."""
        return Child(self.name, self.command, self.log, self._env, capabilities=self._capabilities)

    def output(self) -> str:
        """Read the output since this start."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def tail(self, lines: int = 20) -> str:
        return "\n".join(self.output().splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _failed(self, what: str) -> ProgramError:
        return ProgramError(f"{self.name} {what}. The end of {self.log}:\n{self.tail()}")


def die_with_parent() -> None:
    """Let the kernel kill this process when the thread that forked it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def drop_capabilities(kept: Iterable[str]) -> None:
    """Drop root's capabilities at the next exec, except `kept` (names without CAP_)."""
    numbers = {CAPABILITIES[name] for name in kept}
    # At exec, root gets the capabilities of the bounding set.
    for number in range(LAST_CAPABILITY + 1):
        if number not in numbers:
            _libc.prctl(PR_CAPBSET_DROP, number)
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _before_exec(kept: tuple[str, ...] | None) -> None:
    die_with_parent()
    if kept is not None and os.geteuid() == 0:
        drop_capabilities(kept)
