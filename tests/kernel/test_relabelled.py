"""A pod whose labels move it to another quota leaves behind what it has filled in files."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.kernel.agent_process import SOON, Agent, Api, Pod, bind, until

A, B, C = "ns-p/a", "ns-p/b", "ns-p/c"


class Moved(Pod):
    """A pod of 16Mi that is moved by its labels, and fills files."""

    async def label(self, **labels: str) -> None:
        await self.api.set("pods", "ns-p", self.uid, metadata={"labels": labels})

    async def move(self, *quotas: str) -> None:
        """Have these quotas govern it, and wait until the report tells so."""
        await self.label(**{quota[-1]: "yes" for quota in quotas})
        await until(lambda: self.governed() == list(quotas))

    def governed(self) -> list[str]:
        """Those that the last report lists it under."""
        pods = self.api.status.get("pods", ())
        return [quota for pod in pods if pod["uid"] == self.uid for quota in pod["quotas"]]

    def fill(self, file: Path, pages: int) -> None:
        """Reserve pages, of which the first is touched."""
        self.actor().do(f"touch(map_pages({pages}, SHARED, create({str(file)!r})), 0)")


@pytest.fixture
async def moved(agent: Agent, api: Api, pages: Callable[[int], None]) -> AsyncIterator[Moved]:
    """Under quota a; b and c wait for it."""
    pages(8)
    for name in "abc":
        spec = {"hard": {"hugepages-2Mi": "64Mi"}, "podSelector": {"matchLabels": {name: "yes"}}}
        await api.set("hugetlbquotas", "ns-p", name, spec=spec)
    await agent.start()
    await agent.ready()
    pod = Moved(agent, "p")
    await pod.start("16Mi", "ns-p")
    await pod.move(A)
    yield pod
    if pod.cgroup.exists():
        pod.end()


async def end(pod: Pod) -> None:
    pod.end()
    await pod.delete()


def told(api: Api, point: Path) -> dict[str, tuple[str, str, bool]]:
    """Of each file at ``point``: bytes, the quotas that are told, whether it is retained."""
    files = [each for each in api.status.get("files", ()) if each["mount"] == str(point)]
    assert all((file["pod"], file["uid"]) == ("ns-p/p", "p") for file in files)
    return {
        file["path"]: (file["charged"], ",".join(file["quotas"]), file["retained"])
        for file in files
    }


def charged(api: Api, point: Path) -> list[tuple[str, str]]:
    """Quotas and bytes of each part of a file at ``point``."""
    return sorted(
        (",".join(file["quotas"]), file["charged"])
        for file in api.status.get("files", ())
        if file["mount"] == str(point)
    )


async def test_what_it_filled_stays_with_the_quota_that_was_charged(
    api: Api, hugetlbfs: Path, moved: Moved
) -> None:
    moved.fill(hugetlbfs / "one", 2)
    moved.actor().do("map_pages(1, PRIVATE | ANONYMOUS | HUGETLB)")
    await moved.move(B)
    await until(lambda: api.retained() == {A: 4})
    moved.fill(hugetlbfs / "two", 3)
    both = {"one": ("4Mi", A, True), "two": ("6Mi", B, False)}
    await until(lambda: told(api, hugetlbfs) == both, 2 * SOON)
    assert api.retained() == {A: 4}
    await end(moved)
    await until(lambda: api.retained() == {A: 4, B: 6})
    assert told(api, hugetlbfs) == {"one": ("4Mi", A, True), "two": ("6Mi", B, True)}
    (hugetlbfs / "one").unlink()
    await until(lambda: api.retained() == {B: 6}, SOON)
    (hugetlbfs / "two").unlink()
    await until(lambda: api.retained() == {}, SOON)
    assert api.exact()["status"] == "True"


async def test_removing_the_file_relieves_the_former_quota_while_the_pod_runs(
    api: Api, hugetlbfs: Path, moved: Moved
) -> None:
    maker = moved.actor()
    file, other = hugetlbfs / "file", hugetlbfs / "other"
    # By fallocate, unmapped; and at the last moment by mmap, of which no event tells.
    maker.do(f"fallocate(create({str(other)!r}), 0, 1)")
    await until(lambda: charged(api, hugetlbfs) == [(A, "2Mi")], 2 * SOON)
    maker.do(f"fd = create({str(file)!r}); address = map_pages(3, SHARED, fd)")
    await moved.move(B)
    await until(lambda: api.retained() == {A: 8})
    maker.do("unmap(address, 3); os.ftruncate(fd, 1 * PAGE)")
    await until(lambda: api.retained() == {A: 4}, SOON)
    maker.do(f"os.truncate({str(other)!r}, 0)")
    await until(lambda: api.retained() == {A: 2}, SOON)
    # What it takes from now on is the other's, in the same file too.
    maker.do("touch(map_pages(4, SHARED, fd), 3)")
    maker.do("os.close(fd)")
    await until(lambda: charged(api, hugetlbfs) == [(A, "2Mi"), (B, "6Mi")], 2 * SOON)
    assert api.retained() == {A: 2}
    await end(moved)
    await until(lambda: api.retained() == {A: 2, B: 6})
    for path in (file, other):
        path.unlink()
    await until(lambda: api.retained() == {}, SOON)
    assert api.exact()["status"] == "True"


async def test_a_file_removed_with_the_pods_end_relieves_the_quota_it_was_filled_under(
    api: Api, hugetlbfs: Path, moved: Moved
) -> None:
    moved.fill(hugetlbfs / "one", 2)
    await moved.move(B)
    moved.fill(hugetlbfs / "two", 3)
    await until(lambda: len(told(api, hugetlbfs)) == 2, 2 * SOON)
    (hugetlbfs / "one").unlink()
    await end(moved)
    await until(lambda: api.retained() == {B: 6})
    assert api.exact()["status"] == "True"


@pytest.mark.parametrize("kill", ["before", "after"])
async def test_kill_9_before_or_after_it_was_moved(
    agent: Agent, api: Api, hugetlbfs: Path, moved: Moved, kill: str
) -> None:
    """Before: it is moved while no agent runs."""
    moved.fill(hugetlbfs / "one", 2)
    await until(lambda: len(told(api, hugetlbfs)) == 1, 2 * SOON)
    if kill == "before":
        await agent.end(signal.SIGKILL)
        await moved.label(b="yes")
        await agent.start()
    else:
        await moved.label(b="yes")
        await until(lambda: moved.governed() == [B])
        await agent.end(signal.SIGKILL)
        await agent.start()
        await agent.ready()
    await until(lambda: moved.governed() == [B] and api.retained() == {A: 4})
    moved.fill(hugetlbfs / "two", 3)
    await until(lambda: len(told(api, hugetlbfs)) == 2, 2 * SOON)
    await agent.end(signal.SIGKILL)
    await end(moved)
    await agent.start()
    await until(lambda: api.retained() == {A: 4, B: 6})
    assert told(api, hugetlbfs) == {"one": ("4Mi", A, True), "two": ("6Mi", B, True)}
    assert api.exact()["status"] == "True"


async def test_back_under_the_first_quota_its_demand_has_it_all(
    api: Api, hugetlbfs: Path, moved: Moved
) -> None:
    moved.fill(hugetlbfs / "one", 1)
    await moved.move(B)
    moved.fill(hugetlbfs / "two", 2)
    await until(lambda: len(told(api, hugetlbfs)) == 2, 2 * SOON)
    await moved.move(A)
    await until(lambda: api.retained() == {B: 4})
    assert told(api, hugetlbfs)["one"] == ("2Mi", A, False)
    moved.fill(hugetlbfs / "three", 1)
    await until(lambda: len(told(api, hugetlbfs)) == 3, 2 * SOON)
    await moved.move(B)
    await until(lambda: api.retained() == {A: 4})
    await end(moved)
    await until(lambda: api.retained() == {A: 4, B: 4})
    assert api.exact()["status"] == "True"


async def test_one_quota_in_addition_is_not_charged_for_what_was_before(
    api: Api, hugetlbfs: Path, moved: Moved
) -> None:
    moved.fill(hugetlbfs / "one", 2)
    await moved.move(A, C)
    # The first is charged the pod's demand still, and that has it all.
    assert api.retained() == {}
    moved.fill(hugetlbfs / "two", 3)
    await until(lambda: len(told(api, hugetlbfs)) == 2, 2 * SOON)
    await end(moved)
    await until(lambda: api.retained() == {A: 4, f"{A},{C}": 6})
    assert api.exact()["status"] == "True"


async def test_governed_by_none_any_more_it_leaves_what_it_filled(
    api: Api, hugetlbfs: Path, moved: Moved
) -> None:
    moved.fill(hugetlbfs / "one", 2)
    await moved.move()
    await until(lambda: api.retained() == {A: 4})
    moved.fill(hugetlbfs / "two", 3)
    # What nobody was charged for goes to who governs it next.
    await until(lambda: len(told(api, hugetlbfs)) == 2, 2 * SOON)
    await moved.move(B)
    await until(lambda: api.retained() == {A: 4})
    await end(moved)
    await until(lambda: api.retained() == {A: 4, B: 6})
    assert api.exact()["status"] == "True"


async def test_it_counts_from_the_change_on_and_not_from_the_next_look(
    api: Api, hugetlbfs: Path, moved: Moved
) -> None:
    moved.fill(hugetlbfs / "one", 2)
    next_one = moved.actor()
    async with api.writing:
        await bind(api, "other", namespace="ns-p", labels={"a": "yes"})
        # No look is made before this report is written.
        await until(lambda: api.waiting)
        await moved.label(b="yes")
        await until(lambda: f"stays with {A}" in moved.agent.log.read_text())
        next_one.do(f"map_pages(3, SHARED, create({str(hugetlbfs / 'two')!r}))")
    await until(lambda: moved.governed() == [B] and api.retained() == {A: 4})
    await until(lambda: len(told(api, hugetlbfs)) == 2, 2 * SOON)
    await end(moved)
    await until(lambda: api.retained() == {A: 4, B: 6})


async def test_no_report_has_less_for_the_former_quota_than_it_is_owed(
    api: Api, hugetlbfs: Path, moved: Moved
) -> None:
    """While it is listed under the one its demand counts there; from then on what it left."""
    moved.fill(hugetlbfs / "one", 2)
    await moved.move(B)
    await end(moved)
    await until(lambda: not api.listed() and api.retained() == {A: 4})
    begun = False
    for report in api.reports:
        pods = report.get("pods") or ()
        listed = any(pod["uid"] == "p" and A in pod["quotas"] for pod in pods)
        begun |= listed
        retained = any(row["quotas"] == [A] for row in report.get("retained") or ())
        assert not begun or listed or retained, report
