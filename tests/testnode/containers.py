"""Containers as from a container runtime: a process in its own cgroup, with a log file."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.testnode import cgroup_tree

_INIT = Path(__file__).with_name("container_init.py")
_MESSAGE_BYTES = 4096
_START_SECONDS = 30.0


class StartError(RuntimeError):
    """The container's command did not start; the message says why."""


@dataclass(frozen=True)
class Mount:
    """A bind mount of a directory or file of the host into the container."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Command:
    """The command of a container, its mounts and its user."""

    argv: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = "/"
    mounts: Sequence[Mount] = ()
    uid: int = 0
    gid: int = 0
    groups: Sequence[int] = ()
    privileged: bool = False


def new_id() -> str:
    """A container ID of 64 hexadecimal digits, as in containerd."""
    return secrets.token_hex(32)


def image_paths() -> list[str]:
    """The directories that the workloads need and the overlay does not show.

    An overlay shows only one file system. A checkout or an interpreter on another file system
    needs a bind mount.
    """
    root = Path("/").stat().st_dev
    wanted = (str(Path(__file__).resolve().parents[2]), sys.base_prefix, "/usr")
    return [path for path in wanted if Path(path).stat().st_dev != root]


class Container:
    """A started container: a process in ``cgroup`` that writes to ``log``."""

    def __init__(
        self, container_id: str, cgroup: Path, bundle: Path, process: asyncio.subprocess.Process
    ) -> None:
        self.id = container_id
        self.cgroup = cgroup
        self._bundle = bundle
        self._process = process

    @property
    def log(self) -> Path:
        """The container's standard output and error."""
        return self._bundle.with_suffix(".log")

    def message(self) -> str:
        """The last 4 KiB of the output."""
        return self.log.read_bytes()[-_MESSAGE_BYTES:].decode(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the main process if it still runs."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Wait for the exit code, which is 128 + n for signal n, as in containerd.

        Then kill the processes that the main process left: there is no PID namespace to do so.
        """
        code = await self._process.wait()
        await asyncio.to_thread(cgroup_tree.remove, self.cgroup)
        shutil.rmtree(self._bundle, ignore_errors=True)
        return code if code >= 0 else 128 - code


async def start(
    container_id: str, cgroup: Path, bundle: Path, command: Command, ipc: Path | None
) -> Container:
    """Start a command in a new cgroup; return after the exec of the command.

    This function makes ``cgroup``, and ``Container.wait`` removes it. ``ipc``: the file of the
    IPC namespace to enter. Raises StartError, and leaves nothing, if the exec does not happen.
    """
    cgroup.mkdir()
    bundle.mkdir(parents=True)
    report, report_fd = os.pipe()
    try:
        config = bundle / "config.json"
        world = {
            "cgroup": str(cgroup),
            "ipc": str(ipc) if ipc else None,
            "image_paths": image_paths(),
            "report_fd": report_fd,
        }
        config.write_text(json.dumps(asdict(command) | world))
        with bundle.with_suffix(".log").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", str(_INIT), str(config),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(report_fd,),
                start_new_session=True,
            )  # fmt: skip
    finally:
        os.close(report_fd)
    container = Container(container_id, cgroup, bundle, process)
    try:
        failure = await asyncio.wait_for(_read_all(report), _START_SECONDS)
    except TimeoutError:
        failure = f"{' '.join(command.argv)}: not started within {_START_SECONDS:g} s"
    except BaseException:
        cgroup_tree.kill(cgroup)
        raise
    finally:
        os.close(report)
    if failure:
        cgroup_tree.kill(cgroup)
        container.send(signal.SIGKILL)
        await container.wait()
        raise StartError(failure)
    return container


async def _read_all(descriptor: int) -> str:
    """Read from a pipe until its other end closes."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    os.set_blocking(descriptor, False)
    loop.add_reader(descriptor, readable.set)
    text = b""
    try:
        while True:
            await readable.wait()
            readable.clear()
            try:
                chunk = os.read(descriptor, 65536)
            except BlockingIOError:
                # The loop woke up twice for one chunk.
                continue
            if not chunk:
                return text.decode(errors="replace")
            text += chunk
    finally:
        loop.remove_reader(descriptor)
