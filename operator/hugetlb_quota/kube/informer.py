"""A local copy of all objects of one kind, kept up to date by list and watch.

The informer needs little memory: it lists in pages, projects each object on arrival to the fields
that its user needs, and keeps no raw object. After a lost watch it compares a new list with its
copy, so that listeners also get the objects that were deleted meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from hugetlb_quota.backoff import Backoff
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ListApi, WatchApi
from hugetlb_quota.kube.pages import PAGE, pages
from hugetlb_quota.kube.resources import Resource

T = TypeVar("T")

#: The number of events after which the informer lets other tasks run.
BATCH: Final = 16
#: The first and the longest wait after an error, in seconds; a wait has jitter.
FIRST_BACKOFF: Final = 0.5
LONGEST_BACKOFF: Final = 30.0

logger = logging.getLogger(__name__)


class ObjectKey(NamedTuple):
    """Namespace and name of an object; equal to a QuotaKey with the same strings."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


#: A listener gets the old value, the new value and the resourceVersion of the change. The old
#: value is None for a new object; the new value is None for an object that is gone or that
#: ``project`` no longer keeps.
OnChange = Callable[[T | None, T | None, int], None]


class Source(ListApi, WatchApi, Protocol):
    """The part of a Connection that an informer needs."""


class _Kept(NamedTuple, Generic[T]):
    uid: str
    value: T


