"""The plugin chooses the kubeconfig, the context and the namespace as kubectl does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hugetlb_quota.kube import transport
from hugetlb_quota.plugin.kubeconfig import contexts, kubeconfig_files, namespace_of
from hugetlb_quota.plugin.problem import Exit, Problem
from tests.unit.plugin.kubeconfigs import KUBECONFIG

SECOND = """\
apiVersion: v1
kind: Config
clusters: [{name: z, cluster: {server: "https://127.0.0.1:2"}}]
users: []
contexts: [{name: bare, context: {cluster: z, user: y}}]
"""


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home, and no $KUBECONFIG."""
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config"
    path.write_text(KUBECONFIG)
    return str(path)


def test_the_option_comes_first_then_the_variable_then_the_home(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kubeconfig_files(None) is None
    own = home / ".kube" / "config"
    own.parent.mkdir()
    own.write_text(KUBECONFIG)
    assert kubeconfig_files(None) == str(own)
    monkeypatch.setenv("KUBECONFIG", "/a:/b")
    assert kubeconfig_files(None) == "/a:/b"
    assert kubeconfig_files("/option") == "/option"


def test_the_contexts_of_all_files_are_listed_in_order(config: str, tmp_path: Path) -> None:
    assert contexts(None) == []
    assert contexts(config) == ["xy"]
    (tmp_path / "second").write_text(SECOND)
    assert contexts(f"{config}{os.pathsep}{tmp_path / 'second'}") == ["bare", "xy"]


def test_the_namespace_is_that_of_the_named_or_the_current_context(
    config: str, tmp_path: Path
) -> None:
    assert namespace_of(config, None) == namespace_of(config, "xy") == "n"
    (tmp_path / "second").write_text(SECOND)
    assert namespace_of(f"{config}{os.pathsep}{tmp_path / 'second'}", "bare") == "default"


def test_an_unknown_context_is_a_problem_that_lists_the_contexts(config: str) -> None:
    with pytest.raises(Problem, match="There is no context xz; the kubeconfig has: xy") as problem:
        namespace_of(config, "xz")
    assert problem.value.code == Exit.UNREACHABLE


def test_inside_a_pod_the_namespace_is_that_of_the_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "ACCOUNT", tmp_path)
    with pytest.raises(Problem, match=r"there is no ~/\.kube/config"):
        namespace_of(None, None)
    (tmp_path / "namespace").write_text("of-the-pod\n")
    assert namespace_of(None, None) == "of-the-pod"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "there is no file"),
        ("{", "No cluster is configured: "),
        ("7", "No cluster is configured: "),
        ("contexts: 7\n", "No cluster is configured: "),
        (KUBECONFIG.replace("{name: xy, ", "{"), "No cluster is configured: "),
    ],
)
def test_a_file_that_is_no_kubeconfig_is_a_problem_in_one_line(
    text: str | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "odd"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Problem, match=reason) as problem:
        contexts(str(path))
    assert problem.value.code == Exit.UNREACHABLE
    assert "\n" not in str(problem.value)
    assert str(path) in str(problem.value)
