"""/proc/PID/maps as the kernel prints it, and processes of a fixture."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.node.mappings import Mapping, ProcessHidden, mappings, open_files, processes

MAPS = """\
00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/dbus-daemon
7f5a00000000-7f5a00400000 rw-s 00200000 00:2a 158713                     /mnt/huge/a b
7f5a00400000-7f5a00600000 rw-p 00000000 00:2a 158714                     /anon_hugepage (deleted)
7f5a00600000-7f5a00800000 r--s 00000000 08:02 9                          /tmp/x 00:2a y
7f5a00800000-7f5a00a00000 rw-s 80000000000 103:2a 5                      /huge
7ffd1c000000-7ffd1c021000 rw-p 00000000 00:00 0                          [stack]
7ffd1c0f0000-7ffd1c0f1000 rw-p 00000000 00:00 0
"""
DEVICE = os.makedev(0, 0x2A)
FIRST = Mapping(DEVICE, 158713, 2 << 20, 6 << 20, True, "/mnt/huge/a b")


@pytest.fixture
def host(tmp_path: Path) -> HostRoot:
    (tmp_path / "proc/7/task/7").mkdir(parents=True)
    (tmp_path / "proc/7/maps").write_text(MAPS)
    return HostRoot(tmp_path)


def test_only_what_is_on_the_devices(host: HostRoot) -> None:
    assert mappings(host, 7, {DEVICE}) == [
        FIRST,
        Mapping(DEVICE, 158714, 0, 2 << 20, False, "/anon_hugepage (deleted)"),
    ]


def test_a_large_offset_and_a_large_device_number(host: HostRoot) -> None:
    device = os.makedev(0x103, 0x2A)
    assert mappings(host, 7, [device]) == [
        Mapping(device, 5, 8 << 40, (8 << 40) + (2 << 20), True, "/huge")
    ]


def test_no_devices_no_mappings(host: HostRoot) -> None:
    assert mappings(host, 7, ()) == []


def test_a_first_thread_that_has_ended_shows_nothing_and_another_does(host: HostRoot) -> None:
    (host.path / "proc/7/maps").write_text("")
    assert mappings(host, 7, {DEVICE}) == []
    (host.path / "proc/7/task/8").mkdir()
    (host.path / "proc/7/task/8/maps").write_text(MAPS)
    assert FIRST in mappings(host, 7, {DEVICE})


def test_no_process_has_nothing(host: HostRoot) -> None:
    assert mappings(host, 8, {DEVICE}) == []
    assert open_files(host, 8, {DEVICE}) == set()


def test_what_may_not_be_seen_is_said(host: HostRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ProcessHidden, match=r"/proc/7/maps may not be read; .*CAP_SYS_PTRACE"):
        mappings(host, 7, {DEVICE})
    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ProcessHidden, match="/proc/7/fd may not be read"):
        open_files(host, 7, {DEVICE})


def test_files_that_are_open(host: HostRoot, tmp_path: Path) -> None:
    folder = tmp_path / "proc/7/fd"
    folder.mkdir()
    (tmp_path / "file").touch()
    (folder / "3").symlink_to(tmp_path / "file")
    (folder / "4").symlink_to("socket:[4711]")
    state = (tmp_path / "file").stat()
    assert open_files(host, 7, {state.st_dev}) == {(state.st_dev, state.st_ino)}
    assert open_files(host, 7, {state.st_dev + 1}) == set()


def test_processes_of_a_subtree(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "a/cgroup.procs").write_text("12\n0\n13\n13\n")
    (tmp_path / "a/b/cgroup.procs").write_text("14\n")
    assert sorted(processes(tmp_path)) == [12, 13, 14]
    assert list(processes(tmp_path / "gone")) == []
