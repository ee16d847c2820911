"""The agent's command line, and its exit codes on a host where pods can't be limited."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import pytest

from hugetlb_quota.agent.__main__ import EXIT_CODES, main, parse

CGROUP2 = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


@pytest.fixture(autouse=True)
def _no_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/mountinfo").write_text(CGROUP2)
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("6687db17\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpu hugetlb\n")
    return tmp_path


def exit_code(host: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    """Run the agent, which exits at once; return its exit code."""
    command = ["agent", "--node-name=n", f"--host-root={host}", "--bind=127.0.0.1"]
    monkeypatch.setattr(sys, "argv", [*command, "--health-port=0", *more])
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_every_reason_has_its_own_exit_code() -> None:
    assert sorted(EXIT_CODES.values()) == [3, 4, 5, 6, 7, 8]


def test_a_host_without_cgroup2(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (host / "proc/1/mountinfo").write_text(CGROUP2.replace("cgroup2", "tmpfs"))
    assert exit_code(host, monkeypatch, "--check") == 3
    assert "boot the host with systemd.unified_cgroup_hierarchy=1" in capsys.readouterr().err


def test_a_host_without_the_hugetlb_controller(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (host / "sys/fs/cgroup/cgroup.controllers").write_text("cpu memory\n")
    assert exit_code(host, monkeypatch, "--check") == 4
    assert "CONFIG_CGROUP_HUGETLB=y" in capsys.readouterr().err


def test_a_directory_that_is_not_the_root_of_a_host(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(host / "sys", monkeypatch) == 5
    assert "--host-root" in capsys.readouterr().err


def test_no_api_server_is_configured(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(host, monkeypatch) == 7
    assert "Set KUBECONFIG" in capsys.readouterr().err


def test_another_program_has_the_port_of_the_probes(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "c"}}
    config = {"clusters": [cluster], "contexts": [context], "users": [{"name": "c", "user": {}}]}
    kubeconfig = host / "kubeconfig"
    kubeconfig.write_text(json.dumps({"kind": "Config", "current-context": "c", **config}))
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert exit_code(host, monkeypatch, f"--health-port={port}") == 8
    assert f"127.0.0.1 port {port}" in capsys.readouterr().err


def test_requires_the_name_of_the_node(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([])
    assert ended.value.code == 2
    assert "--node-name" in capsys.readouterr().err


def test_has_defaults() -> None:
    options = parse(["--node-name", "n"])
    assert (options.host_root, options.cgroup_root) == (Path("/"), None)
    assert (options.mirror_unknown, options.bind, options.health_port) == (True, "*", 8082)
    assert options.charge_list == "kernel"
    assert not parse(["--node-name", "n", "--no-mirror-unknown"]).mirror_unknown
