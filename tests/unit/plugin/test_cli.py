"""The command line: options before and after the command, exit codes, completion."""

from __future__ import annotations

import io
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.plugin import cli, completion, table
from hugetlb_quota.plugin.commands import screen
from hugetlb_quota.plugin.problem import Exit, Problem, not_found

#: What takes long to import; help and completion of words must do without.
SLOW = ("aiohttp", "kubernetes", "pydantic", "yaml", "asyncio", "kopf")


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster of whoever runs this."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    "words",
    [
        ["tree", "-n", "x", "-o", "json"],
        ["-n", "x", "-o", "json", "tree"],
        ["-n", "x", "tree", "-o", "json"],
        ["tree", "--namespace=x", "--output=json"],
    ],
)
def test_common_options_stand_anywhere(words: list[str]) -> None:
    options = cli.parse(words)
    assert (options.command, options.namespace, options.output) == ("tree", "x", "json")


def test_defaults() -> None:
    options = cli.parse(["tree"])
    assert (options.namespace, options.context, options.output) == (None, None, "table")
    assert cli.parse(["top"]).what == "pods"


@pytest.mark.parametrize(
    ("words", "kind", "name"),
    [
        (["pod", "a"], "pod", "a"),
        (["po/a"], "pod", "a"),
        (["deploy", "x/a"], "deployment", "x/a"),
        (["Jobs", "a"], "job", "a"),
    ],
)
def test_explain_takes_kubectls_names(words: list[str], kind: str, name: str) -> None:
    options = cli.parse(["explain", *words])
    assert (options.kind, options.name) == (kind, name)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["tree", "-n", "x", "-A"], Exit.USAGE),
        (["explain"], Exit.USAGE),
        (["explain", "pod"], Exit.USAGE),
        (["explain", "service", "x"], Exit.USAGE),
        (["explain", "pod", "x", "-f", "y"], Exit.USAGE),
        (["tree"], Exit.UNREACHABLE),
        (["tree", "--kubeconfig", "/nonexistent/config"], Exit.UNREACHABLE),
        (["completion", "bash"], Exit.DONE),
        (["--version"], Exit.DONE),
        ([], Exit.USAGE),
    ],
)
def test_exit_codes(words: list[str], code: Exit, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == code
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    if code != Exit.DONE and words:
        assert len(told.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "There is no context x"),
        ("contexts: 7\n", "No cluster to talk to"),
        ("{", "No cluster to talk to"),
    ],
)
def test_a_kubeconfig_that_is_none(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config"
    config.write_text(text or CONFIG)
    assert cli.main(["tree", "--kubeconfig", str(config), "--context=x"]) == Exit.UNREACHABLE
    assert says in capsys.readouterr().err


CONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: y, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: y, user: {token: t}}]
contexts: [{name: xy, context: {cluster: y, user: y, namespace: n}}]
current-context: xy
"""


def test_a_cluster_that_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config"
    config.write_text(CONFIG)
    assert cli.main(["tree", "--kubeconfig", str(config)]) == Exit.UNREACHABLE
    assert "https://127.0.0.1:1 is the right cluster" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["tree", "--help"], ["__complete", "tr"]])
def test_help_and_completion_import_nothing_slow(words: list[str]) -> None:
    program = [sys.executable, "-X", "importtime", "-m", "hugetlb_quota.plugin", *words]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & set(SLOW)


@pytest.mark.parametrize(
    ("words", "expected", "directive"),
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
        ([], list(completion._COMMANDS), 4),
    ],
)
def test_completion(words: list[str], expected: list[str], directive: int) -> None:
    found, told = completion.candidates(words or [""])
    assert ([name for name, _ in found], told) == (expected, directive)


def test_completion_of_contexts(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(CONFIG)
    found, _ = completion.candidates(["--kubeconfig", str(config), "--context", ""])
    assert found == [("xy", "")]


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_each_shell_has_its_script(shell: str) -> None:
    assert "__complete" in completion.script(shell)


def test_the_script_for_bash_completes(tmp_path: Path) -> None:
    program = tmp_path / "kubectl-hugetlb"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m hugetlb_quota.plugin "$@"\n')
    program.chmod(0o755)
    asks = (
        f"{completion.script('bash')}\n"
        f"COMP_WORDS=({program} completion z); COMP_CWORD=2; _kubectl_hugetlb\n"
        'echo "${COMPREPLY[@]}"\n'
        f"COMP_WORDS=({program} t); COMP_CWORD=1; _kubectl_hugetlb\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "-c", asks], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["zsh", "tree top"], done.stderr


class Terminal(io.StringIO):
    encoding = "UTF-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "colour"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colour_only_on_a_terminal(
    variables: dict[str, str], colour: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert not screen().colour
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert screen().colour == colour
    assert not screen().plain


@pytest.mark.parametrize(
    ("known", "says"),
    [
        (["acme/tenant", "x/y"], "did you mean acme/tenant?"),
        (["acme/tennant"], "did you mean acme/tennant?"),
        (["x/y"], "there are x/y."),
        ([], "there is no HugeTLBQuota at all."),
    ],
)
def test_near_names(known: list[str], says: str) -> None:
    problem = not_found("HugeTLBQuota", "default/tenant", known)
    assert isinstance(problem, Problem)
    assert str(problem).endswith(says)
    assert problem.code == Exit.NOT_FOUND


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0s"), (59, "59s"), (65, "1m5s"), (600, "10m"), (7200, "2h"), (90061, "1d1h"), (-5, "0s")],
)
def test_ages(seconds: int, expected: str) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert table.age(now - timedelta(seconds=seconds), now) == expected
    assert table.age(None, now) == "-"


def test_a_reader_that_has_read_enough(tmp_path: Path) -> None:
    asks = f"{sys.executable} -m hugetlb_quota.plugin --help | head -1; echo ${{PIPESTATUS[0]}}"
    done: Any = subprocess.run(["bash", "-c", asks], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"
