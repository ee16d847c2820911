"""``TestNode`` starts a test node as a process, and at the end removes the node's leftovers."""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.testnode.cgroup_tree import cgroup2_mount
from tests.testnode.naming import Driver
from tests.testnode.sweep import sweep

_REPOSITORY = Path(__file__).resolve().parents[2]
_STOP_SECONDS = 30.0


class TestNode:
    """A test node: ``with TestNode("a", kubeconfig, capacity={...}) as node:``.

    At entry, the node starts, and the caller waits until pods can be scheduled on it. At exit,
    its pods end, and their cgroups and mounts are removed, even if the node was killed. The Node
    object stays, as after the end of a kubelet.
    """

    __test__ = False  # pytest collects classes with a name that begins with Test

    def __init__(
        self,
        name: str,
        kubeconfig: Path,
        *,
        capacity: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        driver: Driver = "systemd",
        rsvd: bool = False,
        cgroup_parent: str | None = None,
        state_dir: Path | None = None,
    ) -> None:
        """``capacity`` and ``labels`` as in a Node; ``rsvd``: see the program's ``--rsvd``.

        ``cgroup_parent`` (below the cgroup2 mount) and ``state_dir`` have unique defaults.
        """
        unique = f"{name}-{secrets.token_hex(4)}"
        self.name = name
        self.driver: Driver = driver
        self.cgroup_parent = cgroup_parent or f"hq-node-{unique}"
        """The path below the cgroup2 mount; the ``--cgroup-root`` of this node's agent."""
        self._temporary = (
            tempfile.TemporaryDirectory(prefix=f"hq-node-{unique}-") if state_dir is None else None
        )
        self.state_dir = state_dir or Path(self._temporary.name if self._temporary else "")
        self.log = self.state_dir / "node.log"
        self._command = [
            sys.executable, "-m", "tests.testnode",
            "--name", name,
            "--kubeconfig", str(kubeconfig),
            "--cgroup-parent", self.cgroup_parent,
            "--state-dir", str(self.state_dir),
            "--driver", driver,
            *_options("--capacity", capacity),
            *_options("--label", labels),
            *(["--rsvd"] if rsvd else []),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def cgroup_path(self) -> Path:
        """The directory of the node's subtree."""
        return cgroup2_mount() / self.cgroup_parent

    @property
    def pid(self) -> int:
        """The node's process ID. Raises RuntimeError if the node was not started."""
        return self._started().pid

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"test node {self.name} was not started: call start()")
        return self._process

    def start(self) -> None:
        """Start the process; it ends when this process ends, because its stdin closes."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        (self.state_dir / "ready").unlink(missing_ok=True)
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=_REPOSITORY,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                # Ctrl-C in a terminal must end only the demo, which then ends its nodes.
                start_new_session=True,
            )

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until the Node is Ready and has no not-ready taint. Raises RuntimeError."""
        process = self._started()
        deadline = time.monotonic() + timeout
        while not (self.state_dir / "ready").exists():
            if process.poll() is not None:
                raise RuntimeError(f"test node {self.name} ended early:\n{self.output()}")
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"test node {self.name} is not ready after {timeout:g} s; "
                    f"does the controller manager run?\n{self.output()}"
                )
            time.sleep(0.05)

    def output(self) -> str:
        """The last 4096 characters of the node's log."""
        return self.log.read_text(errors="replace")[-4096:] if self.log.exists() else ""

    def kill(self) -> None:
        """SIGKILL the node, not its pods; cgroups and mounts stay, as when kubelet dies."""
        self._started().kill()
        self._started().wait()

    def stop(self) -> None:
        """End the node with its pods, cgroups and mounts; a second call does nothing."""
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
            if process.stdin:
                process.stdin.close()
        sweep(self.cgroup_parent, self.state_dir)

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            if self._temporary:
                self._temporary.cleanup()


def _options(name: str, pairs: Mapping[str, str] | None) -> list[str]:
    return [word for key, value in (pairs or {}).items() for word in (name, f"{key}={value}")]
