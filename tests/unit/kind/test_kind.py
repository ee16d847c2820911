"""The steps of `make e2e-kind`, their order, and the cluster at the end."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from image import build

kind = import_module("tests.kind.__main__")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put programs on PATH that only record their command lines; return the file of the records."""
    records, programs = tmp_path / "log", tmp_path / "bin"
    programs.mkdir()
    records.touch()
    for name in ("docker", "kind", "kubectl", "helm"):
        text = f'#!/bin/sh\necho "{name} $*" >> {records}\n[ "$1" != "$FAIL" ]\n'
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    pool = tmp_path / "nr_hugepages"
    pool.write_text(f"{kind.PAGES}\n")
    monkeypatch.setattr(kind.lacking, "__defaults__", (pool,))
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    for name in ("KEEP", "IMAGE", "KIND_NODE_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    return records


def calls(log: Path) -> list[str]:
    words = [line.split() for line in log.read_text().splitlines()]
    return [" ".join(each[:3]) for each in words if each[:2] != ["docker", "version"]]


def test_a_run_builds_creates_tests_and_deletes(log: Path) -> None:
    assert kind.main(["--version"]) == 0
    assert calls(log) == [
        "docker build --file",
        "docker build --tag",
        "kind create cluster",
        "kind load docker-image",
        "kind load docker-image",
        "kind delete cluster",
    ]
    assert f"load docker-image hugetlb-quota:{build.version()} --name" in log.read_text()


def test_a_cluster_that_fails_to_start_is_deleted(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "create")
    assert kind.main(["--version"]) == 1
    assert calls(log)[-2:] == ["kind create cluster", "kind delete cluster"]


def test_a_failed_scene_is_a_failure_and_keep_keeps_the_cluster(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEEP", "1")
    assert kind.main(["--no-such-option"]) == 1
    assert not any("delete" in call for call in calls(log))


def test_nothing_starts_when_something_is_missing(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin/helm").unlink()
    (tmp_path / "nr_hugepages").write_text("3\n")
    monkeypatch.setenv("FAIL", "version")
    assert kind.main([]) == 1
    printed = capsys.readouterr().err
    assert "helm is not on PATH" in printed
    assert "the scenes need 256" in printed
    assert "daemon does not answer" in printed
    assert calls(log) == []
