"""A local picture of one kind of objects, kept by list and watch.

Made for many objects and little memory: lists come in pages, each object is projected
to what its user needs as it arrives, and nothing raw is kept. A list after a lost watch
is compared with what was known, so that an object that went meanwhile is told of too.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from hugetlb_quota.backoff import Backoff
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.resources import Resource

T = TypeVar("T")

#: Objects a page of a list: what client-go's pager asks for.
PAGE: Final = 500
#: Waits between attempts after an error, in seconds: doubled, with jitter, up to the last.
FIRST_BACKOFF: Final = 0.5
LONGEST_BACKOFF: Final = 30.0

logger = logging.getLogger(__name__)


class ObjectKey(NamedTuple):
    """The name of an object; equal to a QuotaKey of the same words."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


#: What changed: before, after, and the resourceVersion of the change. One of the two
#: may be None: the object is new, or gone (or not kept any more).
OnChange = Callable[[T | None, T | None, int], None]


class Source(Protocol):
    """The part of a Connection that an informer needs."""

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        field_selector: str | None = None,
        limit: int | None = None,
        continuation: str | None = None,
    ) -> dict[str, Any]:
        """One page of a collection."""
        ...

    def watch(
        self,
        resource: Resource,
        resource_version: str,
        namespace: str | None = None,
        *,
        field_selector: str | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """The events after ``resource_version``."""
        ...


class _Kept(NamedTuple, Generic[T]):
    uid: str
    value: T


class Informer(Generic[T]):
    """The objects of ``resource``, each as ``project`` made it of its JSON.

    :param project: None for an object that is not to be kept. It must not raise.
    :param name: for the log.
    :param longest_backoff: between attempts after an error, in seconds.
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
        #: From where on the changes of this kind are known without a gap: the last list's.
        self.listed_at = 0
        #: Why nothing new can be told just now; "" while the watch runs.
        self.trouble = ""
        #: Set once the first list is complete and was told to all listeners.
        self.synced = asyncio.Event()

    @property
    def store(self) -> Mapping[ObjectKey, T]:
        """What is kept, by name; a live view, not to be iterated across an await."""
        return MappingProxyType(self._store)

    @property
    def resource_version(self) -> int:
        """Up to where the changes of this kind are known; 0 before the first list."""
        return int(self._position or 0)

    def on_change(self, listener: OnChange[T]) -> None:
        """Call ``listener`` for every change, synchronously and in order.

        An object that was deleted and made anew under its name is two changes. What it
        raises ends :meth:`run`: a listener that lost a change can't go on.
        """
        self._listeners.append(listener)

    def on_progress(self, follower: Callable[[bool], None]) -> None:
        """Call ``follower`` whenever the position moved; with True when by a list."""
        self._followers.append(follower)

    def list_anew(self) -> None:
        """Begin again with a list: what is known may be of a history that was lost."""
        self._position = ""
        if self._watching is not None:
            self._watching.cancel()

    async def run(self) -> None:
        """List, watch, and begin again when the watch is lost; for ever."""
        backoff = Backoff(FIRST_BACKOFF, self._longest_backoff)
        while True:
            begun_at = self._position
            try:
                if self._position and self.trouble:
                    await self._check_history()
                if not self._position:
                    await self._list()
                await self._watch_until_told()
                backoff.reset()
                continue
            except errors.Gone as error:
                logger.info("%s: listing anew: %s", self._name, error)
                self._position = ""
                self.trouble = str(error)
            except errors.ApiUnreachable as error:
                self.trouble = str(error)
                # The position holds: the watch goes on where it broke off.
                logger.warning("%s: %s Trying again.", self._name, error)
            except errors.ApiError as error:
                logger.warning("%s: listing anew after an error: %s", self._name, error)
                self._position = ""
                self.trouble = str(error)
            if self._position not in ("", begun_at):
                backoff.reset()  # it told something before it broke
            await asyncio.sleep(backoff.next() * random.uniform(0.5, 1.0))  # noqa: S311 - jitter

    async def _list(self) -> None:
        listed: dict[ObjectKey, tuple[str, int, T]] = {}
        continuation: str | None = None
        while True:
            page = await self._connection.list_page(
                self._resource,
                self._namespace,
                field_selector=self._field_selector,
                limit=PAGE,
                continuation=continuation,
            )
            for raw in page.get("items") or ():
                value = self._project(raw)
                if value is not None:
                    key, uid, version = _identity(raw)
                    listed[key] = (uid, version, value)
            metadata = page["metadata"]
            continuation = metadata.get("continue")
            if not continuation:
                break
        at = int(metadata["resourceVersion"])
        for key in [key for key in self._kept if key not in listed]:
            self._apply(key, "", None, at)
        for key, (uid, version, value) in listed.items():
            self._apply(key, uid, value, version, ended=at)
        self._position = metadata["resourceVersion"]
        self.listed_at = at
        self.trouble = ""
        self._moved(listed=True)
        self.synced.set()

    async def _check_history(self) -> None:
        """Make sure that the server, which was away, has not gone back in its history.

        The watch of a later position would tell nothing until that comes again.

        :raises Gone: when it has.
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
                f"{self._name} are at {version}, and had been at {self._position}:"
                " etcd was restored from a backup.",
            )

    async def _watch_until_told(self) -> None:
        """Watch until it ends, or :meth:`list_anew` ends it."""
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
        async for event in self._connection.watch(
            self._resource,
            self._position,
            self._namespace,
            field_selector=self._field_selector,
        ):
            raw = event["object"]
            key, uid, version = _identity(raw)
            self._compare(version)
            # Bookmarks tell of no object, only how far the watch has come.
            if event["type"] != "BOOKMARK":
                value = None if event["type"] == "DELETED" else self._project(raw)
                self._apply(key, uid, value, version, ended=version)
            self._position = str(version)
            self.trouble = ""
            self._moved(listed=False)

    def _moved(self, *, listed: bool) -> None:
        for follower in self._followers:
            follower(listed)

    def _apply(
        self, key: ObjectKey, uid: str, value: T | None, version: int, ended: int | None = None
    ) -> None:
        """Take in one object at ``version``; one it replaces under its name ``ended``."""
        before = self._kept.get(key)
        if before is not None and value is not None and before.uid != uid:
            self._drop(key)
            self._tell(before.value, None, version if ended is None else ended)
            before = None
        if value is not None:
            self._kept[key] = _Kept(uid, value)
            self._store[key] = value
        elif before is not None:
            self._drop(key)
        old = None if before is None else before.value
        if old != value:
            self._tell(old, value, version)

    def _drop(self, key: ObjectKey) -> None:
        del self._kept[key]
        del self._store[key]

    def _tell(self, old: T | None, new: T | None, version: int) -> None:
        for listener in self._listeners:
            listener(old, new, version)


def _identity(raw: dict[str, Any]) -> tuple[ObjectKey, str, int]:
    metadata = raw["metadata"]
    key = ObjectKey(metadata.get("namespace", ""), metadata.get("name", ""))
    return key, metadata.get("uid", ""), int(metadata["resourceVersion"])
