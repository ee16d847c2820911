"""Completion: the words that are offered, and the scripts for the shells."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hugetlb_quota.plugin import completion
from hugetlb_quota.plugin.words import SHELLS
from tests.unit.plugin.kubeconfigs import KUBECONFIG


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the kubeconfig of the user who runs the tests."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("words", "expected", "expected_directive"),
    [
        (["t"], ["tree", "top"], 4),
        (["top", ""], ["pods", "nodes"], 4),
        (["tree", "-o", "j"], ["json"], 4),
        (["tree", "--output=j"], ["--output=json"], 4),
        (["files", "--a"], ["--all-namespaces", "--all"], 4),
        (["explain", "-f", ""], [], 0),
        (["explain", "d"], ["deployment", "daemonset"], 4),
        (["completion", ""], ["bash", "zsh", "fish"], 4),
        (["-n", "x", "com"], ["completion"], 4),
        (["who", ""], [], 4),
        (["check", ""], [], 4),
        ([], list(completion.COMMANDS), 4),
    ],
)
def test_completes_words(words: list[str], expected: list[str], expected_directive: int) -> None:
    candidates, directive = completion.candidates(words or [""])
    assert ([name for name, _ in candidates], directive) == (expected, expected_directive)


def test_completes_contexts(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(KUBECONFIG)
    candidates, _ = completion.candidates(["--kubeconfig", str(config), "--context", ""])
    assert candidates == [("xy", "")]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script(shell: str) -> None:
    assert "__complete" in completion.script(shell)


def test_the_script_for_bash_completes(tmp_path: Path) -> None:
    program = tmp_path / "kubectl-hugetlb"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hugetlb_quota.plugin "$@"\n')
    program.chmod(0o755)
    script = (
        f"{completion.script('bash')}\n"
        f"COMP_WORDS=({program} completion z); COMP_CWORD=2; _kubectl_hugetlb\n"
        'echo "${COMPREPLY[@]}"\n'
        f"COMP_WORDS=({program} t); COMP_CWORD=1; _kubectl_hugetlb\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["zsh", "tree top"], done.stderr
