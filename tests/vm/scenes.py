"""The common parts of the programs that run tests/e2e in virtual machines."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.kube import build
from tests.vm import images
from tests.vm.image import Image
from tests.vm.previous import Release
from tests.vm.steps import StepFailed, say


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


def archives(operator: Image, before: Release | None) -> list[Path]:
    """Return the archives of all images that the scenes need."""
    made = [images.pause(), images.workload(), operator.archive]
    return [*made, *([before.image.archive] if before else [])]


def environment(
    operator: Image, before: Release | None, *, kubeconfig: Path, assets: Path, home: Path
) -> dict[str, str]:
    """Return the environment of tests/e2e.

    `assets`: the folder of kubectl and helm. `home`: an empty folder, so that the user's
    configuration of kubectl and helm is not used.
    """
    return {
        **os.environ,
        **(before.environment() if before else {}),
        "PATH": f"{assets}:{os.environ['PATH']}",
        "KUBECONFIG": str(kubeconfig),
        "HOME": str(home),
        "E2E_IMAGE": operator.name,
        "E2E_WORKLOAD_IMAGE": images.WORKLOAD_IMAGE.removeprefix("docker.io/library/"),
    }
