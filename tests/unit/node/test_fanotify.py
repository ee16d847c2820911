"""Events as the kernel lays them out (linux/fanotify.h)."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from hugetlb_quota.node.fanotify import Event, Fanotify, Mask, NoFanotify

METADATA = struct.Struct("=IBBHQii")


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> tuple[Fanotify, int]:
    """A group whose events come from a pipe; and the pipe's other end."""
    read, write = os.pipe2(os.O_NONBLOCK)
    group = Fanotify.__new__(Fanotify)
    group._descriptor = read
    return group, write


def test_events_that_come_together(group: tuple[Fanotify, int]) -> None:
    fanotify, kernel = group
    extra = b"\0" * 8  # a later kernel may add records to an event
    os.write(
        kernel,
        METADATA.pack(24, 3, 0, 24, 0x10000, 5, 4711)
        + METADATA.pack(32, 3, 0, 24, 0x2 | 0x8, 6, 0)
        + extra
        + METADATA.pack(24, 3, 0, 24, 0x4000, -1, 0),
    )
    assert fanotify.read() == [
        Event(Mask.OPEN_PERMISSION, 5, 4711),
        Event(Mask.MODIFY | Mask.CLOSE_WRITE, 6, 0),
        Event(Mask.OVERFLOW, None, 0),
    ]
    assert fanotify.read() == []


def test_an_answer(tmp_path: Path) -> None:
    group = Fanotify.__new__(Fanotify)
    with (tmp_path / "answers").open("wb") as file:
        group._descriptor = file.fileno()
        group.allow(Event(Mask.OPEN_PERMISSION, 5, 4711))
    assert (tmp_path / "answers").read_bytes() == struct.pack("=iI", 5, 1)


def test_what_it_takes_is_said() -> None:
    assert "Operation not permitted" in str(NoFanotify(1))
    assert "CAP_SYS_ADMIN" in str(NoFanotify(1))
    assert NoFanotify(24).errno == 24
