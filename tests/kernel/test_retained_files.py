"""Who is charged for which file: told apart by files, so that the right quota is relieved."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.agent_process import SOON, Agent, Api, Json, Pod, until
from tests.tracking import Actor, hand_over

A, B = "ns-a/q", "ns-b/q"


@pytest.fixture
async def two(
    agent: Agent, api: Api, pages: Callable[[int], None], pod: Callable[[str], Pod]
) -> tuple[Pod, Pod]:
    """Two pods under quotas of their own, and the agent."""
    pages(12)
    await agent.start()
    await agent.ready()
    pods = pod("a"), pod("b")
    for each in pods:
        namespace = f"ns-{each.uid}"
        await api.set("hugetlbquotas", namespace, "q", spec={"hard": {"hugepages-2Mi": "64Mi"}})
        await each.start("16Mi", namespace)
    await until(lambda: api.listed() == ["a", "b"])
    return pods


async def end(*pods: Pod) -> None:
    for each in pods:
        each.end()
        await each.delete()


def charged(api: Api, point: Path) -> dict[tuple[str, str], str]:
    """What is charged to whom in the files at ``point``."""
    return {
        (file["path"], file["pod"]): file["charged"]
        for file in api.status.get("files", ())
        if file["mount"] == str(point)
    }


async def test_whose_file_is_removed_is_relieved(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    for each, pages in zip(two, (2, 3), strict=True):
        # Reserved and not touched: only its mapping tells.
        each.actor().do(f"map_pages({pages}, SHARED, create({str(hugetlbfs / each.uid)!r}))")
    await until(lambda: len(charged(api, hugetlbfs)) == 2, 2 * SOON)
    await end(*two)
    await until(lambda: api.retained() == {A: 4, B: 6})
    assert charged(api, hugetlbfs) == {("a", "ns-a/a"): "4Mi", ("b", "ns-b/b"): "6Mi"}
    (entry,) = (file for file in api.status["files"] if file["path"] == "b")
    assert (entry["uid"], entry["quotas"], entry["retained"]) == ("b", [B], True)
    (hugetlbfs / "b").unlink()
    await until(lambda: api.retained() == {A: 4}, SOON)
    assert charged(api, hugetlbfs) == {("a", "ns-a/a"): "4Mi"}
    assert api.exact()["status"] == "True"
    (hugetlbfs / "a").unlink()
    await until(lambda: api.retained() == {}, SOON)


async def test_in_one_file_the_first_to_reserve_a_page_is_charged(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    first, second = (each.actor() for each in two)
    first.do(f"fd = create({str(hugetlbfs / 'shared')!r}); map_pages(2, SHARED, fd)")
    await until(lambda: charged(api, hugetlbfs) == {("shared", "ns-a/a"): "4Mi"}, 2 * SOON)
    second.do(f"fd = create({str(hugetlbfs / 'shared')!r}); touch(map_pages(5, SHARED, fd), 0, 4)")
    both = {("shared", "ns-a/a"): "4Mi", ("shared", "ns-b/b"): "6Mi"}
    await until(lambda: charged(api, hugetlbfs) == both, 2 * SOON)
    await end(*two)
    await until(lambda: api.retained() == {A: 4, B: 6})
    with Actor() as host:
        host.do(f"os.truncate({str(hugetlbfs / 'shared')!r}, 3 * PAGE)")
        await until(lambda: api.retained() == {A: 4, B: 2}, SOON)
        host.do(f"os.truncate({str(hugetlbfs / 'shared')!r}, 1 * PAGE)")
        await until(lambda: api.retained() == {A: 2}, SOON)
    assert charged(api, hugetlbfs) == {("shared", "ns-a/a"): "2Mi"}
    assert api.exact()["status"] == "True"


async def test_a_file_that_is_open_without_a_name_stays_charged_until_it_is_closed(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod], tmp_path: Path
) -> None:
    a, b = two
    maker = a.actor()
    maker.do(f"fd = create({str(hugetlbfs / 'file')!r}); touch(map_pages(2, SHARED, fd), 0)")
    b.actor().do(f"map_pages(3, SHARED, create({str(hugetlbfs / 'other')!r}))")
    with Actor() as host:
        hand_over(maker, host, tmp_path / "socket")
        await until(lambda: len(charged(api, hugetlbfs)) == 2, 2 * SOON)
        await end(a, b)
        await until(lambda: api.retained() == {A: 4, B: 6})
        (hugetlbfs / "file").unlink()
        (hugetlbfs / "other").unlink()
        await until(lambda: api.retained() == {A: 4}, SOON)
        host.do("os.close(fd)")
        await until(lambda: api.retained() == {}, SOON)
    assert api.exact()["status"] == "True"


async def test_what_happened_while_no_agent_ran_is_told_by_what_is_there(
    agent: Agent, api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    """One left less than it held, the other's first file was removed."""
    a, b = two
    one, other = a.actor(), b.actor()
    one.do(f"map_pages(1, SHARED, create({str(hugetlbfs / 'a')!r}))")
    one.do("map_pages(3, PRIVATE | ANONYMOUS | HUGETLB)")
    for name in ("b1", "b2"):
        other.do(f"map_pages(2, SHARED, create({str(hugetlbfs / name)!r}))")
    await until(lambda: len(charged(api, hugetlbfs)) == 3, 2 * SOON)
    await agent.end(signal.SIGKILL)
    await end(a, b)
    (hugetlbfs / "b1").unlink()
    await agent.start()
    await until(lambda: api.retained() == {A: 2, B: 4})
    assert charged(api, hugetlbfs) == {("a", "ns-a/a"): "2Mi", ("b2", "ns-b/b"): "4Mi"}
    assert api.exact()["status"] == "True"


