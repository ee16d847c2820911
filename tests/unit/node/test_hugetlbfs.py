"""Finds the host's hugetlbfs mounts in its mountinfo."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from hugetlb_quota.node.host import HostRoot, HostUnreadable
from hugetlb_quota.node.hugetlbfs import (
    Superblock,
    is_within_reach,
    parse_size,
    superblocks,
    used,
)
from hugetlb_quota.page_size import PageSize

MIB = 1 << 20


class Host:
    """A fake host. Its file systems are directories of the real host."""

    def __init__(self, path: Path) -> None:
        self.root = HostRoot(path)
        (path / "proc/1").mkdir(parents=True)
        self.mountinfo = path / "proc/1/mountinfo"
        self.mountinfo.write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")

    def mount(
        self, point: str, options: str = "rw,pagesize=2M", *, root: str = "/", device: int = 0
    ) -> Path:
        path = self.root.path / point.lstrip("/").replace(r"\040", " ")
        path.mkdir(parents=True, exist_ok=True)
        number = device or path.stat().st_dev
        with self.mountinfo.open("a") as lines:
            lines.write(
                f"40 22 {os.major(number)}:{os.minor(number)} {root} {point} rw - hugetlbfs none"
                f" {options}\n"
            )
        return path


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_finds_a_hugetlbfs_below_the_root_of_the_host(host: Host) -> None:
    path = host.mount(r"/dev/huge\040pages", "rw,seclabel,pagesize=1024M,size=2147483648")
    assert superblocks(host.root) == (
        Superblock(
            device=path.stat().st_dev,
            size=PageSize(1 << 30),
            limit=2 << 30,
            minimum=0,
            point="/dev/huge pages",
            path=path,
        ),
    )


def test_takes_the_first_mount_of_the_whole_file_system(host: Host) -> None:
    host.mount("/part", root="/sub")
    path = host.mount("/first")
    host.mount("/second")
    assert [one.path for one in superblocks(host.root)] == [path]


def test_ignores_a_mount_that_another_mount_hides(host: Host) -> None:
    host.mount("/hidden")
    with host.mountinfo.open("a") as lines:
        lines.write("41 22 0:51 / /hidden rw - tmpfs none rw\n")
    assert superblocks(host.root) == ()


def test_reads_no_use_of_a_mount_that_it_cannot_reach(host: Host) -> None:
    """An agent in a container sees all mounts of its host, but may be unable to reach them."""
    path = host.mount("/far", "rw,pagesize=2M,size=4M", device=os.makedev(0, 99))
    (far,) = superblocks(host.root)
    assert (far.path, far.device, used(far)) == (path, os.makedev(0, 99), None)
    assert not is_within_reach(far)
    path.rmdir()
    assert not is_within_reach(far)


def test_logs_an_unknown_page_size(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        host.mount("/odd", "rw,pagesize=3M")
        assert superblocks(host.root) == ()
    assert "/odd" in caplog.text
    assert "3145728 bytes" in caplog.text


def test_ignores_a_mount_with_a_source_like_hugetlbfs(host: Host) -> None:
    host.mountinfo.write_text("40 22 0:50 / /a rw - tmpfs x - hugetlbfs none rw,pagesize=2M\n")
    assert superblocks(host.root) == ()


def test_says_that_proc_is_missing(tmp_path: Path) -> None:
    with pytest.raises(HostUnreadable, match="proc/1/mountinfo"):
        superblocks(HostRoot(tmp_path))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2M", 2 * MIB),
        ("64K", 64 << 10),
        ("1024M", 1 << 30),
        ("16G", 16 << 30),
        ("8388608", 8 * MIB),
    ],
)
def test_parses_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "2m", "-1", "2M "])
def test_refuses_what_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)
