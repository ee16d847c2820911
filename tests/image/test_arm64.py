"""Every dependency has a wheel for arm64 with the locked hash, which any machine can check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from image.build import TREE

pytestmark = pytest.mark.timeout(660)  # a slow network

# For the oldest glibc that a base may have.
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
ABIS = ("cp311", "abi3", "none")


def test_every_dependency_has_a_wheel_for_arm64(tmp_path: Path) -> None:
    choice = [f"--platform={platform}" for platform in PLATFORMS]
    choice += ["--implementation=cp", "--python-version=3.11", *(f"--abi={abi}" for abi in ABIS)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--require-hashes", "--only-binary=:all:", *choice, f"--dest={tmp_path}"),
            *("-r", TREE / "requirements.lock"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    wheels = [each.name for each in tmp_path.iterdir()]
    assert len([wheel for wheel in wheels if "aarch64" in wheel]) >= 5
    assert not [wheel for wheel in wheels if "x86_64" in wheel]
