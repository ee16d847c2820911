"""Detects changes of counter files, on descriptors that stay open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hugetlb_quota.node.counters import Counter, Counters


@pytest.fixture
def open_files(tmp_path: Path) -> Callable[[], int]:
    """Return a function that counts this process's open files below ``tmp_path``."""

    def count() -> int:
        links = (each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
        return sum(link.is_relative_to(tmp_path) for link in links)

    return count


def test_reads_a_counter_that_changes(tmp_path: Path) -> None:
    path = tmp_path / "counter"
    counter = Counter(str(path))
    assert counter.read() is None
    for value in ("0\n", "4096\n"):
        path.write_text(value)
        assert counter.read() == value.encode()
    counter.close()
    assert counter.read() == b"4096\n"
    counter.close()


def test_detects_changes_and_new_paths_only(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a", "b")]
    for path in paths:
        Path(path).write_text("0\n")
    with Counters() as counters:
        assert counters.moved(paths[:1])
        assert not counters.moved(paths[:1])
        assert counters.moved(paths)  # one path is new
        Path(paths[1]).write_text("1\n")
        assert counters.moved(paths)
        assert not counters.moved(paths)
        assert not counters.moved(paths[:1])  # one path is missing
        assert (counters.last(paths[0]), counters.last(paths[1])) == (b"0\n", None)


def test_detects_a_file_that_comes(tmp_path: Path) -> None:
    path = tmp_path / "later"
    with Counters() as counters:
        assert counters.moved([str(path)])
        assert not counters.moved([str(path)])
        path.write_text("0\n")
        assert counters.moved([str(path)])


def test_keeps_one_descriptor_for_each_path(tmp_path: Path, open_files: Callable[[], int]) -> None:
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        Path(path).write_text("0\n")
    with Counters() as counters:
        counters.moved(paths)
        counters.moved(paths)
        assert open_files() == 3
        counters.moved(paths[:1])
        assert open_files() == 1
    assert open_files() == 0
