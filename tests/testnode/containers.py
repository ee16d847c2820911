"""Containers as a runtime makes them: a process in a cgroup of its own, its output in a file."""

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
    """The container's command could not be started; the message says why."""


@dataclass(frozen=True)
class Mount:
    """A directory or file of the host, and where the container sees it."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Command:
    """What a container runs and as whom."""

    argv: Sequence[str]
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = "/"
    mounts: Sequence[Mount] = ()
    uid: int = 0
    gid: int = 0
    groups: Sequence[int] = ()
    privileged: bool = False


def new_id() -> str:
    """A container ID: 64 hexadecimal digits, as containerd's."""
    return secrets.token_hex(32)


def image_paths() -> list[str]:
    """Directories the workloads need that the overlay's lower layer lacks.

    An overlay shows one file system; a checkout or interpreter on another one is bound into it.
    """
    root = Path("/").stat().st_dev
    wanted = (str(Path(__file__).resolve().parents[2]), sys.base_prefix, "/usr")
    return [path for path in wanted if Path(path).stat().st_dev != root]


class Container:
    """One started container: a process in ``cgroup`` whose output goes to ``log``."""

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
        """The last 4 KiB of its output."""
        return self.log.read_bytes()[-_MESSAGE_BYTES:].decode(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Signal its main process, if it still runs."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self) -> int:
        """Its exit code once it ended, 128 + n for signal n, as containerd reports it.

        Ends what the main process left running: without a PID namespace nobody else does.
        """
        code = await self._process.wait()
        await asyncio.to_thread(cgroup_tree.remove, self.cgroup)
        shutil.rmtree(self._bundle, ignore_errors=True)
        return code if code >= 0 else 128 - code


async def start(
    container_id: str, cgroup: Path, bundle: Path, command: Command, ipc: Path | None
) -> Container:
    """Start a command in a new cgroup; returns once it has replaced the starter (exec).

    ``cgroup`` is made here and removed by ``Container.wait``. ``ipc`` is the file of the IPC
    namespace to enter. Raises StartError, with nothing left behind, when exec is not reached.
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
    """What comes through a pipe until its other end closes."""
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
                # Woken twice for one chunk.
                continue
            if not chunk:
                return text.decode(errors="replace")
            text += chunk
    finally:
        loop.remove_reader(descriptor)
