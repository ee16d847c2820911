"""The labels of namespaces: the newest version wins, from the watch or from a read."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hugetlb_quota.admission.namespace_labels import NamespaceLabels
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.resources import NAMESPACES, Resource
from tests.unit.admission.fake_api import FakeApi, namespace


class Late(FakeApi):
    """Its watch delivers the events that :meth:`let` lets through.

    Its answers to GET wait for ``answers``. ``reading`` counts the GETs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._events_let = math.inf
        self._more_let = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()
        self.reading = 0

    async def deliver(self) -> None:
        while not self._events_let:
            self._more_let.clear()
            await self._more_let.wait()
        self._events_let -= 1

    def let(self, events: float) -> None:
        """Let the watch deliver the next ``events``, and then no more."""
        self._events_let = events
        self._more_let.set()

    async def get(self, resource: Resource, name: str, *rest: Any, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] | errors.NotFound
        try:
            found = await super().get(resource, name, *rest, **more)
        except errors.NotFound as error:
            found = error
        self.reading += 1
        await self.answers.wait()
        if isinstance(found, errors.NotFound):
            raise found
        return found

    def drop(self, name: str) -> None:
        """Delete a namespace."""
        gone = self.objects.pop((NAMESPACES.plural, "", name))
        self.version += 1
        gone["metadata"]["resourceVersion"] = str(self.version)
        self._add_event(NAMESPACES.plural, "DELETED", gone)


def named(name: str, **labels: str) -> dict[str, Any]:
    """The namespace with the same UID each time."""
    raw = namespace(name, **labels)
    raw["metadata"]["uid"] = f"uid-of-{name}"
    return raw


@pytest.fixture
def api() -> Late:
    """An API server with the namespaces db, of team a, and bare, without labels."""
    api = Late()
    api.put(named("db", team="a"))
    bare = named("bare")
    del bare["metadata"]["labels"]
    api.put(bare)
    return api


@pytest.fixture
async def labels(api: Late) -> AsyncIterator[NamespaceLabels]:
    """Labels that follow ``api``."""
    labels = NamespaceLabels(api, longest_backoff=0.01)
    task = asyncio.create_task(labels.informer.run())
    await labels.informer.synced.wait()
    yield labels
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0)


def seen(labels: NamespaceLabels, api: Late) -> bool:
    """Whether the watch has delivered all events."""
    return labels.informer.resource_version == api.version


@asynccontextmanager
async def late_read(api: Late, labels: NamespaceLabels, name: str) -> AsyncIterator[None]:
    """Read ``name`` in the background; the answer arrives at the end of the context."""
    api.answers.clear()
    reading = asyncio.create_task(labels.read(name))
    await until(lambda: api.reading)
    yield
    api.answers.set()
    await reading


async def test_has_the_labels_of_every_namespace(labels: NamespaceLabels) -> None:
    assert labels.by_name == {"db": {"team": "a"}, "bare": {}}


async def test_follows_changes_and_deletions(api: Late, labels: NamespaceLabels) -> None:
    api.put(named("db", team="b"))
    api.put(named("new", team="c"))
    api.drop("bare")
    await until(lambda: seen(labels, api))
    assert labels.by_name == {"db": {"team": "b"}, "new": {"team": "c"}}


async def test_a_read_finds_what_the_watch_has_not_delivered(
    api: Late, labels: NamespaceLabels
) -> None:
    api.let(0)
    api.put(named("db", team="b"))
    api.put(named("new", team="c"))
    api.drop("bare")
    for name in ("db", "new", "bare", "none"):
        await labels.read(name)
    assert labels.by_name == {"db": {"team": "b"}, "new": {"team": "c"}}


async def test_a_late_answer_does_not_replace_what_the_watch_delivered(
    api: Late, labels: NamespaceLabels
) -> None:
    async with late_read(api, labels, "db"):
        api.put(named("db", team="b"))
        await until(lambda: seen(labels, api))
    assert labels.by_name["db"] == {"team": "b"}


async def test_a_late_answer_that_a_namespace_is_gone_does_not_remove_a_new_namespace(
    api: Late, labels: NamespaceLabels
) -> None:
    async with late_read(api, labels, "new"):
        api.put(named("new", team="c"))
        await until(lambda: seen(labels, api))
    assert labels.by_name["new"] == {"team": "c"}


async def test_an_answer_replaces_an_older_version_that_the_watch_delivers_meanwhile(
    api: Late, labels: NamespaceLabels
) -> None:
    api.let(0)
    api.put(named("db", team="b"))
    api.put(named("db", team="c"))
    async with late_read(api, labels, "db"):
        api.let(1)
        await until(lambda: labels.by_name["db"] == {"team": "b"})
    assert labels.by_name["db"] == {"team": "c"}


async def test_a_late_watch_does_not_replace_what_a_read_found(
    api: Late, labels: NamespaceLabels
) -> None:
    api.let(0)
    api.put(named("db", team="b"))
    api.put(named("db", team="c"))
    await labels.read("db")
    found = []
    labels.informer.on_progress(lambda _: found.append(dict(labels.by_name["db"])))
    api.let(math.inf)
    await until(lambda: seen(labels, api))
    assert found == [{"team": "c"}] * 2


async def test_a_read_that_finds_an_older_version_is_right_because_etcd_was_restored(
    api: Late, labels: NamespaceLabels
) -> None:
    api.let(0)
    api.version = 1
    api.put(named("db", team="before"))
    await labels.read("db")
    assert labels.by_name["db"] == {"team": "before"}


async def test_a_list_replaces_everything_that_reads_found(
    api: Late, labels: NamespaceLabels
) -> None:
    """A namespace that is the same in two lists is no change for a listener."""
    api.let(0)
    api.put(named("db", team="b"))
    await labels.read("db")
    api.put(named("db", team="a"))
    api.events.clear()
    labels.informer.list_anew()
    await until(lambda: seen(labels, api))
    assert labels.by_name == {"db": {"team": "a"}, "bare": {}}
