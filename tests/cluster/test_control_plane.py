"""The control plane of the tests is real, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.kube import build
from tests.kube.api import ApiError
from tests.kube.control_plane import ControlPlane
from tests.kube.process import ProgramError


def test_serves_the_version_that_go_mod_requires(control_plane: ControlPlane) -> None:
    if os.environ.get("KUBEBUILDER_ASSETS"):
        pytest.skip("KUBEBUILDER_ASSETS is set: its version is its owner's choice")
    served = control_plane.api.raw("GET", "/version").json()["gitVersion"]
    assert served == build.kubernetes_version()


def test_refuses_a_service_account_without_rights(
    control_plane: ControlPlane, namespace: str
) -> None:
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "default")
    with pytest.raises(ApiError, match="cannot list resource") as refused:
        control_plane.api_for(kubeconfig).list("v1/pods", namespace=namespace)
    assert refused.value.code == 403


def test_a_token_bound_to_a_node_names_the_node(
    control_plane: ControlPlane, namespace: str, node: str
) -> None:
    assert _user(control_plane, namespace, node)["extra"][NODE_NAME] == [node]
    assert NODE_NAME not in _user(control_plane, namespace, None)["extra"]


def test_schedules_pods_to_a_ready_node(
    control_plane: ControlPlane, namespace: str, node: str
) -> None:
    control_plane.api.create(
        "v1/pods",
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "scheduled", "namespace": namespace},
            # Nodes of other tests may disappear at any moment.
            "spec": {
                "containers": [{"name": "main", "image": "none"}],
                "nodeSelector": {"kubernetes.io/hostname": node},
            },
        },
    )
    bound = control_plane.api.wait_for(
        "v1/pods",
        "scheduled",
        lambda seen: bool(seen and seen["spec"].get("nodeName")),
        namespace=namespace,
        what="a node",
    )
    assert bound is not None
    assert bound["spec"]["nodeName"] == node


def test_ends_with_its_parent_even_if_the_parent_is_killed(assets: Path) -> None:
    code = (
        "import time\n"
        "from tests.kube.control_plane import ControlPlane\n"
        "with ControlPlane() as plane:\n"
        "    pids = (child.pid for child in plane.servers.children.values())\n"
        "    print(plane.directory, *pids, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    try:
        assert parent.stdout is not None
        directory, *pids = parent.stdout.readline().split()
        assert len(pids) == 4
        assert all(_runs(int(pid), directory) for pid in pids)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 60
    while left := [pid for pid in pids if _runs(int(pid), directory)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)
    subprocess.run(["rm", "-r", directory], check=True)


def test_says_why_a_program_failed(tmp_path: Path) -> None:
    etcd = tmp_path / "etcd"
    etcd.write_text("#!/bin/sh\necho the disk is on fire >&2\nexit 3\n")
    etcd.chmod(0o755)
    plane = ControlPlane(tmp_path)
    with pytest.raises(ProgramError, match=r"etcd ended with status 3[\s\S]*the disk is on fire"):
        plane.__enter__()
    assert not plane.directory.exists()


@pytest.mark.parametrize("held", [(), ("etcd", "kube-apiserver")])
def test_names_missing_programs_without_go(
    held: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in held:
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path) if held else "")
    monkeypatch.setenv("HUGETLB_QUOTA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(build.AssetsMissingError) as missing:
        build.assets()
    assert "no `go` on PATH" in str(missing.value)
    assert ("lacks kube-controller-manager, kube-scheduler" in str(missing.value)) == bool(held)


def test_builds_programs_that_the_given_assets_lack(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etcd").touch(mode=0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    merged = build.assets()
    assert (merged / "etcd").resolve() == tmp_path / "etcd"
    assert {each.name for each in merged.iterdir()} == set(build.PROGRAMS)
    assert (merged / "kubectl").stat().st_size > 1 << 20
    for link in merged.iterdir():
        link.unlink()
    merged.rmdir()


NODE_NAME = "authentication.kubernetes.io/node-name"


def _user(plane: ControlPlane, namespace: str, node: str | None) -> dict[str, dict[str, list[str]]]:
    kubeconfig = plane.service_account_kubeconfig(namespace, "default", node=node)
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = plane.api_for(kubeconfig).create("authentication.k8s.io/v1/selfsubjectreviews", review)
    user: dict[str, dict[str, list[str]]] = answer["status"]["userInfo"]
    return user


def _runs(pid: int, directory: str) -> bool:
    """Whether this PID is a running program of the control plane; PIDs are reused."""
    try:
        return directory.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
