"""The informer with a scripted source."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from hugetlb_quota.kube import errors, informer
from hugetlb_quota.kube.informer import Informer, ObjectKey
from hugetlb_quota.kube.resources import PODS, Resource
from tests.turns import Turns

Json = dict[str, Any]
Change = tuple[str | None, str | None, int]


def thing(name: str, version: int, value: str | None, uid: str = "") -> Json:
    metadata = {
        "namespace": "ns",
        "name": name,
        "uid": uid or f"uid-of-{name}",
        "resourceVersion": str(version),
    }
    return {"metadata": metadata, "value": value}


def page(version: int, *items: Json, more: str | None = None) -> Json:
    metadata = {"resourceVersion": str(version)} | ({"continue": more} if more else {})
    return {"metadata": metadata, "items": list(items)}


def event(kind: str, raw: Json) -> Json:
    return {"type": kind, "object": raw}


class Script:
    """Lists and watches in the order of the test's script, then an endless watch."""

    def __init__(self, *steps: Json | Sequence[Json | Exception] | Exception) -> None:
        self.steps = list(steps)
        self.asked: list[str] = []
        self.done = asyncio.Event()

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        field_selector: str | None = None,
        limit: int | None = None,
        continuation: str | None = None,
        timeout: float = 1,
    ) -> Json:
        self.asked.append(f"list {continuation or ''}".strip())
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        assert isinstance(step, dict)
        return step

    async def watch(
        self,
        resource: Resource,
        resource_version: str,
        namespace: str | None = None,
        *,
        field_selector: str | None = None,
    ) -> AsyncIterator[Json]:
        self.asked.append(f"watch {resource_version}")
        if not self.steps:
            self.done.set()
            await asyncio.Event().wait()
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        for each in step:
            if isinstance(each, Exception):
                raise each
            assert isinstance(each, dict)
            yield each


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "FIRST_BACKOFF", 0.0)


async def follow(
    *steps: Json | Sequence[Json | Exception] | Exception,
) -> tuple[Informer[str], list[Change], list[str]]:
    """Run through ``steps``; return the informer, the listener's calls, and the requests."""
    source = Script(*steps)
    project: Callable[[Json], str | None] = lambda raw: raw["value"]  # noqa: E731
    watched: Informer[str] = Informer(source, PODS, project)
    told: list[Change] = []
    watched.on_change(lambda old, new, version: told.append((old, new, version)))
    running = asyncio.create_task(watched.run())
    async with asyncio.timeout(5):
        await source.done.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return watched, told, source.asked


async def test_listeners_are_called_after_the_last_page() -> None:
    watched, told, asked = await follow(
        page(7, thing("a", 3, "A"), more="next"), page(7, thing("b", 5, "B"))
    )
    assert watched.synced.is_set()
    assert watched.store == {ObjectKey("ns", "a"): "A", ObjectKey("ns", "b"): "B"}
    assert told == [(None, "A", 3), (None, "B", 5)]
    assert asked == ["list", "list next", "watch 7"]
    assert watched.resource_version == 7


async def test_events_change_the_store_in_order() -> None:
    watched, told, asked = await follow(
        page(7, thing("a", 3, "A")),
        [
            event("MODIFIED", thing("a", 8, "A2")),
            event("ADDED", thing("b", 9, "B")),
            event("DELETED", thing("a", 10, "A2")),
        ],
    )
    assert watched.store == {("ns", "b"): "B"}
    assert told == [(None, "A", 3), ("A", "A2", 8), (None, "B", 9), ("A2", None, 10)]
    assert asked == ["list", "watch 7", "watch 10"]


async def test_other_tasks_run_between_many_events() -> None:
    turns = Turns()
    count = 10 * informer.BATCH
    events = [event("ADDED", thing(f"p{each}", 8 + each, "A")) for each in range(count)]
    at: list[int] = []
    watched: Informer[str] = Informer(Script(page(7), events), PODS, lambda raw: raw["value"])
    watched.on_change(lambda *_: at.append(turns.count))
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        tasks = [group.create_task(watched.run()), group.create_task(turns.run())]
        while len(at) < count:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
    assert at[-1] - at[0] >= 9


async def test_a_bookmark_only_advances_the_position() -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "20"}}}
    watched, told, asked = await follow(page(7, thing("a", 3, "A")), [bookmark])
    assert watched.resource_version == 20
    assert told == [(None, "A", 3)]
    assert asked[-1] == "watch 20"


async def test_a_watch_that_broke_after_progress_resumes_without_a_long_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy may end every idle watch; this must not add up to long waits."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def recorded(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(informer, "FIRST_BACKOFF", 1.0)
    monkeypatch.setattr(asyncio, "sleep", recorded)
    broken = errors.ApiUnreachable("The connection is gone.")
    told: list[Json | list[Json | Exception]] = []
    for i in range(10, 16):
        told += [[event("MODIFIED", thing("a", i, f"A{i}")), broken], page(i)]
    await follow(page(7, thing("a", 3, "A")), *told)
    assert len(waits) == 6
    assert max(waits) <= 1.0
    waits.clear()
    away: list[Json | Exception] = [broken, page(7)] * 6
    await follow(page(7, thing("a", 3, "A")), *away)
    assert waits[-1] >= 15.0


