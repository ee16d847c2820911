"""Every way to get huge pages, in a pod each: what is reported equals what the kernel counts.

As the kernel's own self-tests of the hugetlb cgroup walk through them (charge_reserved_hugetlb.sh):
a file, anonymous, System V, memfd; private and shared; populated, written, neither; with
a reservation and without. Then exit, removal of the cgroup, partial truncate, unlink.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.kernel.agent_process import MIB, SOON, Agent, Api, Pod, until
from tests.testnode import cgroup_tree, naming
from tests.tracking import PAGE, Actor, pages_of

PAGES = 3
FLAGS = {"shared": "SHARED", "private": "PRIVATE"}
RESERVE = {"reserve": "", "noreserve": " | NORESERVE"}
POPULATE = " | 0x8000"


class Way(NamedTuple):
    kind: str
    sharing: str
    use: str
    reserve: str

    @property
    def name(self) -> str:
        return "-".join(self)

    def statements(self, path: Path) -> str:
        flags = FLAGS[self.sharing] + RESERVE[self.reserve]
        flags += POPULATE if self.use == "populate" else ""
        touch = f"; touch(a, 0, {PAGES - 1})" if self.use == "write" else ""
        match self.kind:
            case "file":
                begin = f"fd = create({str(path)!r}); os.ftruncate(fd, {PAGES} * PAGE)"
                return f"{begin}; a = map_pages({PAGES}, {flags}, fd){touch}"
            case "anonymous":
                return f"a = map_pages({PAGES}, {flags} | ANONYMOUS | HUGETLB){touch}"
            case "memfd":
                begin = f"fd = libc.memfd_create(b'm', 4); os.ftruncate(fd, {PAGES} * PAGE)"
                return f"{begin}; a = map_pages({PAGES}, {flags}, fd){touch}"
            case _:
                more = "0o10000" if self.reserve == "noreserve" else "0"
                begin = f"result = n = shmget(0, {PAGES}, {more}); a = libc.shmat(n, None, 0)"
                return f"{begin}{touch}"


WAYS = [
    Way(*each)
    for each in product(
        ("file", "anonymous", "memfd"), FLAGS, ("populate", "write", "neither"), RESERVE
    )
] + [Way("segment", "shared", *each) for each in product(("write", "neither"), RESERVE)]


@pytest.fixture
def remove_segments() -> Iterator[list[int]]:
    segments: list[int] = []
    with ExitStack() as stack:
        host = stack.enter_context(Actor())
        stack.callback(_remove, host, segments)
        yield segments


def _remove(host: Actor, segments: list[int]) -> None:
    while segments:
        host.do(f"libc.shmctl({segments.pop()}, 0, None)")


async def test_every_way_adds_up(
    agent: Agent,
    api: Api,
    hugetlbfs: Path,
    pages: Callable[[int], None],
    pod: Callable[[str], Pod],
    remove_segments: list[int],
) -> None:
    pages(PAGES * len(WAYS) + 2)
    await agent.start()
    await agent.ready()
    kubepods = agent.subtree / naming.kubepods("systemd")
    pods: dict[str, Pod] = {}
    for way in WAYS:
        await api.set("hugetlbquotas", way.name, "q", spec={"hard": {"hugepages-2Mi": "64Mi"}})
        pods[way.name] = pod(way.name)
        # Of a private mapping of a file a copy is charged beside what is in the file.
        await pods[way.name].start(f"{PAGES * 4}Mi", way.name)
    await until(lambda: sorted(api.listed()) == sorted(pods))
    for way in WAYS:
        result = pods[way.name].actor().do(way.statements(hugetlbfs / way.name))
        if way.kind == "segment":
            remove_segments.append(result)

    # While they run: what each uses is what its cgroup counts.
    held = {name: _mib(max(pages_of(each.cgroup))) for name, each in pods.items()}
    assert sum(held.values()) > 0
    await until(lambda: _in_use(api) == held, 2 * SOON)
    assert api.retained() == {}

    # Their processes end, their cgroups go.
    left: dict[str, int] = {}
    for name, each in pods.items():
        cgroup_tree.kill(each.cgroup)
        await until(lambda each=each: not cgroup_tree.populated(each.cgroup))  # type: ignore[misc]
        left[f"{name}/q"] = _mib(pages_of(each.cgroup)[0])
        each.end()
        await each.delete()
    assert left["file-shared-neither-reserve/q"] == _mib(PAGES)
    assert left["file-shared-write-noreserve/q"] == _mib(2)
    assert left["anonymous-private-write-reserve/q"] == 0
    await _settles(api, kubepods, left)

    # The last page of each file goes, then the files.
    for way in WAYS:
        if way.kind == "file":
            with (hugetlbfs / way.name).open("rb+") as file:
                file.truncate((PAGES - 1) * PAGE)
            left[f"{way.name}/q"] = max(0, left[f"{way.name}/q"] - _mib(1))
    await _settles(api, kubepods, left)
    for way in WAYS:
        if way.kind == "file":
            (hugetlbfs / way.name).unlink()
            left[f"{way.name}/q"] = 0
    await _settles(api, kubepods, left)

    # The segments at last: they are in no file that could be looked at.
    with Actor() as host:
        _remove(host, remove_segments)
    await _settles(api, kubepods, dict.fromkeys(left, 0))


async def _settles(api: Api, kubepods: Path, left: dict[str, int]) -> None:
    # Whoever watches opens has the file open for a moment.
    await until(lambda: pages_of(kubepods)[0] * PAGE == sum(left.values()) * MIB, SOON)
    expected = {quota: amount for quota, amount in left.items() if amount}
    try:
        await until(lambda: api.retained() == expected and not api.listed(), 2 * SOON)
    except TimeoutError:
        assert (api.retained(), api.listed()) == (expected, [])
    assert api.exact()["status"] == "True", api.exact()["message"]


def _in_use(api: Api) -> dict[str, int]:
    return {
        each["uid"]: int(each["inUse"].get("hugepages-2Mi", "0").removesuffix("Mi"))
        for each in api.status["pods"]
    }


def _mib(pages: int) -> int:
    return pages * PAGE // MIB
