"""What the responder tells the agent, as it goes through the pipe; and what it drops."""

from __future__ import annotations

import errno
import mmap
import os
import socket
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.node.fanotify import Event, Fanotify, Mask
from hugetlb_quota.node.responder import (
    Kind,
    Record,
    Reply,
    Responder,
    cgroup_of,
    decoded,
    watch_command,
)

records = st.builds(
    Record,
    st.sampled_from(Kind),
    st.integers(0, 2**22),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(max_size=300),
)


@given(st.lists(records, max_size=8), st.data())
def test_records_survive_however_the_pipe_cuts_them(
    told: list[Record], data: st.DataObject
) -> None:
    stream = b"".join(record.encoded() for record in told)
    heard: list[Record] = []
    rest = b""
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        whole, rest = decoded(rest + stream[:cut])
        heard += whole
        stream = stream[cut:]
    assert heard == told
    assert rest == b""


def test_a_cgroup_path_that_is_too_long_keeps_its_beginning() -> None:
    path = b"/kubepods/pod1/" + b"x" * 5000
    encoded = Record(Kind.OPENED, 1, 2, 3, path).encoded()
    assert len(encoded) == 4096  # PIPE_BUF: what a pipe takes in one piece
    ((record,), rest) = decoded(encoded)
    assert path.startswith(record.cgroup)
    assert rest == b""


@given(st.integers(0, 200), st.booleans())
def test_replies(number: int, permission: bool) -> None:
    reply = Reply(number, permission)
    assert Reply.decoded(reply.encoded()) == reply


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/kubepods/pod1/c\n", b"/kubepods/pod1/c"),
        ("12:hugetlb:/v1\n1:name=systemd:/x\n0::/v2\n", b"/v2"),
        # A pod may name a cgroup of its own as it likes.
        ("0::/kubepods/pod1/0::/kubepods/pod2\n", b"/kubepods/pod1/0::/kubepods/pod2"),
        ("10:0::/kubepods/pod2\n0::/kubepods/pod1\n", b"/kubepods/pod1"),
        ("1:name=systemd:/x\n", b""),
        ("", b""),
    ],
)
def test_the_cgroup_of_a_process(tmp_path: Path, text: str, path: bytes) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(text)
    assert cgroup_of(str(tmp_path), 7) == path
    assert cgroup_of(str(tmp_path), 8) == b""


class Group:
    """Stands for a fanotify group: gives events, remembers answers."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.allowed: list[Event] = []
        self.fails = False
        self.marks: list[Mask] = []
        self.refuses: int | None = None

    def read(self) -> list[Event]:
        if self.fails:
            raise OSError(24, "Too many open files")
        events, self.events = self.events, []
        return events

    def mark(self, path: str, mask: Mask) -> None:
        if self.refuses is not None and (Mask.OPEN_PERMISSION in mask or self.refuses != 22):
            raise OSError(self.refuses, os.strerror(self.refuses))
        self.marks.append(mask)

    def allow(self, event: Event) -> None:
        self.allowed.append(event)


class Stage:
    """A responder with a group that is not the kernel's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.group = Group()
        self.read, write = os.pipe2(os.O_NONBLOCK)
        control, self.control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (folder / "7").mkdir()
        (folder / "7" / "cgroup").write_text("0::/pod\n")
        self.file = folder / "file"
        self.file.touch()
        self.responder = Responder(
            cast(Fanotify, self.group),
            control=control,
            pipe=write,
            memory=mmap.mmap(-1, 8),
            proc=str(folder),
            ignored=frozenset({99}),
            permission=True,
        )

    def happens(self, mask: Mask, pid: int = 7) -> Event:
        event = Event(mask, os.open(self.file, os.O_RDONLY), pid)
        self.group.events.append(event)
        self.responder._answer()
        return event

    def watch(self, device: int | None = None) -> Reply:
        wanted = self.folder.stat().st_dev if device is None else device
        self.control.send(watch_command(wanted, str(self.folder)))
        assert self.responder._obey()
        return Reply.decoded(self.control.recv(100))

    def told(self) -> list[Record]:
        try:
            return decoded(os.read(self.read, 1 << 20))[0]
        except BlockingIOError:
            return []


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_an_opener_is_answered_and_told_of(stage: Stage) -> None:
    event = stage.happens(Mask.OPEN_PERMISSION)
    state = stage.file.stat()
    assert stage.group.allowed == [event]
    assert stage.told() == [Record(Kind.OPENED, 7, state.st_dev, state.st_ino, b"/pod")]
    assert event.descriptor is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(event.descriptor)


def test_only_who_waits_is_answered(stage: Stage) -> None:
    stage.happens(Mask.MODIFY | Mask.CLOSE_WRITE)
    assert stage.group.allowed == []
    assert [record.kind for record in stage.told()] == [Kind.MODIFIED, Kind.CLOSED]


def test_who_is_ignored_is_answered_and_not_told_of(stage: Stage) -> None:
    event = stage.happens(Mask.OPEN_PERMISSION, pid=99)
    assert stage.group.allowed == [event]
    assert stage.told() == []


def test_who_is_gone_is_told_of_without_a_cgroup(stage: Stage) -> None:
    stage.happens(Mask.OPEN, pid=8)
    assert [(record.pid, record.cgroup) for record in stage.told()] == [(8, b"")]


def test_an_agent_that_does_not_read_keeps_nobody_waiting_and_learns_of_the_loss(
    stage: Stage,
) -> None:
    events = [stage.happens(Mask.OPEN_PERMISSION) for _ in range(3000)]
    assert stage.group.allowed == events
    told = stage.told()
    assert 0 < len(told) < len(events)
    assert {record.kind for record in told} == {Kind.OPENED}
    stage.happens(Mask.OPEN_PERMISSION)
    assert [record.kind for record in stage.told()] == [Kind.LOST, Kind.OPENED]


def test_what_the_kernel_lost_is_told(stage: Stage) -> None:
    stage.group.events.append(Event(Mask.OVERFLOW, None, 0))
    stage.responder._answer()
    stage.group.fails = True
    stage.happens(Mask.OPEN)
    stage.group.fails = False
    stage.happens(Mask.OPEN)
    assert [record.kind for record in stage.told()] == [Kind.LOST, Kind.OPENED, Kind.OPENED]


def test_openers_are_asked_to_wait_where_the_kernel_can(stage: Stage) -> None:
    assert stage.watch() == Reply(0, permission=True)
    assert [Mask.OPEN_PERMISSION in mask for mask in stage.group.marks] == [True]


def test_without_permission_events_in_the_kernel_openers_run_on(stage: Stage) -> None:
    stage.group.refuses = errno.EINVAL
    assert stage.watch() == Reply(0, permission=False)
    (mask,) = stage.group.marks
    assert Mask.OPEN in mask
    assert Mask.OPEN_PERMISSION not in mask


def test_what_cannot_be_watched_is_said(stage: Stage) -> None:
    stage.group.refuses = errno.ENOSPC
    assert stage.watch().errno == errno.ENOSPC
    stage.group.refuses = None
    assert stage.watch(device=stage.folder.stat().st_dev + 1).errno == errno.ENOENT
    assert stage.group.marks == []


def test_an_agent_that_is_gone_ends_it(stage: Stage) -> None:
    stage.control.close()
    assert not stage.responder._obey()
