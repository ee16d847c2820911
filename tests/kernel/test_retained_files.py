"""The agent reports which pod is charged for which file."""

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
    """Start the agent and two pods."""
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
    """Return the charge of each file at ``point`` by path and UID of the pod."""
    return {
        (file["path"], file["uid"]): file["charged"]
        for file in api.status.get("files", ())
        if file["mount"] == str(point)
    }


async def test_uncharges_the_pod_of_a_removed_file(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    for each, pages in zip(two, (2, 3), strict=True):
        # The pages are reserved and not touched.
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


async def test_charges_the_first_pod_that_reserves_a_page(
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


async def test_an_open_file_without_a_name_stays_charged_until_it_is_closed(
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


async def test_reports_existing_charges_after_a_time_without_an_agent(
    agent: Agent, api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    """One pod left less than it held, and the first file of the other pod was removed."""
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


async def test_reports_the_hosts_files_as_system(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    before = int(api.status["system"].get("hugepages-2Mi", "0").removesuffix("Mi"))
    with Actor() as host:
        host.do(f"touch(map_pages(2, SHARED, create({str(hugetlbfs / 'host')!r})), 0, 1)")
        await until(lambda: charged(api, hugetlbfs) == {("host", ""): "4Mi"}, SOON)
    assert api.status["system"] == {"hugepages-2Mi": f"{before + 4}Mi"}
    assert api.charged() == {}


async def test_reports_files_without_a_mount_by_name(api: Api, two: tuple[Pod, Pod]) -> None:
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


async def test_sees_two_changes_that_leave_the_sum_unchanged(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    """The sum of all pods stays the same, but each pod's charge changes."""
    one, other = (each.actor() for each in two)
    one.do(f"fd = create({str(hugetlbfs / 'a')!r}); fallocate(fd, 0, 2)")
    other.do(f"fd = create({str(hugetlbfs / 'b')!r}); fallocate(fd, 0, 1)")
    await until(lambda: api.charged() == {"a": 4, "b": 2}, SOON)
    one.do("os.ftruncate(fd, PAGE)")
    other.do("fallocate(fd, 1, 1)")
    await until(lambda: api.charged() == {"a": 2, "b": 4}, SOON)


async def test_reports_the_same_files_at_another_mount_point(
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


async def test_reports_the_pages_of_a_mount(
    api: Api, hugetlbfs: Path, two: tuple[Pod, Pod]
) -> None:
    def mount() -> Json | None:
        found = (each for each in api.status["mounts"] if each["path"] == str(hugetlbfs))
        return next(found, None)

    two[0].actor().do(f"fallocate(create({str(hugetlbfs / 'file')!r}), 0, 2)")
    expected = {"path": str(hugetlbfs), "pageSize": "hugepages-2Mi", "used": "4Mi"}
    await until(lambda: mount() == expected, 2 * SOON)


async def test_reports_a_mount_that_is_full_up_to_its_own_limit(
    api: Api, two: tuple[Pod, Pod], tmp_path: Path
) -> None:
    with mounted(tmp_path / "small", "size=4M") as superblock:
        two[0].actor().do(f"map_pages(2, SHARED, create({str(superblock.path / 'file')!r}))")
        await until(lambda: api.condition("MountsHaveRoom").get("status") == "False", SOON)
        assert str(superblock.path) in api.condition("MountsHaveRoom")["message"]


async def test_reclaims_a_file_if_all_charged_pods_are_gone_and_no_process_holds_it(
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
