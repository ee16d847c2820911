"""How the host is read: what is asked of the reader, and how often."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from hugetlb_quota.agent import read
from hugetlb_quota.agent.read import HostReader
from hugetlb_quota.node.charge_list import ChargeList
from hugetlb_quota.node.charge_reader import ChargeListUnreadable, ChargeReader, ReaderPauses
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.page_size import PageSize

SMALL = PageSize(2 << 20)
AT_REST = ChargeList((), (), {}, {}, {}, {}, {}, at_rest=True)

Answer = ChargeList | Exception


class Reader:
    """Answers in turn; the last answer stays."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.asked = list(answers), 0

    async def read(self, largest: int | None = None) -> ChargeList:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def host(tmp_path: Path) -> Callable[[Reader], HostReader]:
    """Call it with a reader: a host of no pods that is read by it."""
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/mountinfo").touch()
    cgroup2 = tmp_path / "cgroup2"
    cgroup2.mkdir()
    (cgroup2 / "cgroup.controllers").touch()

    def make(reader: Reader) -> HostReader:
        asked = cast(ChargeReader, reader)
        return HostReader(HostRoot(tmp_path), cgroup2, (cgroup2,), (SMALL,), asked)

    return make


async def test_a_reader_that_pauses_is_not_asked_twice(
    host: Callable[[Reader], HostReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "AFTER_FAILURE", 3600.0)
    reader = Reader(ReaderPauses("It failed.", 5.0), ReaderPauses("It failed.", 4.0))
    reading = host(reader)
    first = await reading.read(None)
    assert reader.asked == 1
    # The words stay the same, or each pass would write a report of its own.
    assert (await reading.read(None)).unreadable == first.unreadable == "It failed."


async def test_a_reader_that_failed_once_is_asked_again(
    host: Callable[[Reader], HostReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "AFTER_FAILURE", 0.0)
    reader = Reader(ChargeListUnreadable("It was killed."), AT_REST)
    assert (await host(reader).read(None)).unreadable == ""
    assert reader.asked == 2
