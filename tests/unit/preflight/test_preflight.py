"""The preflight reports the programs and rights that the machine lacks, and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import preflight
from tests.kube import build

PROC = "24 1 0:22 / /proc rw - proc proc rw\n"


def mounted(at: Path) -> str:
    return f"30 1 0:26 / {at} rw,nosuid - cgroup2 cgroup2 rw\n"


def program(path: Path, output: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH; KUBEBUILDER_ASSETS is not set."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path


def test_no_cgroup2(tmp_path: Path) -> None:
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(PROC)
    assert "mount one: mount -t cgroup2" in (preflight._cgroup2(mountinfo) or "")


def test_every_visible_cgroup2_mount_is_searched_for_the_controller(tmp_path: Path) -> None:
    mountinfo, hidden, seen = (tmp_path / name for name in ("mountinfo", "hidden", "seen"))
    seen.mkdir()
    mountinfo.write_text(PROC + mounted(hidden) + mounted(seen))
    (seen / "cgroup.controllers").write_text("cpu memory\n")
    assert "cgroup_no_v1=hugetlb" in (preflight._cgroup2(mountinfo) or "")
    (seen / "cgroup.controllers").write_text("cpu hugetlb\n")
    assert preflight._cgroup2(mountinfo) is None


def test_another_user_than_root_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "sudo" in (preflight._root() or "")


def test_a_root_without_cap_sys_admin_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    status = tmp_path / "status"
    status.write_text("Uid:\t0\nCapEff:\t00000000a80425fb\n")  # containerd's default
    assert "privileged" in (preflight._root(status) or "")
    status.write_text("Uid:\t0\nCapEff:\t000001ffffffffff\n")
    assert preflight._root(status) is None


def test_missing_packages_of_the_reader_are_named(path: Path, tmp_path: Path) -> None:
    include = tmp_path / "include"
    problem = preflight._reader(include) or ""
    assert "install clang, " in problem
    assert "libbpf-dev" in problem
    for header in ("stdio.h", "bpf/libbpf.h"):
        (include / header).parent.mkdir(exist_ok=True, parents=True)
        (include / header).touch()
    for name in ("bpftool", "cc", "make"):
        program(path / name, "")
    assert "(apt-get install clang)" in (preflight._reader(include) or "")
    program(path / "clang", "")
    assert preflight._reader(include) is None


def test_missing_packages_of_the_model_are_named(path: Path, tmp_path: Path) -> None:
    program(path / "gcc", "")
    assert "(apt-get install spin)" in (preflight._spin() or "")
    program(path / "spin", "")
    assert preflight._spin() is None


def test_missing_packages_of_virtual_machines_are_named(path: Path) -> None:
    # Other programs, such as debootstrap, are in /usr/sbin. The preflight always searches there.
    problem = preflight._machines() or ""
    assert "install qemu-system-x86, " in problem
    assert "busybox-static" in problem
    for name in preflight.MACHINE_PACKAGES.values():
        program(path / name, "")
    assert preflight._machines() is None


def test_go_is_missing_or_too_old(path: Path) -> None:
    assert "There is no Go to build a control plane" in (preflight._programs() or "")
    program(path / "go", "go version go1.22.1 linux/amd64")
    assert "go1.22.1" in (preflight._programs() or "")
    program(path / "go", "go version go1.26.8 linux/amd64")
    assert preflight._programs() is None


def test_a_given_control_plane_needs_go_only_for_missing_programs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(path))
    for name in build.PROGRAMS:
        assert f"lacks ({name}" in (preflight._programs() or "")
        program(path / name, "")
    assert preflight._programs() is None


def test_programs_and_go_version_are_those_of_the_build() -> None:
    assert preflight.PROGRAMS == build.PROGRAMS
    assert ".".join(map(str, preflight.GO)) in build._required_go()