class Informer(Generic[T]):
    """The objects of ``resource``, each projected by ``project``.

    :param project: makes the value to keep of an object's JSON, or None to ignore the object.
        It must not raise.
    :param name: the name in the log.
    :param longest_backoff: the longest wait after an error, in seconds.
    """

    def __init__(
        self,
        connection: Source,
        resource: Resource,
        project: Callable[[dict[str, Any]], T | None],
        *,
        namespace: str | None = None,
        field_selector: str | None = None,
        name: str | None = None,
        longest_backoff: float = LONGEST_BACKOFF,
    ) -> None:
        self._connection = connection
        self._resource = resource
        self._project = project
        self._namespace = namespace
        self._field_selector = field_selector
        self._name = name or str(resource)
        self._longest_backoff = longest_backoff
        self._kept: dict[ObjectKey, _Kept[T]] = {}
        self._store: dict[ObjectKey, T] = {}
        self._listeners: list[OnChange[T]] = []
        self._followers: list[Callable[[bool], None]] = []
        self._position = ""
        self._watching: asyncio.Task[None] | None = None
        #: The resourceVersion of the last list; the informer saw every change since then.
        self.listed_at = 0
        #: Why the informer gets no changes at present; "" while the watch runs.
        self.trouble = ""
        #: Set when the first list is complete and all listeners have got its objects.
        self.synced = asyncio.Event()

    @property
    def store(self) -> Mapping[ObjectKey, T]:
        """The kept values by key; a live view: do not await while iterating over it."""
        return MappingProxyType(self._store)

    @property
    def resource_version(self) -> int:
        """The informer has seen all changes up to this resourceVersion; 0 before the first list."""
        return int(self._position or 0)

    def on_change(self, listener: OnChange[T]) -> None:
        """Call ``listener`` for every change, synchronously and in order.

        If an object was deleted and created again with the same name, the listener gets two
        changes. An exception of a listener ends :meth:`run`, because the listener missed a
        change.
        """
        self._listeners.append(listener)

    def on_progress(self, follower: Callable[[bool], None]) -> None:
        """Call ``follower`` when ``resource_version`` advances: with True after a list."""
        self._followers.append(follower)

    def list_anew(self) -> None:
        """List again, because etcd may have lost the history that the copy comes from."""
        self._position = ""
        if self._watching is not None:
            self._watching.cancel()

    async def run(self) -> None:
        """List, watch, and start again when the watch is lost; runs until cancelled."""
        backoff = Backoff(FIRST_BACKOFF, self._longest_backoff)
        while True:
            begun_at = self._position
            try:
                if self._position and self.trouble:
                    await self._check_history()
                if not self._position:
                    await self._list()
                await self._watch_until_ended()
                backoff.reset()
                continue
            except errors.Gone as error:
                logger.info("%s: listing again: %s", self._name, error)
                self._position = ""
                self.trouble = str(error)
            except errors.ApiUnreachable as error:
                self.trouble = str(error)
                # The position stays valid: the next watch continues from it.
                logger.warning("%s: %s Trying again.", self._name, error)
            except errors.ApiError as error:
                logger.warning("%s: listing again after an error: %s", self._name, error)
                self._position = ""
                self.trouble = str(error)
            if self._position not in ("", begun_at):
                backoff.reset()  # the list or the watch made progress before the error
            await asyncio.sleep(backoff.next() * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    async def _list(self) -> None:
        listed: dict[ObjectKey, tuple[str, int, T]] = {}
        metadata: dict[str, Any] = {}
        async for page in pages(self._page):
            metadata = page["metadata"]
            for raw in page.get("items") or ():
                value = self._project(raw)
                if value is not None:
                    key, uid, version = _identity(raw)
                    listed[key] = (uid, version, value)
        at = int(metadata["resourceVersion"])
        for key in [key for key in self._kept if key not in listed]:
            self._apply(key, "", None, at)
        for key, (uid, version, value) in listed.items():
            self._apply(key, uid, value, version, ended=at)
        self._position = metadata["resourceVersion"]
        self.listed_at = at
        self.trouble = ""
        self._notify_progress(listed=True)
        self.synced.set()

    def _page(self, continuation: str | None) -> Awaitable[dict[str, Any]]:
        return self._connection.list_page(
            self._resource,
            self._namespace,
            field_selector=self._field_selector,
            limit=PAGE,
            continuation=continuation,
        )

    async def _check_history(self) -> None:
        """Check after an interruption that etcd was not restored to an older state.

        A watch from a position in the future would be silent until etcd reaches that position.

        :raises Gone: if etcd is older than the position of the informer.
        """
        page = await self._connection.list_page(
            self._resource, self._namespace, field_selector=self._field_selector, limit=1
        )
        self._compare(int(page["metadata"]["resourceVersion"]))

    def _compare(self, version: int) -> None:
        if version < self.resource_version:
            raise errors.Gone(
                410,
                "Expired",
                f"{self._name} have the resourceVersion {version}, and had {self._position} before:"
                " etcd was restored from a backup.",
            )

    async def _watch_until_ended(self) -> None:
        """Watch until the server or :meth:`list_anew` ends the watch."""
        self._watching = asyncio.create_task(self._watch())
        try:
            await self._watching
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._position or (task is not None and task.cancelling()):
                raise
        finally:
            self._watching.cancel()
            self._watching = None

    async def _watch(self) -> None:
        events = 0
        async for event in self._connection.watch(
            self._resource,
            self._position,
            self._namespace,
            field_selector=self._field_selector,
        ):
            raw = event["object"]
            key, uid, version = _identity(raw)
            self._compare(version)
            # A bookmark has no object, only the position of the watch.
            if event["type"] != "BOOKMARK":
                value = None if event["type"] == "DELETED" else self._project(raw)
                self._apply(key, uid, value, version, ended=version)
            self._position = str(version)
            self.trouble = ""
            self._notify_progress(listed=False)
            events += 1
            if events % BATCH == 0:
                await asyncio.sleep(0)

    def _notify_progress(self, *, listed: bool) -> None:
        for follower in self._followers:
            follower(listed)

    def _apply(
        self, key: ObjectKey, uid: str, value: T | None, version: int, ended: int | None = None
    ) -> None:
        """Store ``value`` and call the listeners; None removes the object.

        :param ended: the resourceVersion at which a replaced object with another UID ended;
            None: ``version``.
        """
        before = self._kept.get(key)
        if before is not None and value is not None and before.uid != uid:
            self._drop(key)
            self._notify(before.value, None, version if ended is None else ended)
            before = None
        if value is not None:
            self._kept[key] = _Kept(uid, value)
            self._store[key] = value
        elif before is not None:
            self._drop(key)
        old = None if before is None else before.value
        if old != value:
            self._notify(old, value, version)

    def _drop(self, key: ObjectKey) -> None:
        del self._kept[key]
        del self._store[key]

    def _notify(self, old: T | None, new: T | None, version: int) -> None:
        for listener in self._listeners:
            listener(old, new, version)


def _identity(raw: dict[str, Any]) -> tuple[ObjectKey, str, int]:
    metadata = raw["metadata"]
    key = ObjectKey(metadata.get("namespace", ""), metadata.get("name", ""))
    return key, metadata.get("uid", ""), int(metadata["resourceVersion"])
