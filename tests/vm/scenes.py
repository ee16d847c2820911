"""The common parts of the programs that run tests/e2e in virtual machines."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from image.build import TREE
from tests.kube import build
from tests.vm import image, images, previous
from tests.vm.machine import Machine
from tests.vm.steps import StepFailed, say

WORKLOAD_IMAGE = images.WORKLOAD_IMAGE.removeprefix("docker.io/library/")


@dataclass(frozen=True)
class Operator:
    """The operator's image, and the previous release if there is one."""

    image: image.Image
    before: previous.Release | None

    @classmethod
    def built(cls, scratch: Path) -> Self:
        """Build what the cache lacks. `scratch`: a folder for the earlier tree."""
        return cls(image.built(), previous.release(scratch))

    def archives(self) -> list[Path]:
        """Return the archives of all images that the scenes need."""
        made = [images.pause(), images.workload(), self.image.archive]
        return [*made, *([self.before.image.archive] if self.before else [])]

    def environment(
        self, *, kubeconfig: Path, assets: Path, home: Path, defaults: Mapping[str, str]
    ) -> dict[str, str]:
        """Return the environment of tests/e2e.

        `assets`: the folder of kubectl and helm. `home`: an empty folder, so that the user's
        configuration of kubectl and helm is not used. `defaults`: the values of variables that
        this process's environment lacks.
        """
        return {
            # An emulated node needs some seconds of both processors for each pod start.
            "E2E_STARTS": "20",
            **defaults,
            **os.environ,
            **(self.before.environment() if self.before else {}),
            "PATH": f"{assets}:{os.environ['PATH']}",
            "KUBECONFIG": str(kubeconfig),
            "HOME": str(home),
            "E2E_IMAGE": self.image.name,
            "E2E_WORKLOAD_IMAGE": WORKLOAD_IMAGE,
        }


def run_in_scratch(prefix: str, run: Callable[[Path], int]) -> int:
    """Call `run` with a temporary folder; return its exit status, or 1 after a failed step."""
    # SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with tempfile.TemporaryDirectory(prefix=prefix) as scratch:
            return run(Path(scratch))
    except (StepFailed, build.AssetsMissingError) as error:
        say(str(error))
        return 1


def run_pytest(environment: Mapping[str, str], *arguments: str) -> int:
    """Run pytest in the root of the tree; return its exit status."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    return subprocess.run(command, cwd=TREE, env=dict(environment)).returncode


def keep_if_wanted(
    machines: Sequence[Machine], kubectl: Path, kubeconfig: Path, inside: str = ""
) -> None:
    """With KEEP=1, print how to reach the cluster, and return at Ctrl-C.

    `inside`: a command on each machine that opens another shell. Raises StepFailed if a machine
    ends.
    """
    if os.environ.get("KEEP") != "1":
        return
    enter = f"nsenter --net --target {os.getpid()}"
    say("The cluster is kept until Ctrl-C. As root, in another terminal:")
    say(f"  {enter} env KUBECONFIG={kubeconfig} {kubectl} get pods -A")
    for machine in machines:
        shell = f"{enter} {shlex.join(machine.ssh_command())}"
        say(f"  {shell}   # {machine.name}")
        if inside:
            say(f"  {shell} -t {inside}")
    try:
        while True:
            for machine in machines:
                machine.check_alive()
            time.sleep(5)
    except KeyboardInterrupt:
        return
