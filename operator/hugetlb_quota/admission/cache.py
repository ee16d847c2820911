"""What admission knows of the quotas: a watch, and whatever was read or written since.

Nothing here proves that it is current. Whoever decides on it proves that afterwards: a
write by compare-and-swap was made on the current state, and when the watch has reached the
resourceVersion of that write (:meth:`QuotaCache.seen`), it has told of every quota made
before. Where nothing is written, :meth:`QuotaCache.prove` and :meth:`QuotaCache.refresh`
read.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.admission.chains import Api
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.informer import Informer, ObjectKey
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS, NAMESPACES

Known = QuotaObject | InvalidQuota

#: The longest wait before the watch is tried again, in seconds: until then nothing is admitted.
LONGEST_BACKOFF: Final = 2.0
#: Objects a page of a list.
_PAGE: Final = 500

logger = logging.getLogger(__name__)


class QuotaCache:
    """All quotas, each as new as this program knows it, and the labels of all namespaces."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._quotas = Informer[Known](
            api, HUGETLB_QUOTAS, self._project, longest_backoff=LONGEST_BACKOFF
        )
        self._namespaces = Informer[_Namespace](
            api, NAMESPACES, _labels, longest_backoff=LONGEST_BACKOFF
        )
        self._known: dict[QuotaKey, Known] = {}
        self._by_namespace: dict[str, dict[QuotaKey, Known]] = {}
        self._labels: dict[str, Mapping[str, str]] = {}
        self._fences = _Fences()
        self._watchers: dict[QuotaKey, list[asyncio.Future[None]]] = {}
        self._reads = _SharedReads()
        self._quotas.on_change(self._changed)
        self._quotas.on_progress(self._moved)
        self._namespaces.on_change(self._namespace_changed)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep it up to date while the context lasts."""
        tasks = [
            asyncio.create_task(_for_ever(informer.run), name=f"informer of {name}")
            for name, informer in (("quotas", self._quotas), ("namespaces", self._namespaces))
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ready(self) -> None:
        """Wait for the first lists.

        :raises ApiUnreachable: when they can't be had just now.
        """
        for informer in (self._quotas, self._namespaces):
            if not informer.synced.is_set():
                if informer.trouble:
                    raise errors.ApiUnreachable(informer.trouble)
                await informer.synced.wait()

    @property
    def why_not_ready(self) -> str:
        """Why nothing can be admitted; "" when it can."""
        for informer in (self._quotas, self._namespaces):
            if informer.trouble or not informer.synced.is_set():
                return informer.trouble or "HugeTLBQuotas have not been read yet."
        return ""

    @property
    def labels(self) -> Mapping[str, Mapping[str, str]]:
        """Every namespace's labels, by its name."""
        return self._labels

    def get(self, key: QuotaKey) -> Known | None:
        """The quota, None when it is not known."""
        return self._known.get(key)

    def in_namespace(self, namespace: str) -> Iterable[Known]:
        """The quotas of ``namespace``; not to be iterated across an await."""
        return self._by_namespace.get(namespace, {}).values()

    @property
    def position(self) -> int:
        """The resourceVersion up to which the watch has told."""
        return self._quotas.resource_version

    def offer(self, raw: Mapping[str, Any], *, written_after: int = 0) -> Known:
        """Take in what was read or written, unless something newer is known; what it is.

        :param written_after: :attr:`position` before it was written, which is earlier, unless
            the server has gone back in its history since.
        """
        metadata = raw["metadata"]
        if int(metadata["resourceVersion"]) <= written_after:
            self._went_back(int(metadata["resourceVersion"]), written_after)
        key = QuotaKey(metadata["namespace"], metadata["name"])
        known = self._known.get(key)
        offered = _project(raw, known)
        self.take(offered)
        return offered

    def take(self, offered: Known) -> None:
        """The same with a quota that was read already."""
        key = offered.key
        known = self._known.get(key)
        # What the watch has passed and does not know has been deleted.
        gone = known is None and _version(offered) <= self._quotas.resource_version
        if not gone and (known is None or _version(known) < _version(offered)):
            self._set(key, offered)

    async def seen(self, resource_version: int) -> None:
        """Wait until every change up to ``resource_version`` is known here.

        :raises Gone: when the history that it is of was lost.
        """
        if self._quotas.resource_version >= resource_version:
            return
        await self._fences.wait(resource_version)

    async def newer(self, known: QuotaObject, patience: float) -> QuotaObject:
        """The quota after ``known``, which a conflict has shown to be old.

        :param patience: seconds to wait for the watch, which mostly knows already.
        :raises InvalidQuota: when it can't be understood; NotFound when it is gone.
        """
        key, version = known.key, int(known.resource_version)
        now = self._known.get(key)
        if now is None or _version(now) <= version:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._watchers.setdefault(key, []).append(future)
            await asyncio.wait((future,), timeout=patience)
            now = self._known.get(key)
        if now is None or _version(now) <= version:
            now = await self._read(key)
            if now is None:
                raise errors.NotFound(404, "NotFound", f"HugeTLBQuota {key} is gone.")
        if isinstance(now, InvalidQuota):
            raise now
        return now

    async def prove(self, namespace: str) -> None:
        """Make sure that every quota of ``namespace`` that there is now is known.

        One consistent LIST for all who wait; whoever comes while one is under way is
        served by the next.

        :raises ApiError: when it can't be read.
        """
        await self._reads.join(("namespace", namespace), lambda: self._list(namespace))

    async def refresh(self, keys: Iterable[QuotaKey], namespaces: Iterable[str] = ()) -> None:
        """Make sure that these quotas, and these namespaces' labels, are known as they are now.

        :raises ApiError: when they can't be read.
        """
        await asyncio.gather(
            *(self._reads.join(("quota", key), lambda key=key: self._read(key)) for key in keys),  # type: ignore[misc]
            *(
                self._reads.join(("labels", name), lambda name=name: self._read_labels(name))  # type: ignore[misc]
                for name in namespaces
            ),
        )

    async def _read(self, key: QuotaKey) -> Known | None:
        before = self._known.get(key)
        try:
            raw = await self._api.get(HUGETLB_QUOTAS, key.name, key.namespace)
        except errors.NotFound:
            if before is not None and self._known.get(key) is before:
                self._set(key, None)
            return None
        read = self.offer(raw)
        if before is not None and _version(read) < _version(before):
            # A quorum read is never older than what was known before it began.
            self._went_back(_version(read), _version(before))
            self._set(key, read)
        return self._known.get(key)

    def _went_back(self, version: int, before: int) -> None:
        """What the watches have told is of a history that was lost: nothing is proved by it."""
        logger.error(
            "The API server is at %d, and had been at %d: etcd was restored from a backup."
            " Listing the quotas anew.",
            *(version, before),
        )
        for informer in (self._quotas, self._namespaces):
            informer.list_anew()

    async def _list(self, namespace: str) -> None:
        continuation: str | None = None
        before = self.position
        while True:
            page = await self._api.list_page(
                HUGETLB_QUOTAS, namespace, limit=_PAGE, continuation=continuation
            )
            version = int(page["metadata"]["resourceVersion"])
            if continuation is None and version < before:
                self._went_back(version, before)
            for raw in page.get("items") or ():
                self.offer(raw)
            continuation = page["metadata"].get("continue")
            if not continuation:
                return

    async def _read_labels(self, name: str) -> None:
        try:
            raw = await self._api.get(NAMESPACES, name)
        except errors.NotFound:
            self._labels.pop(name, None)
        else:
            self._labels[name] = _labels(raw)

    def _project(self, raw: dict[str, Any]) -> Known:
        metadata = raw["metadata"]
        known = self._known.get(QuotaKey(metadata["namespace"], metadata["name"]))
        if (
            isinstance(known, QuotaObject)
            and known.uid == metadata["uid"]
            and known.resource_version == metadata["resourceVersion"]
            and known.spec == raw.get("spec")
        ):
            return known  # what this program wrote itself comes back
        return _project(raw, known)

    def _changed(self, old: Known | None, new: Known | None, version: int) -> None:
        if new is not None:
            known = self._known.get(new.key)
            if known is None or _version(known) <= _version(new):
                self._set(new.key, new)
        elif old is not None:
            known = self._known.get(old.key)
            if known is not None and _version(known) <= version:
                self._set(old.key, None)

    def _namespace_changed(
        self, old: _Namespace | None, new: _Namespace | None, version: int
    ) -> None:
        if new is not None:
            self._labels[new.name] = new
        elif old is not None:
            self._labels.pop(old.name, None)

    def _set(self, key: QuotaKey, value: Known | None) -> None:
        here = self._by_namespace.setdefault(key.namespace, {})
        if value is None:
            self._known.pop(key, None)
            here.pop(key, None)
            if not here:
                del self._by_namespace[key.namespace]
        else:
            self._known[key] = here[key] = value
        for future in self._watchers.pop(key, ()):
            if not future.done():
                future.set_result(None)

    def _moved(self, listed: bool) -> None:
        if listed:
            # Also after history went back: what was offered before may never have been.
            for key in [key for key in self._known if ObjectKey(*key) not in self._quotas.store]:
                self._set(key, None)
            for quota in self._quotas.store.values():
                self._set(quota.key, quota)
        self._fences.moved(self.position, listed=listed)


