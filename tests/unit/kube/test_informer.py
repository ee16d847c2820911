"""The informer, with an API that answers from the script of the test."""

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


def item(name: str, version: int, value: str | None, uid: str = "") -> Json:
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
    """Answers lists and watches with ``steps``, in their order; then a watch without end.

    ``requests``: the lists and watches. ``done``: set by the watch without end.
    """

    def __init__(self, *steps: Json | Sequence[Json | Exception] | Exception) -> None:
        self.steps = list(steps)
        self.requests: list[str] = []
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
        self.requests.append(f"list {continuation or ''}".strip())
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
        self.requests.append(f"watch {resource_version}")
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
    """Run until all ``steps`` are used; return the informer, its changes, and the requests."""
    source = Script(*steps)
    project: Callable[[Json], str | None] = lambda raw: raw["value"]  # noqa: E731
    pods: Informer[str] = Informer(source, PODS, project)
    changes: list[Change] = []
    pods.on_change(lambda old, new, version: changes.append((old, new, version)))
    task = asyncio.create_task(pods.run())
    async with asyncio.timeout(5):
        await source.done.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return pods, changes, source.requests


async def test_listeners_are_called_after_the_last_page() -> None:
    pods, changes, requests = await follow(
        page(7, item("a", 3, "A"), more="next"), page(7, item("b", 5, "B"))
    )
    assert pods.synced.is_set()
    assert pods.store == {ObjectKey("ns", "a"): "A", ObjectKey("ns", "b"): "B"}
    assert changes == [(None, "A", 3), (None, "B", 5)]
    assert requests == ["list", "list next", "watch 7"]
    assert pods.resource_version == 7


async def test_events_change_the_store_in_order() -> None:
    pods, changes, requests = await follow(
        page(7, item("a", 3, "A")),
        [
            event("MODIFIED", item("a", 8, "A2")),
            event("ADDED", item("b", 9, "B")),
            event("DELETED", item("a", 10, "A2")),
        ],
    )
    assert pods.store == {("ns", "b"): "B"}
    assert changes == [(None, "A", 3), ("A", "A2", 8), (None, "B", 9), ("A2", None, 10)]
    assert requests == ["list", "watch 7", "watch 10"]


async def test_other_tasks_run_between_many_events() -> None:
    turns = Turns()
    count = 10 * informer.BATCH
    events = [event("ADDED", item(f"p{each}", 8 + each, "A")) for each in range(count)]
    turns_at_changes: list[int] = []
    pods: Informer[str] = Informer(Script(page(7), events), PODS, lambda raw: raw["value"])
    pods.on_change(lambda *_: turns_at_changes.append(turns.count))
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        tasks = [group.create_task(pods.run()), group.create_task(turns.run())]
        while len(turns_at_changes) < count:
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
    assert turns_at_changes[-1] - turns_at_changes[0] >= 9


async def test_a_bookmark_only_advances_the_position() -> None:
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "20"}}}
    pods, changes, requests = await follow(page(7, item("a", 3, "A")), [bookmark])
    assert pods.resource_version == 20
    assert changes == [(None, "A", 3)]
    assert requests[-1] == "watch 20"


async def test_a_watch_that_breaks_after_progress_resumes_without_a_long_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy may end every idle watch. Then the waits must not grow."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(informer, "FIRST_BACKOFF", 1.0)
    monkeypatch.setattr(asyncio, "sleep", record)
    broken = errors.ApiUnreachable("The connection is gone.")
    steps: list[Json | list[Json | Exception]] = []
    for version in range(10, 16):
        changed = item("a", version, f"A{version}")
        steps += [[event("MODIFIED", changed), broken], page(version)]
    await follow(page(7, item("a", 3, "A")), *steps)
    assert len(waits) == 6
    assert max(waits) <= 1.0
    waits.clear()
    failures: list[Json | Exception] = [broken, page(7)] * 6
    await follow(page(7, item("a", 3, "A")), *failures)
    assert waits[-1] >= 15.0


async def test_after_410_a_new_list_reports_deleted_objects() -> None:
    pods, changes, _ = await follow(
        page(7, item("a", 3, "A"), item("b", 4, "B"), item("c", 5, "C")),
        errors.Gone(410, "Expired", "too old resource version"),
        page(30, item("b", 4, "B"), item("c", 25, "C2")),
    )
    # Object a was deleted at some time before the list. The version of the list proves this.
    assert changes[3:] == [("A", None, 30), ("C", "C2", 25)]
    assert pods.listed_at == 30  # the informer has missed the changes between
    assert pods.store == {("ns", "b"): "B", ("ns", "c"): "C2"}


