"""The command line: options before and after the command, and exit codes."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.plugin import cli
from hugetlb_quota.plugin.completion import COMMANDS
from hugetlb_quota.plugin.problem import Exit
from tests.unit.plugin.kubeconfigs import KUBECONFIG

#: Modules that are slow to import. Help and completion of words must not import them.
SLOW = ("aiohttp", "kubernetes", "pydantic", "yaml", "asyncio", "kopf")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the kubeconfig of the user who runs the tests."""
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
def test_common_options_may_stand_anywhere(words: list[str]) -> None:
    options = cli.parse(words)
    assert (options.command, options.namespace, options.output) == ("tree", "x", "json")


def test_options_have_defaults() -> None:
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
def test_explain_takes_the_same_names_as_kubectl(words: list[str], kind: str, name: str) -> None:
    options = cli.parse(["explain", *words])
    assert (options.kind, options.name) == (kind, name)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["explain", "pod", "-n", "x", "a"], {"kind": "pod", "name": "a"}),
        (["explain", "-n", "x", "pod", "a"], {"kind": "pod", "name": "a"}),
        (["explain", "-n", "x", "-f", "-"], {"kind": None, "filename": "-"}),
        (["tree", "-n", "x", "q", "-w"], {"quota": "q", "watch": True}),
        (["tree", "-n", "x"], {"quota": None, "watch": False}),
        (["who", "-n", "x", "q"], {"quota": "q"}),
        (["top", "-n", "x", "nodes"], {"what": "nodes"}),
        (["top", "-n", "x"], {"what": "pods"}),
        (["files", "-n", "x", "--all"], {"all": True}),
        (["-o", "json", "who", "-n", "x", "q"], {"quota": "q", "output": "json"}),
        (["uninstall", "-y", "-n", "x"], {"yes": True, "dry_run": False}),
    ],
)
def test_options_may_stand_between_arguments(words: list[str], expected: dict[str, Any]) -> None:
    options = vars(cli.parse(words))
    assert options["namespace"] == "x"
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "pod", "-n", "x", "a", "b"], "unrecognized arguments: b"),
        (["who"], "the following arguments are required: QUOTA"),
        (["tree", "--wide"], "unrecognized arguments: --wide"),
        (["top", "-n", "x", "quotas"], "invalid choice: 'quotas'"),
        (["files", "-o", "xml"], "invalid choice: 'xml'"),
        (["completion"], "the following arguments are required: shell"),
    ],
)
def test_an_argument_error_shows_the_usage_of_the_command(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.parse(words)
    assert exit_.value.code == Exit.USAGE
    printed = capsys.readouterr().err
    assert printed.startswith(f"usage: kubectl hugetlb {words[0]} [-h]")
    assert message in printed


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
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    if code != Exit.DONE and words:
        assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "end"),
    [
        (["tre"], "no command tre; did you mean tree?"),
        (["-n", "x", "exlain", "pod", "a"], "no command exlain; did you mean explain?"),
        (["quotas"], "no command quotas; use tree, top, files, who, explain, check, uninstall,"),
    ],
)
def test_an_unknown_command_names_the_commands(
    words: list[str], end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == Exit.USAGE
    assert end in capsys.readouterr().err


def test_the_parser_has_all_commands_that_completion_offers() -> None:
    (commands,) = (
        each for each in cli.parser()._actions if isinstance(each, argparse._SubParsersAction)
    )
    assert list(commands.choices) == list(COMMANDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (KUBECONFIG, "There is no context x"),
        ("contexts: 7\n", "No cluster is configured"),
        ("{", "No cluster is configured"),
    ],
)
def test_a_bad_kubeconfig_is_an_error_message(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config"
    config.write_text(text)
    assert cli.main(["tree", "--kubeconfig", str(config), "--context=x"]) == Exit.UNREACHABLE
    assert message in capsys.readouterr().err


def test_a_cluster_that_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config"
    config.write_text(KUBECONFIG)
    assert cli.main(["tree", "--kubeconfig", str(config)]) == Exit.UNREACHABLE
    assert "https://127.0.0.1:1 is the right cluster" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["tree", "--help"], ["__complete", "tr"]])
def test_help_and_completion_import_no_slow_module(words: list[str]) -> None:
    program = [sys.executable, "-X", "importtime", "-m", "hugetlb_quota.plugin", *words]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in loaded
    assert not loaded & set(SLOW)


def test_a_reader_that_closes_the_pipe_is_no_error() -> None:
    script = f"{sys.executable} -m hugetlb_quota.plugin --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"