async def test_after_410_a_new_list_reports_deleted_objects() -> None:
    watched, told, _ = await follow(
        page(7, thing("a", 3, "A"), thing("b", 4, "B"), thing("c", 5, "C")),
        errors.Gone(410, "Expired", "too old resource version"),
        page(30, thing("b", 4, "B"), thing("c", 25, "C2")),
    )
    # The vanished ended at some time before the list: its version is the proof.
    assert told[3:] == [("A", None, 30), ("C", "C2", 25)]
    assert watched.listed_at == 30  # what came and went between is not known
    assert watched.store == {("ns", "b"): "B", ("ns", "c"): "C2"}


async def test_a_recreated_object_is_a_deletion_and_a_creation() -> None:
    _, told, _ = await follow(
        page(7, thing("a", 3, "A", uid="first")),
        errors.Gone(410, "Expired", ""),
        page(30, thing("a", 25, "A", uid="second")),
    )
    assert told[1:] == [("A", None, 30), (None, "A", 25)]


async def test_an_object_that_is_no_longer_kept_is_reported_as_gone() -> None:
    watched, told, _ = await follow(
        page(7, thing("a", 3, "A"), thing("b", 4, None)),
        [event("MODIFIED", thing("a", 8, None)), event("DELETED", thing("b", 9, None))],
    )
    assert told == [(None, "A", 3), ("A", None, 8)]
    assert watched.store == {}


async def test_a_watch_resumes_after_a_broken_connection() -> None:
    watched, told, asked = await follow(
        page(7),
        [event("ADDED", thing("a", 8, "A"))],
        errors.ApiUnreachable("connection reset"),
        page(8),  # where the server is
        [event("ADDED", thing("b", 9, "B"))],
    )
    assert watched.listed_at == 7
    assert asked == ["list", "watch 7", "watch 8", "list", "watch 8", "watch 9"]
    assert told == [(None, "A", 8), (None, "B", 9)]


async def test_an_expired_page_restarts_the_list() -> None:
    watched, told, asked = await follow(
        page(7, thing("a", 3, "A"), more="next"),
        errors.Gone(410, "Expired", "continue token too old"),
        page(30, thing("b", 25, "B")),
    )
    assert asked == ["list", "list next", "list", "watch 30"]
    assert told == [(None, "B", 25)]
    assert watched.store == {("ns", "b"): "B"}


async def test_other_errors_cause_a_new_list() -> None:
    _, _, asked = await follow(
        errors.Forbidden(403, "Forbidden", "not yet"),
        page(7),
        errors.ApiError(500, "", ""),
        page(9),
    )
    assert asked == ["list", "list", "watch 7", "list", "watch 9"]


async def test_a_change_outside_the_projection_is_not_reported() -> None:
    _, told, _ = await follow(page(7, thing("a", 3, "A")), [event("MODIFIED", thing("a", 8, "A"))])
    assert told == [(None, "A", 3)]


async def test_an_exception_of_a_listener_ends_the_informer() -> None:
    source = Script(page(7, thing("a", 3, "A")))
    watched: Informer[str] = Informer(source, PODS, lambda raw: raw["value"])

    def fail(old: str | None, new: str | None, version: int) -> None:
        raise RuntimeError("lost count")

    watched.on_change(fail)
    with pytest.raises(RuntimeError, match="lost count"):
        await asyncio.wait_for(watched.run(), 5)


AWAY = errors.ApiUnreachable("away")


async def test_a_watch_resumes_when_a_returning_server_has_its_history() -> None:
    _, told, asked = await follow(page(7, thing("a", 3, "A")), AWAY, page(7))
    assert asked == ["list", "watch 7", "list", "watch 7"]
    assert told == [(None, "A", 3)]


async def test_a_server_with_an_older_history_is_listed_again() -> None:
    """A watch would be silent until the server reaches the informer's position."""
    watched, told, asked = await follow(
        page(7, thing("a", 3, "A")), AWAY, page(5), page(6, thing("b", 4, "B"))
    )
    assert asked == ["list", "watch 7", "list", "list", "watch 6"]
    assert told == [(None, "A", 3), ("A", None, 6), (None, "B", 4)]
    assert watched.resource_version == 6


async def test_list_anew_ends_the_watch() -> None:
    source = Script(page(7, thing("a", 3, "A")))
    watched: Informer[str] = Informer(source, PODS, lambda raw: raw["value"])
    running = asyncio.create_task(watched.run())
    async with asyncio.timeout(5):
        await source.done.wait()
        source.done.clear()
        source.steps.append(page(5, thing("b", 4, "B")))
        watched.list_anew()
        assert watched.resource_version == 0
        await source.done.wait()
    assert dict(watched.store) == {ObjectKey("ns", "b"): "B"}
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
