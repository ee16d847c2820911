"""Who is charged for which file, as the kernel's charge list has it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.agent_process import SOON, Agent, Api, Json, Pod, until
from tests.tracking import Actor, hand_over
from tests.tracking import hugetlbfs as mounted


@pytest.fixture
async def two(
    agent: Agent, api: Api, pages: Callable[[int], None], pod: Callable[[str], Pod]
) -> tuple[Pod, Pod]:
    """Two pods, and the agent."""
    pages(12)
    await agent.start()
    await agent.ready()
    pods = pod("a"), pod("b")
    for each in pods:
        await each.start("16Mi")
    await until(lambda: sorted(api.listed()) == ["a", "b"])
    return pods


async def end(*pods: Pod) -> None:
    for each in pods:
        each.end()
        await each.delete()


def charged(api: Api, point: Path) -> dict[tuple[str, str], str]:
    """What is charged to whom in the files at ``point``."""
    return {
        (file["path"], file["uid"]): file["charged"]
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
    await until(lambda: api.left() == {"a": 4, "b": 6})
    assert charged(api, hugetlbfs) == {("a", "a"): "4Mi", ("b", "b"): "6Mi"}
    (hugetlbfs / "b").unlink()
    await until(lambda: api.left() == {"a": 4}, SOON)
    assert charged(api, hugetlbfs) == {("a", "a"): "4Mi"}
    (hugetlbfs / "a").unlink()
    await until(lambda: api.left() == {}, SOON)


async def test_in_one_file_the_first_to_reserve_a_page_is_charged(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    first, second = (each.actor() for each in two)
    first.do(f"fd = create({str(hugetlbfs / 'shared')!r}); map_pages(2, SHARED, fd)")
    await until(lambda: charged(api, hugetlbfs) == {("shared", "a"): "4Mi"}, 2 * SOON)
    second.do(f"fd = create({str(hugetlbfs / 'shared')!r}); touch(map_pages(5, SHARED, fd), 0, 4)")
    both = {("shared", "a"): "4Mi", ("shared", "b"): "6Mi"}
    await until(lambda: charged(api, hugetlbfs) == both, 2 * SOON)
    await end(*two)
    await until(lambda: api.left() == {"a": 4, "b": 6})
    with Actor() as host:
        host.do(f"os.truncate({str(hugetlbfs / 'shared')!r}, 3 * PAGE)")
        await until(lambda: api.left() == {"a": 4, "b": 2}, SOON)
        host.do(f"os.truncate({str(hugetlbfs / 'shared')!r}, 1 * PAGE)")
        await until(lambda: api.left() == {"a": 2}, SOON)
    assert charged(api, hugetlbfs) == {("shared", "a"): "2Mi"}


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
        await until(lambda: api.left() == {"a": 4, "b": 6})
        (hugetlbfs / "file").unlink()
        (hugetlbfs / "other").unlink()
        await until(lambda: api.left() == {"a": 4}, SOON)
        assert charged(api, hugetlbfs) == {("file (deleted)", "a"): "4Mi"}
        host.do("os.close(fd)")
        await until(lambda: api.left() == {}, SOON)


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
    await until(lambda: api.left() == {"a": 2, "b": 4})
    assert charged(api, hugetlbfs) == {("a", "a"): "2Mi", ("b2", "b"): "4Mi"}


async def test_what_the_host_makes_is_the_systems(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    before = int(api.status["system"].get("hugepages-2Mi", "0").removesuffix("Mi"))
    with Actor() as host:
        host.do(f"touch(map_pages(2, SHARED, create({str(hugetlbfs / 'host')!r})), 0, 1)")
        await until(lambda: charged(api, hugetlbfs) == {("host", ""): "4Mi"}, SOON)
    assert api.status["system"] == {"hugepages-2Mi": f"{before + 4}Mi"}
    assert api.charged() == {}


async def test_files_that_no_mount_shows_are_told_by_their_names(
    api: Api, two: tuple[Pod, Pod]
) -> None:
    one, other = (each.actor() for each in two)
    one.do("fd = memfd(); os.ftruncate(fd, 2 * PAGE); map_pages(2, SHARED, fd)")
    segment = other.do("result = n = shmget(0, 3); a = libc.shmat(n, None, 0)")
    try:
        await until(lambda: api.charged() == {"a": 4, "b": 6})
        assert {(f["path"], f["mount"], f["uid"], f["charged"]) for f in api.status["files"]} >= {
            ("memfd:m", "", "a", "4Mi"),
            ("SYSV00000000", "", "b", "6Mi"),
        }
        await end(*two)
        await until(lambda: api.left() == {"b": 6})
    finally:
        with Actor() as host:
            host.do(f"libc.shmctl({segment}, 0, None)")
    await until(lambda: api.left() == {}, SOON)


async def test_what_makes_up_for_each_other_is_seen_too(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    """The sum over all pods stands still; theirs do not."""
    one, other = (each.actor() for each in two)
    one.do(f"fd = create({str(hugetlbfs / 'a')!r}); fallocate(fd, 0, 2)")
    other.do(f"fd = create({str(hugetlbfs / 'b')!r}); fallocate(fd, 0, 1)")
    await until(lambda: api.charged() == {"a": 4, "b": 2}, SOON)
    one.do("os.ftruncate(fd, PAGE)")
    other.do("fallocate(fd, 1, 1)")
    await until(lambda: api.charged() == {"a": 2, "b": 4}, SOON)


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
        await until(lambda: api.left() == {"a": 4, "b": 6})
        subprocess.run(["umount", hugetlbfs], check=True)
        expected = {("a", "a"): "4Mi", ("b", "b"): "6Mi"}
        await until(lambda: charged(api, again) == expected, 2 * SOON)
        (again / "b").unlink()
        await until(lambda: api.left() == {"a": 4}, SOON)
        assert charged(api, again) == {("a", "a"): "4Mi"}
        (again / "a").unlink()
    finally:
        subprocess.run(["umount", again], check=True)
    await until(lambda: str(again) not in mounts() and api.left() == {}, 2 * SOON)
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


async def test_a_file_system_at_its_own_limit_is_told_apart_from_a_quota(
    api: Api, two: tuple[Pod, Pod], tmp_path: Path
) -> None:
    with mounted(tmp_path / "small", "size=4M") as superblock:
        two[0].actor().do(f"map_pages(2, SHARED, create({str(superblock.path / 'file')!r}))")
        await until(lambda: api.condition("MountsHaveRoom").get("status") == "False", SOON)
        assert str(superblock.path) in api.condition("MountsHaveRoom")["message"]


async def test_it_is_reclaimed_when_all_are_gone_who_are_charged_and_nobody_holds_it(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    one, other = (each.actor() for each in two)
    for actor, name in ((one, "both"), (other, "both"), (one, "a"), (other, "b")):
        actor.do(f"fd = create({str(hugetlbfs / name)!r})")
        actor.do("map_pages(1, SHARED, fd, os.fstat(fd).st_size // PAGE)")
        actor.do("os.ftruncate(fd, os.fstat(fd).st_size or PAGE)")
    await until(lambda: sum(api.charged().values()) == 8, SOON)
    with Actor() as host:
        host.do(f"fd = os.open({str(hugetlbfs / 'held')!r}, os.O_RDWR | os.O_CREAT)")
        hand = f"/proc/{host.pid}/fd/" + str(host.do("result = fd"))
        one.do(f"map_pages(1, SHARED, os.open({hand!r}, os.O_RDWR))")
        await api.wish(reclaim=[{"uid": "a", "after": "0s"}])
        await end(two[0])
        await until(lambda: not (hugetlbfs / "a").exists(), 4 * SOON)
        assert (hugetlbfs / "held").exists()
        assert (hugetlbfs / "both").exists()
        await until(lambda: api.published, SOON)  # after the file is gone
        (event,) = api.published
        assert (event["reason"], event["regarding"]["kind"]) == ("Reclaimed", "Pod")
        assert (event["regarding"]["namespace"], event["regarding"]["uid"]) == ("ns", "a")
        await api.wish(reclaim=[{"uid": uid, "after": "0s"} for uid in "ab"])
        await end(two[1])
        await until(lambda: sorted(f.name for f in hugetlbfs.iterdir()) == ["held"], 4 * SOON)
        await until(lambda: api.left() == {"a": 2}, SOON)
    await until(lambda: api.left() == {}, 4 * SOON)
    assert list(hugetlbfs.iterdir()) == []
