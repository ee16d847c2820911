"""Superblocks from a host's mountinfo, and the files on a fixture."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from hugetlb_quota.node.host import HostRoot, HostUnreadable
from hugetlb_quota.node.hugetlbfs import (
    Segment,
    Superblock,
    parse_size,
    scan,
    segments,
    superblocks,
    used,
)
from hugetlb_quota.page_size import PageSize

MIB = 1 << 20


class Host:
    """A fixture host, whose file systems are directories of the real one."""

    def __init__(self, path: Path) -> None:
        self.root = HostRoot(path)
        self.seen = path / "proc/1/root"
        self.seen.mkdir(parents=True)
        self.mountinfo = path / "proc/1/mountinfo"
        self.mountinfo.write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")

    def mount(
        self, point: str, options: str = "rw,pagesize=2M", *, root: str = "/", device: int = 0
    ) -> Path:
        path = self.seen / point.lstrip("/").replace(r"\040", " ")
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


def test_it_is_seen_through_inits_root(host: Host) -> None:
    path = host.mount(r"/dev/huge\040pages", "rw,seclabel,pagesize=1024M,size=2147483648")
    assert superblocks(host.root) == (
        Superblock(
            device=path.stat().st_dev,
            root=path.stat().st_ino,
            size=PageSize(1 << 30),
            limit=2 << 30,
            minimum=0,
            point="/dev/huge pages",
            path=path,
        ),
    )


def test_the_first_place_that_shows_all_of_it_is_taken(host: Host) -> None:
    host.mount("/part", root="/sub")
    path = host.mount("/first")
    host.mount("/second")
    assert [one.path for one in superblocks(host.root)] == [path]


def test_what_is_not_what_mountinfo_says_is_left_out(host: Host) -> None:
    hidden = host.mount("/hidden")
    host.mountinfo.write_text("")
    host.mount("/hidden", device=hidden.stat().st_dev + 1)
    gone = host.mount("/gone", device=hidden.stat().st_dev)
    gone.rmdir()
    assert superblocks(host.root) == ()


def test_a_page_size_that_nobody_knows_is_said(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        host.mount("/odd", "rw,pagesize=3M")
        assert superblocks(host.root) == ()
    assert "/odd" in caplog.text
    assert "3145728 bytes" in caplog.text


def test_a_source_named_like_a_type_is_none(host: Host) -> None:
    host.mountinfo.write_text("40 22 0:50 / /a rw - tmpfs x - hugetlbfs none rw,pagesize=2M\n")
    assert superblocks(host.root) == ()


def test_no_proc_is_said(tmp_path: Path) -> None:
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
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "2m", "-1", "2M "])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_size(text)


def test_a_scan_stays_on_its_device(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").touch()
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "folder").symlink_to("b")
    here = Superblock(
        device=tmp_path.stat().st_dev,
        root=tmp_path.stat().st_ino,
        size=PageSize(2 * MIB),
        limit=None,
        minimum=0,
        point=str(tmp_path),
        path=tmp_path,
    )
    assert {file.path for file in scan(here)} == {"a", "b/c"}
    elsewhere = Superblock(
        here.device + 1, here.root, here.size, None, 0, here.point, tmp_path / "gone"
    )
    assert list(scan(elsewhere)) == []
    assert used(elsewhere) is None


def test_segments_by_the_names_of_their_columns(tmp_path: Path) -> None:
    folder = tmp_path / "proc/sysvipc"
    folder.mkdir(parents=True)
    (folder / "shm").write_text(
        "       key      shmid perms                  size  cpid  lpid nattch   uid\n"
        "         0      65538  1600               4194304  4711  4712      2     0\n"
        "-559038737          7   600                    64     1     1      0     0\n"
    )
    assert segments(HostRoot(tmp_path)) == (
        Segment(65538, 0, 4194304, 4711, 2),
        Segment(7, -559038737, 64, 1, 0),
    )
