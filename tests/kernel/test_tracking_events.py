"""Which events the kernel gives for which call on a hugetlbfs: what the trackers stand on.

fanotify with a mark on the file system tells of open, fallocate and close; inotify on
the directory of create, ftruncate, unlink and rename. Nothing tells of mmap and faults.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asyncinotify import Inotify
from asyncinotify import Mask as Inotified

from hugetlb_quota.node.fanotify import Fanotify, Mask
from hugetlb_quota.node.hugetlbfs import Superblock
from tests.tracking import Actor, hugetlbfs

FANOTIFY = Mask.OPEN | Mask.MODIFY | Mask.CLOSE_WRITE | Mask.CLOSE_NOWRITE
INOTIFY = (
    Inotified.CREATE | Inotified.DELETE | Inotified.MOVED_FROM | Inotified.MOVED_TO
) | Inotified.MODIFY


class Told:
    """What fanotify and inotify have told since the last look."""

    def __init__(self, point: Path) -> None:
        self.fanotify = Fanotify()
        self.fanotify.mark(str(point), FANOTIFY)
        self.inotify = Inotify(sync_timeout=0.0)
        self.inotify.add_watch(point, INOTIFY)

    def since(self) -> set[str]:
        told = set()
        while events := self.fanotify.read():
            for event in events:
                assert event.descriptor is not None
                os.close(event.descriptor)
                told |= {f"fanotify {bit.name} by {event.pid}" for bit in event.mask}
        while (change := self.inotify.sync_get()) is not None:
            told |= {f"inotify {bit.name} {change.name}" for bit in change.mask}
        return told

    def close(self) -> None:
        os.close(self.fanotify.fileno())
        self.inotify.close()


@pytest.fixture
def mounted(tmp_path: Path, pages: Callable[[int], None]) -> Iterator[Superblock]:
    pages(8)
    with hugetlbfs(tmp_path / "huge") as superblock:
        yield superblock


@pytest.fixture
def told(mounted: Superblock) -> Iterator[Told]:
    told = Told(mounted.path)
    yield told
    told.close()


FILE = "fd = create('a'); os.ftruncate(fd, 4 * PAGE)"
MAPPED = f"{FILE}; a = map_pages(4, SHARED, fd)"


@pytest.mark.parametrize(
    ("before", "call", "expected"),
    [
        ("", "fd = create('a')", {"fanotify OPEN", "inotify CREATE a"}),
        (FILE, "os.open('a', os.O_RDONLY)", {"fanotify OPEN"}),
        (FILE, "os.open(f'/proc/self/fd/{fd}', os.O_RDWR)", {"fanotify OPEN"}),
        (FILE, "os.open('a', os.O_PATH)", set()),
        (FILE, "os.stat('a')", set()),
        (
            "",
            "fd = os.open('.', os.O_RDWR | os.O_TMPFILE)",
            {"fanotify OPEN"},
        ),
        ("", "os.mknod('a')", {"inotify CREATE a"}),
        ("", "os.mkdir('a')", {"inotify CREATE a", "inotify ISDIR a"}),
        (FILE, "os.ftruncate(fd, 6 * PAGE)", {"inotify MODIFY a"}),
        (FILE, "os.ftruncate(fd, PAGE)", {"inotify MODIFY a"}),
        (FILE, "os.truncate('a', PAGE)", {"inotify MODIFY a"}),
        (
            FILE,
            "fd = os.open('a', os.O_RDWR | os.O_TRUNC)",
            {"fanotify OPEN", "inotify MODIFY a"},
        ),
        (FILE, "fallocate(fd, 0, 2)", {"fanotify MODIFY", "inotify MODIFY a"}),
        (MAPPED, "fallocate(fd, 0, 1, PUNCH_HOLE)", {"fanotify MODIFY", "inotify MODIFY a"}),
        (
            f"{MAPPED}; touch(a, 0)",
            "checked(libc.madvise(ctypes.c_void_p(a), ctypes.c_size_t(PAGE), 9), 'madvise')",
            {"fanotify MODIFY", "inotify MODIFY a"},
        ),
        (FILE, "a = map_pages(4, SHARED, fd)", set()),
        ("fd = create('a')", "a = map_pages(4, SHARED, fd)", set()),
        (MAPPED, "touch(a, 0)", set()),
        (MAPPED, "os.close(fd)", set()),
        (f"{MAPPED}; os.close(fd)", "unmap(a, 4)", {"fanotify CLOSE_WRITE"}),
        (
            f"{FILE}; os.close(fd); fd = os.open('a', os.O_RDONLY)",
            "os.close(fd)",
            {"fanotify CLOSE_NOWRITE"},
        ),
        (FILE, "os.dup(fd); os.close(fd)", set()),
        (f"{FILE}; os.close(fd)", "os.unlink('a')", {"inotify DELETE a"}),
        (MAPPED, "os.unlink('a')", {"inotify DELETE a"}),
        (f"{FILE}; os.unlink('a')", "os.ftruncate(fd, PAGE)", {"inotify MODIFY a"}),
        (FILE, "os.rename('a', 'b')", {"inotify MOVED_FROM a", "inotify MOVED_TO b"}),
        (FILE, "os.link('a', 'b')", {"inotify CREATE b"}),
        (
            f"{FILE}; pid = os.fork(); pid or (signal.pause(), os._exit(0))",
            "os.close(fd)",
            set(),
        ),
    ],
)
def test_events(
    mounted: Superblock, told: Told, before: str, call: str, expected: set[str]
) -> None:
    with Actor() as actor:
        actor.do(f"os.chdir({str(mounted.path)!r})")
        actor.do(before)
        told.since()
        actor.do(call)
        assert {word.removesuffix(f" by {actor.pid}") for word in told.since()} == expected
        actor.do("'pid' in globals() and os.kill(pid, 9)")


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_a_process_that_ends_closes_what_it_has_mapped(
    mounted: Superblock, told: Told, end: str
) -> None:
    with Actor() as actor:
        actor.do(f"os.chdir({str(mounted.path)!r}); {MAPPED}; os.close(fd)")
        told.since()
        (actor.exit if end == "exit" else actor.kill)()
        assert told.since() == {f"fanotify CLOSE_WRITE by {actor.pid}"}


def test_who_inherits_a_descriptor_is_told_of_only_as_the_last_to_close_it(
    mounted: Superblock, told: Told
) -> None:
    with Actor() as actor:
        actor.do(f"os.chdir({str(mounted.path)!r}); {FILE}")
        told.since()
        child = actor.do(
            "r, w = os.pipe()\n"
            "result = child = os.fork()\n"
            "if child == 0:\n"
            "    os.close(w)\n"
            "    os.read(r, 1)\n"
            "    map_pages(1, SHARED, fd)\n"
            "    os._exit(0)"
        )
        actor.do("os.close(fd)")
        assert told.since() == set()
        actor.do("os.close(w); os.waitpid(child, 0)")
        assert told.since() == {f"fanotify CLOSE_WRITE by {child}"}


def test_who_is_handed_a_descriptor_is_not_told_of(
    mounted: Superblock, told: Told, tmp_path: Path
) -> None:
    socket = str(tmp_path / "socket")
    with Actor() as giver, Actor() as receiver:
        giver.do(f"fd = create({str(mounted.path / 'a')!r})")
        receiver.do(f"s = socket.socket(socket.AF_UNIX); s.bind({socket!r}); s.listen()")
        told.since()
        giver.do(
            f"s = socket.socket(socket.AF_UNIX); s.connect({socket!r});"
            "socket.send_fds(s, [b'x'], [fd])"
        )
        receiver.do("fd = socket.recv_fds(s.accept()[0], 1, 1)[1][0]; map_pages(1, SHARED, fd)")
        giver.do("os.close(fd)")
        assert told.since() == set()
        receiver.do("os.close(fd)")
        receiver.exit()
        assert told.since() == {f"fanotify CLOSE_WRITE by {receiver.pid}"}


def test_the_kernels_own_mount_can_be_marked_and_tells_of_nothing_but_reopening(
    kernel: None,
) -> None:
    with Fanotify() as group, Actor() as actor:
        actor.do("fd = libc.memfd_create(b'm', 4 | 1)")
        group.mark(f"/proc/{actor.pid}/fd/{actor.do('result = fd')}", FANOTIFY)
        actor.do("other = libc.memfd_create(b'n', 4 | 1); os.ftruncate(other, PAGE)")
        assert group.read() == []
        actor.do("again = os.open(f'/proc/self/fd/{fd}', os.O_RDWR)")
        (event,) = group.read()
        assert event.mask == Mask.OPEN
        assert event.pid == actor.pid
        assert event.descriptor is not None
        os.close(event.descriptor)
