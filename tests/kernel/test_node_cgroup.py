"""Limits and use of one cgroup, with the kernel's controller."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hugetlb_quota.node.cgroup import (
    CgroupGone,
    LimitBelowUse,
    NotControlled,
    read_limit,
    read_refusals,
    read_use,
    write_limit,
)
from hugetlb_quota.page_size import PageSize
from tests.testnode import cgroup_tree
from tests.workloads import command

MIB = 1 << 20
SIZE = PageSize(2 * MIB)


@pytest.fixture
def cgroup(cgroup_subtree: Path) -> Path:
    path = cgroup_subtree / "a"
    path.mkdir()
    return path


def test_a_limit_that_was_never_set_reads_as_none(cgroup: Path) -> None:
    assert read_limit(cgroup, SIZE, "max") is None
    assert read_limit(cgroup, SIZE, "rsvd.max") is None


@pytest.mark.parametrize("value", [0, 4 * MIB, 2**62, None])
def test_reads_back_a_written_limit(cgroup: Path, value: int | None) -> None:
    write_limit(cgroup, SIZE, "rsvd.max", 2 * MIB)
    write_limit(cgroup, SIZE, "rsvd.max", value)
    assert read_limit(cgroup, SIZE, "rsvd.max") == value
    assert read_limit(cgroup, SIZE, "max") is None


@pytest.mark.parametrize(
    ("limit", "maps", "refused"),
    [("4Mi", "8Mi", True), ("4Mi", "4Mi", False), ("64Mi", "64Mi", False)],
)
def test_counts_refusals_of_a_limit_but_not_of_an_empty_pool(
    cgroup: Path, pages: Callable[[int], None], limit: str, maps: str, *, refused: bool
) -> None:
    pages(4)
    inner = cgroup / "container"
    inner.mkdir()
    cgroup_tree.write(cgroup / "cgroup.subtree_control", "+hugetlb")
    write_limit(cgroup, SIZE, "rsvd.max", int(limit[:-2]) * MIB)
    subprocess.run(
        command("map_pages", maps),
        check=True,
        capture_output=True,
        preexec_fn=lambda: cgroup_tree.write(inner / "cgroup.procs", "0"),
    )
    assert (read_refusals(cgroup, SIZE) > 0) == refused


def test_refuses_a_limit_below_the_use_and_changes_nothing(
    cgroup: Path, pages: Callable[[int], None]
) -> None:
    pages(4)
    held = subprocess.Popen(
        command("map_pages", "8Mi", "--hold"),
        stdout=subprocess.PIPE,
        preexec_fn=lambda: cgroup_tree.write(cgroup / "cgroup.procs", "0"),
    )
    try:
        assert held.stdout
        held.stdout.readline()
        use = read_use(cgroup, SIZE)
        assert (use.reserved, use.faulted, use.most) == (8 * MIB, 8 * MIB, 8 * MIB)
        with pytest.raises(LimitBelowUse, match=f"{cgroup}/hugetlb.2MB.max.*4194304 bytes"):
            write_limit(cgroup, SIZE, "max", 4 * MIB)
        assert read_limit(cgroup, SIZE, "max") is None
    finally:
        held.kill()
        held.communicate()


def test_says_that_a_cgroup_is_gone(cgroup: Path) -> None:
    cgroup.rmdir()
    with pytest.raises(CgroupGone, match=str(cgroup)):
        read_limit(cgroup, SIZE, "max")
    with pytest.raises(CgroupGone):
        write_limit(cgroup, SIZE, "max", 0)
    with pytest.raises(CgroupGone):
        read_use(cgroup, SIZE)


def test_says_that_a_cgroup_lacks_the_controller(cgroup: Path) -> None:
    below = cgroup / "b"
    below.mkdir()
    with pytest.raises(NotControlled, match=rf"\+hugetlb to {cgroup}/cgroup.subtree_control"):
        write_limit(below, SIZE, "max", 0)


def test_a_cgroup_without_files_counts_as_gone_during_its_removal(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel removes the files first and the directory a moment later."""
    cgroup.rmdir()
    monkeypatch.setattr(Path, "is_dir", lambda self: True)
    with pytest.raises(CgroupGone):
        read_limit(cgroup, SIZE, "max")
