"""HostReader: how often the reader reads the charge list, and how it uses a cut list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent import read
from hugetlb_quota.agent.read import HostReader
from hugetlb_quota.node.charge_list import Cgroup, ChargeList
from hugetlb_quota.node.charge_reader import ChargeListUnreadable, ChargeReader, ReaderPauses
from hugetlb_quota.node.host import HostRoot
from hugetlb_quota.page_size import PageSize

SMALL = PageSize(2 << 20)
AT_REST = ChargeList((), (), {}, {}, {}, {}, {}, at_rest=True)

Answer = ChargeList | Exception


class Reader:
    """Gives the answers in turn, and then repeats the last answer."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.requests = list(answers), 0

    async def read(self, largest: int | None = None) -> ChargeList:
        self.requests += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def charge(pages: int) -> Charge:
    return Charge({SMALL: pages * SMALL.bytes}).without_zeros()


def count(cgroup: Path, pages: int) -> None:
    """Make a cgroup that counts ``pages``, with a process in it."""
    cgroup.mkdir(parents=True, exist_ok=True)
    for name in ("rsvd.current", "current"):
        (cgroup / f"hugetlb.2MB.{name}").write_text(f"{pages * SMALL.bytes}\n")
    (cgroup / "cgroup.events").write_text("populated 1\n")


def listed(cgroup2: Path, **pods: int) -> ChargeList:
    """Return a list that is cut off; ``pods`` are the charged pages by UID."""
    cgroups, own = {}, dict[int, Mapping[PageSize, int]]()
    parent = cgroup2.stat().st_ino
    for id_, (uid, pages) in enumerate(pods.items(), 1 << 40):
        cgroups[id_] = Cgroup(id_, f"/kubepods/pod{uid}", (parent, 1 << 39, id_), {}, {})
        own[id_] = {SMALL: pages}
    root = (cgroup2 / "kubepods").stat().st_ino
    cgroups[root] = Cgroup(root, "/kubepods", (parent, root), {SMALL: 1 << 20}, {})
    return replace(AT_REST, cgroups=cgroups, own=own, at_rest=False, mappings_left_out=True)


@pytest.fixture
def host(tmp_path: Path) -> Callable[[Reader], HostReader]:
    """Return a function from a reader to the HostReader of a host without pods."""
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/mountinfo").touch()
    cgroup2 = tmp_path / "cgroup2"
    cgroup2.mkdir()
    (cgroup2 / "cgroup.controllers").touch()

    def make(reader: Reader) -> HostReader:
        charge_reader = cast(ChargeReader, reader)
        return HostReader(HostRoot(tmp_path), cgroup2, (cgroup2,), (SMALL,), charge_reader)

    return make


async def test_makes_no_second_request_to_a_reader_that_pauses(
    host: Callable[[Reader], HostReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "AFTER_FAILURE", 3600.0)
    reader = Reader(ReaderPauses("It failed.", 5.0), ReaderPauses("It failed.", 4.0))
    reading = host(reader)
    first = await reading.read(None)
    assert reader.requests == 1
    # The sentence stays the same; otherwise each pass would write a new report.
    assert (await reading.read(None)).unreadable == first.unreadable == "It failed."


async def test_makes_a_second_request_after_a_failure(
    host: Callable[[Reader], HostReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "AFTER_FAILURE", 0.0)
    reader = Reader(ChargeListUnreadable("It was killed."), AT_REST)
    assert (await host(reader).read(None)).unreadable == ""
    assert reader.requests == 2


async def test_counters_bound_what_a_cut_list_lacks_of_gone_pods(
    host: Callable[[Reader], HostReader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The live pod has ten pages and a million mappings. Two gone pods hold six pages."""
    monkeypatch.setattr(read, "AGAIN", 0.0)
    kubepods = tmp_path / "cgroup2/kubepods"
    count(kubepods, 16)
    count(kubepods / "podlive", 10)
    reader = Reader(listed(kubepods.parent, live=3, one=4, two=2))
    reading = await host(reader).read(None)
    assert reader.requests == 2  # a third list would be cut off too
    assert (reading.whole, reading.missing) == (False, Charge())
    assert reading.charged == {"live": charge(10), "one": charge(4), "two": charge(2)}
    reader = Reader(listed(kubepods.parent, live=3, one=4))
    assert (await host(reader).read(None)).missing == charge(2)


async def test_pages_given_back_during_the_read_do_not_lower_the_bound(
    host: Callable[[Reader], HostReader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "AGAIN", 0.0)
    kubepods = tmp_path / "cgroup2/kubepods"
    count(kubepods, 6)

    class Late(Reader):
        async def read(self, largest: int | None = None) -> ChargeList:
            answer = await super().read(largest)
            if self.requests == 2:
                count(kubepods, 2)  # pod "one" gives four pages back after the walk read its row
            return answer

    reading = await host(Late(listed(kubepods.parent, one=4))).read(None)
    assert reading.missing == charge(2)