class _Fences:
    """Those that wait for the watch to reach a resourceVersion."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._serial = itertools.count()

    async def wait(self, resource_version: int) -> None:
        """Wait until the watch is there.

        :raises Gone: when a list came first that is of an earlier one: history was lost.
        """
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (resource_version, next(self._serial), future))
        await future

    def moved(self, position: int, *, listed: bool) -> None:
        """The watch is at ``position`` now, by a list or by an event."""
        while self._waiting and (listed or self._waiting[0][0] <= position):
            wanted, _, future = heapq.heappop(self._waiting)
            if future.done():
                continue
            if wanted <= position:
                future.set_result(None)
            else:
                future.set_exception(errors.Gone(410, "Expired", "The quotas were listed anew."))


class _SharedReads:
    """Reads that many wait for: whoever asks is served by one that begins afterwards."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[None]] = {}
        self._next: dict[Hashable, asyncio.Task[None]] = {}

    async def join(self, what: Hashable, read: Callable[[], Awaitable[object]]) -> None:
        """Wait for the next ``read`` of ``what``; raises what it raises."""
        task = self._next.get(what)
        if task is None:
            task = self._next[what] = asyncio.create_task(self._after(what, read))
            task.add_done_callback(_retrieve)
        await asyncio.shield(task)

    async def _after(self, what: Hashable, read: Callable[[], Awaitable[object]]) -> None:
        before = self._running.get(what)
        if before is not None:
            await asyncio.wait((before,))
        task = self._next.pop(what)
        self._running[what] = task
        try:
            await read()
        finally:
            if self._running.get(what) is task:
                del self._running[what]


def _retrieve(task: asyncio.Task[None]) -> None:
    """Nobody may wait for it any more, and then its error is nobody's."""
    if not task.cancelled():
        task.exception()


class _Namespace(dict[str, str]):
    """A namespace's labels, with its name."""

    name = ""


def _labels(raw: Mapping[str, Any]) -> _Namespace:
    labels = _Namespace(raw["metadata"].get("labels") or {})
    labels.name = raw["metadata"]["name"]
    return labels


def _project(raw: Mapping[str, Any], known: Known | None) -> Known:
    try:
        return QuotaObject.from_json(raw, known if isinstance(known, QuotaObject) else None)
    except InvalidQuota as invalid:
        return invalid


def _version(quota: Known) -> int:
    return int(quota.resource_version or 0)


async def _for_ever(run: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await run()
        except Exception:  # a bug; without the watch nothing would ever be admitted again
            logger.exception("Following the quotas failed; beginning anew.")
            await asyncio.sleep(LONGEST_BACKOFF)
