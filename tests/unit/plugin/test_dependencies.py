"""`pipx install .` installs the plugin without the dependencies of the operator's programs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

IMPORT_ALL = """
import importlib, pkgutil, sys
sys.modules |= dict.fromkeys({missing!r})
from hugetlb_quota import plugin
for found in pkgutil.iter_modules(plugin.__path__, "hugetlb_quota.plugin."):
    importlib.import_module(found.name)
import kubernetes.aio.client, kubernetes.aio.config
from hugetlb_quota.plugin import cli
sys.exit(cli.main(["tree", "--kubeconfig=/nonexistent"]))
"""


def modules(requirements: list[str]) -> list[str]:
    """The modules of the required packages."""
    return [re.split(r"[^\w-]", each)[0].replace("-", "_") for each in requirements]


def test_the_plugin_runs_without_what_only_the_programs_need() -> None:
    missing = modules(PROJECT["optional-dependencies"]["operator"])
    assert "kopf" in missing
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL.format(missing=missing)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    # 4: the plugin came as far as to look for a cluster.
    assert (done.returncode, done.stderr.split(":")[0]) == (4, "No cluster is configured"), (
        done.stderr
    )


def test_the_imports_that_the_linter_forbids_are_those_packages() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    (contract,) = [
        each
        for each in tool["importlinter"]["contracts"]
        if each["name"].startswith("The plugin is installed")
    ]
    assert contract["forbidden_modules"] == modules(PROJECT["optional-dependencies"]["operator"])


def test_the_install_without_pipx_links_all_programs() -> None:
    page = (ROOT / "docs" / "kubectl-hugetlb.md").read_text()
    assert re.findall(r"^ln -sf \S+/bin/(\S+) ", page, re.MULTILINE) == list(PROJECT["scripts"])