async def test_what_the_host_makes_is_the_systems(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    with Actor() as host:
        host.do(f"touch(map_pages(2, SHARED, create({str(hugetlbfs / 'host')!r})), 0, 1)")
        await until(lambda: charged(api, hugetlbfs) == {("host", ""): "4Mi"}, 2 * SOON)
    assert "hugepages-2Mi" in api.status["system"]
    assert api.retained() == {}


async def test_a_file_system_that_is_seen_at_another_place_has_the_same_files(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod], tmp_path: Path
) -> None:
    def mounts() -> set[str]:
        return {each["path"] for each in api.status["mounts"]}

    again = tmp_path / "again"
    again.mkdir()
    subprocess.run(["mount", "--bind", hugetlbfs, again], check=True)
    try:
        for each, pages in zip(two, (2, 3), strict=True):
            each.actor().do(f"map_pages({pages}, SHARED, create({str(hugetlbfs / each.uid)!r}))")
        await until(lambda: len(charged(api, hugetlbfs)) == 2, 2 * SOON)
        await end(*two)
        await until(lambda: api.retained() == {A: 4, B: 6})
        subprocess.run(["umount", hugetlbfs], check=True)
        expected = {("a", "ns-a/a"): "4Mi", ("b", "ns-b/b"): "6Mi"}
        await until(lambda: charged(api, again) == expected, 2 * SOON)
        (again / "b").unlink()
        await until(lambda: api.retained() == {A: 4}, SOON)
        assert charged(api, again) == {("a", "ns-a/a"): "4Mi"}
        assert api.exact()["status"] == "True"
        (again / "a").unlink()
    finally:
        subprocess.run(["umount", again], check=True)
    await until(lambda: str(again) not in mounts() and api.retained() == {}, 2 * SOON)
    assert str(hugetlbfs) not in mounts()


async def test_a_file_system_is_told_of_with_what_it_holds(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    def mount() -> Json | None:
        found = (each for each in api.status["mounts"] if each["path"] == str(hugetlbfs))
        return next(found, None)

    two[0].actor().do(f"fallocate(create({str(hugetlbfs / 'file')!r}), 0, 2)")
    expected = {"path": str(hugetlbfs), "pageSize": "hugepages-2Mi", "used": "4Mi"}
    await until(lambda: mount() == expected, 2 * SOON)
