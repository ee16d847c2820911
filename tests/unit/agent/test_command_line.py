"""The agent's command line, and how it ends on a host it can't work on."""

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


def ends(host: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    """How the agent ends at once; without an API server unless one was configured."""
    command = ["agent", "--node-name=n", f"--host-root={host}", "--bind=127.0.0.1"]
    monkeypatch.setattr(sys, "argv", [*command, "--health-port=0", *more])
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_every_reason_has_a_code_of_its_own() -> None:
    assert sorted(EXIT_CODES.values()) == [3, 4, 5, 6, 7, 8]


def test_a_host_without_cgroup2(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (host / "proc/1/mountinfo").write_text(CGROUP2.replace("cgroup2", "tmpfs"))
    assert ends(host, monkeypatch, "--check") == 3
    assert "boot the host with systemd.unified_cgroup_hierarchy=1" in capsys.readouterr().err


def test_a_host_without_the_hugetlb_controller(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (host / "sys/fs/cgroup/cgroup.controllers").write_text("cpu memory\n")
    assert ends(host, monkeypatch, "--check") == 4
    assert "CONFIG_CGROUP_HUGETLB=y" in capsys.readouterr().err


def test_a_place_that_is_no_hosts_root(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(host / "sys", monkeypatch) == 5
    assert "--host-root" in capsys.readouterr().err


def test_no_api_server_to_talk_to(
    host: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends(host, monkeypatch) == 7
    assert "Set KUBECONFIG" in capsys.readouterr().err


def test_the_probes_port_is_taken(
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
        assert ends(host, monkeypatch, f"--health-port={port}") == 8
    assert f"127.0.0.1 port {port}" in capsys.readouterr().err


def test_the_node_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([])
    assert ended.value.code == 2
    assert "--node-name" in capsys.readouterr().err


def test_defaults() -> None:
    options = parse(["--node-name", "n"])
    assert (options.host_root, options.cgroup_root) == (Path("/"), None)
    assert (options.mirror_unknown, options.bind, options.health_port) == (True, "*", 8082)
    assert options.charge_list == "kernel"
    assert not parse(["--node-name", "n", "--no-mirror-unknown"]).mirror_unknown