async def test_a_recreated_object_is_a_deletion_and_a_creation() -> None:
    _, changes, _ = await follow(
        page(7, item("a", 3, "A", uid="first")),
        errors.Gone(410, "Expired", ""),
        page(30, item("a", 25, "A", uid="second")),
    )
    assert changes[1:] == [("A", None, 30), (None, "A", 25)]


async def test_an_object_that_is_no_longer_kept_is_reported_as_gone() -> None:
    pods, changes, _ = await follow(
        page(7, item("a", 3, "A"), item("b", 4, None)),
        [event("MODIFIED", item("a", 8, None)), event("DELETED", item("b", 9, None))],
    )
    assert changes == [(None, "A", 3), ("A", None, 8)]
    assert pods.store == {}


async def test_a_watch_resumes_after_a_broken_connection() -> None:
    pods, changes, requests = await follow(
        page(7),
        [event("ADDED", item("a", 8, "A"))],
        errors.ApiUnreachable("connection reset"),
        page(8),  # the position of the server
        [event("ADDED", item("b", 9, "B"))],
    )
    assert pods.listed_at == 7
    assert requests == ["list", "watch 7", "watch 8", "list", "watch 8", "watch 9"]
    assert changes == [(None, "A", 8), (None, "B", 9)]


async def test_an_expired_page_restarts_the_list() -> None:
    pods, changes, requests = await follow(
        page(7, item("a", 3, "A"), more="next"),
        errors.Gone(410, "Expired", "continue token too old"),
        page(30, item("b", 25, "B")),
    )
    assert requests == ["list", "list next", "list", "watch 30"]
    assert changes == [(None, "B", 25)]
    assert pods.store == {("ns", "b"): "B"}


async def test_other_errors_cause_a_new_list() -> None:
    _, _, requests = await follow(
        errors.Forbidden(403, "Forbidden", "not yet"),
        page(7),
        errors.ApiError(500, "", ""),
        page(9),
    )
    assert requests == ["list", "list", "watch 7", "list", "watch 9"]


async def test_a_change_outside_the_projection_is_not_reported() -> None:
    _, changes, _ = await follow(page(7, item("a", 3, "A")), [event("MODIFIED", item("a", 8, "A"))])
    assert changes == [(None, "A", 3)]


async def test_an_exception_of_a_listener_ends_the_informer() -> None:
    source = Script(page(7, item("a", 3, "A")))
    pods: Informer[str] = Informer(source, PODS, lambda raw: raw["value"])

    def fail(old: str | None, new: str | None, version: int) -> None:
        raise RuntimeError("lost count")

    pods.on_change(fail)
    with pytest.raises(RuntimeError, match="lost count"):
        await asyncio.wait_for(pods.run(), 5)


AWAY = errors.ApiUnreachable("away")


async def test_a_watch_resumes_when_a_returning_server_has_its_history() -> None:
    _, changes, requests = await follow(page(7, item("a", 3, "A")), AWAY, page(7))
    assert requests == ["list", "watch 7", "list", "watch 7"]
    assert changes == [(None, "A", 3)]


async def test_a_server_with_an_older_history_causes_a_new_list() -> None:
    """A watch would send nothing until the server reaches the informer's position."""
    pods, changes, requests = await follow(
        page(7, item("a", 3, "A")), AWAY, page(5), page(6, item("b", 4, "B"))
    )
    assert requests == ["list", "watch 7", "list", "list", "watch 6"]
    assert changes == [(None, "A", 3), ("A", None, 6), (None, "B", 4)]
    assert pods.resource_version == 6


async def test_list_anew_ends_the_watch() -> None:
    source = Script(page(7, item("a", 3, "A")))
    pods: Informer[str] = Informer(source, PODS, lambda raw: raw["value"])
    task = asyncio.create_task(pods.run())
    async with asyncio.timeout(5):
        await source.done.wait()
        source.done.clear()
        source.steps.append(page(5, item("b", 4, "B")))
        pods.list_anew()
        assert pods.resource_version == 0
        await source.done.wait()
    assert dict(pods.store) == {ObjectKey("ns", "b"): "B"}
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
