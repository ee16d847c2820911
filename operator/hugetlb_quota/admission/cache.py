"""A cache of all quotas: the watch, and each quota that was read or written since.

The cache may be old, so a decision from the cache needs a proof afterwards. If admission wrote a
quota by compare-and-swap, the write was made on the current quota; when the watch has reached the
resourceVersion of the write (:meth:`QuotaCache.wait_for`), the cache has every quota that was
written before. If admission wrote nothing, it reads: :meth:`QuotaCache.read_namespace` and
:meth:`QuotaCache.read`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.admission.api import Api
from hugetlb_quota.admission.background import in_background
from hugetlb_quota.admission.namespace_labels import NamespaceLabels
from hugetlb_quota.admission.waiters import SharedReads, VersionWaiters
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.informer import Informer, ObjectKey
from hugetlb_quota.kube.pages import PAGE, pages
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject, project_quota
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS

#: What the cache has for a key: a quota with an invalid spec is cached as the error.
CachedQuota = QuotaObject | InvalidQuota

#: The longest wait before the watch starts again, in seconds. Until then admission admits no pod
#: with a demand.
LONGEST_BACKOFF: Final = 2.0

logger = logging.getLogger(__name__)


class QuotaCache:
    """All quotas, each in the newest version that this replica has seen; all namespaces' labels."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._quota_informer = Informer[CachedQuota](
            api, HUGETLB_QUOTAS, self._project, longest_backoff=LONGEST_BACKOFF
        )
        self._namespaces = NamespaceLabels(api, LONGEST_BACKOFF)
        self._informers = (self._quota_informer, self._namespaces.informer)
        self._quotas: dict[QuotaKey, CachedQuota] = {}
        self._by_namespace: dict[str, dict[QuotaKey, CachedQuota]] = {}
        self._version_waiters = VersionWaiters()
        self._change_waiters: dict[QuotaKey, list[asyncio.Future[None]]] = {}
        self._shared_reads = SharedReads()
        self._quota_informer.on_change(self._on_change)
        self._quota_informer.on_progress(self._on_progress)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the cache up to date while the context lasts."""
        async with in_background(
            informer_of_quotas=_run_for_ever(self._quota_informer.run),
            informer_of_namespaces=_run_for_ever(self._namespaces.informer.run),
        ):
            yield

    async def ready(self) -> None:
        """Wait for the first lists.

        :raises ApiUnreachable: if the API server does not answer at present.
        """
        for informer in self._informers:
            if not informer.synced.is_set():
                if informer.trouble:
                    raise errors.ApiUnreachable(informer.trouble)
                await informer.synced.wait()

    @property
    def why_not_ready(self) -> str:
        """Why admission can't decide from the cache; "" if it can."""
        for informer in self._informers:
            if informer.trouble or not informer.synced.is_set():
                return informer.trouble or "HugeTLBQuotas have not been read yet."
        return ""

    @property
    def labels(self) -> Mapping[str, Mapping[str, str]]:
        """The labels of all namespaces, by the namespace's name."""
        return self._namespaces.by_name

    def get(self, key: QuotaKey) -> CachedQuota | None:
        """The quota, or None if the cache does not have it."""
        return self._quotas.get(key)

    def all(self) -> Iterable[CachedQuota]:
        """All quotas of the cache; a live view: do not await while iterating over it."""
        return self._quotas.values()

    def in_namespace(self, namespace: str) -> Iterable[CachedQuota]:
        """The quotas of ``namespace``; a live view: do not await while iterating over it."""
        return self._by_namespace.get(namespace, {}).values()

    @property
    def position(self) -> int:
        """The watch has delivered all changes up to this resourceVersion."""
        return self._quota_informer.resource_version

    def put_json(self, raw: Mapping[str, Any], *, written_after: int = 0) -> CachedQuota:
        """Put a quota from the API server's JSON into the cache, unless the cache has a newer one.

        :param written_after: :attr:`position` before the quota was written. The written version
            is later, unless etcd lost history.
        :returns: the quota in ``raw``.
        """
        metadata = raw["metadata"]
        version = int(metadata["resourceVersion"])
        if version <= written_after:
            self._history_lost(version, written_after)
        key = QuotaKey(metadata["namespace"], metadata["name"])
        quota = project_quota(raw, self._quotas.get(key))
        self.put(quota)
        return quota

    def put(self, quota: CachedQuota) -> None:
        """Put ``quota`` into the cache, unless the cache has a newer version."""
        cached = self._quotas.get(quota.key)
        # The watch has passed this version, and the cache has no such quota: it was deleted.
        deleted = cached is None and _version(quota) <= self.position
        if not deleted and (cached is None or _version(cached) < _version(quota)):
            self._set(quota.key, quota)

    async def wait_for(self, resource_version: int) -> None:
        """Wait until the cache has every change up to ``resource_version``.

        :raises Gone: if etcd lost the history of ``resource_version``.
        """
        if self.position >= resource_version:
            return
        await self._version_waiters.wait(resource_version)

    async def newer_than(self, old: QuotaObject, patience: float) -> QuotaObject:
        """A version of the quota after ``old``. Call this after a Conflict on ``old``.

        :param patience: how long to wait for the watch before a read, in seconds.
        :raises InvalidQuota: if the newer spec is invalid.
        :raises NotFound: if the quota is deleted.
        :raises ApiError: if the read fails.
        """
        key, version = old.key, int(old.resource_version)
        cached = self._quotas.get(key)
        if cached is None or _version(cached) <= version:
            changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._change_waiters.setdefault(key, []).append(changed)
            await asyncio.wait((changed,), timeout=patience)
            cached = self._quotas.get(key)
        if cached is None or _version(cached) <= version:
            cached = await self._read_quota(key)
            if cached is None:
                raise errors.NotFound(404, "NotFound", f"HugeTLBQuota {key} is gone.")
        if isinstance(cached, InvalidQuota):
            raise cached
        return cached

    async def read_namespace(self, namespace: str) -> None:
        """Make sure that the cache has every present quota of ``namespace``.

        All requests that wait share one consistent LIST. A request that comes while a LIST is
        under way waits for the next LIST.

        :raises ApiError: if the read fails.
        """
        await self._shared_reads.join(("namespace", namespace), lambda: self._list(namespace))

    async def read(self, keys: Iterable[QuotaKey], namespaces: Iterable[str] = ()) -> None:
        """Make sure that the cache has these quotas, and these namespaces' labels, as they are now.

        :raises ApiError: if a read fails.
        """
        join = self._shared_reads.join
        await asyncio.gather(
            *(join(("quota", key), lambda key=key: self._read_quota(key)) for key in keys),  # type: ignore[misc]
            *(
                join(("labels", name), lambda name=name: self._namespaces.read(name))  # type: ignore[misc]
                for name in namespaces
            ),
        )

    async def _read_quota(self, key: QuotaKey) -> CachedQuota | None:
        before = self._quotas.get(key)
        try:
            raw = await self._api.get(HUGETLB_QUOTAS, key.name, key.namespace)
        except errors.NotFound:
            if before is not None and self._quotas.get(key) is before:
                self._set(key, None)
            return None
        quota = self.put_json(raw)
        if before is not None and _version(quota) < _version(before):
            # A quorum read is never older than what the cache had before the read began.
            self._history_lost(_version(quota), _version(before))
            self._set(key, quota)
        return self._quotas.get(key)

    async def _list(self, namespace: str) -> None:
        def read(continuation: str | None) -> Awaitable[dict[str, Any]]:
            return self._api.list_page(
                HUGETLB_QUOTAS, namespace, limit=PAGE, continuation=continuation
            )

        before = self.position
        is_first = True
        async for page in pages(read):
            version = int(page["metadata"]["resourceVersion"])
            if is_first and version < before:
                self._history_lost(version, before)
            is_first = False
            for raw in page.get("items") or ():
                self.put_json(raw)

    def _history_lost(self, version: int, before: int) -> None:
        """Trust nothing that the old watches delivered, because etcd lost their history."""
        logger.error(
            "The API server is at resourceVersion %d, and was at %d before: etcd was restored"
            " from a backup. Listing the quotas again.",
            *(version, before),
        )
        for informer in self._informers:
            informer.list_anew()

    def _project(self, raw: dict[str, Any]) -> CachedQuota:
        metadata = raw["metadata"]
        cached = self._quotas.get(QuotaKey(metadata["namespace"], metadata["name"]))
        if (
            isinstance(cached, QuotaObject)
            and cached.uid == metadata["uid"]
            and cached.resource_version == metadata["resourceVersion"]
            and cached.spec == raw.get("spec")
        ):
            return cached  # the watch delivers a write of this program
        return project_quota(raw, cached)

    def _on_change(self, old: CachedQuota | None, new: CachedQuota | None, version: int) -> None:
        if new is not None:
            cached = self._quotas.get(new.key)
            if cached is None or _version(cached) <= _version(new):
                self._set(new.key, new)
        elif old is not None:
            cached = self._quotas.get(old.key)
            if cached is not None and _version(cached) <= version:
                self._set(old.key, None)

    def _on_progress(self, listed: bool) -> None:
        if listed:
            # If etcd lost history, a quota that was put into the cache may never have existed.
            store = self._quota_informer.store
            for key in [key for key in self._quotas if ObjectKey(*key) not in store]:
                self._set(key, None)
            for quota in store.values():
                self._set(quota.key, quota)
        self._version_waiters.advance(self.position, listed=listed)

    def _set(self, key: QuotaKey, quota: CachedQuota | None) -> None:
        """Replace the quota in the cache; None removes the quota."""
        in_namespace = self._by_namespace.setdefault(key.namespace, {})
        if quota is None:
            self._quotas.pop(key, None)
            in_namespace.pop(key, None)
            if not in_namespace:
                del self._by_namespace[key.namespace]
        else:
            self._quotas[key] = in_namespace[key] = quota
        for future in self._change_waiters.pop(key, ()):
            if not future.done():
                future.set_result(None)


def _version(quota: CachedQuota) -> int:
    return int(quota.resource_version or 0)


async def _run_for_ever(run: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await run()
        except Exception:  # a bug; without the watch admission would refuse every pod
            logger.exception("The watch of quotas or namespaces failed; starting again.")
            await asyncio.sleep(LONGEST_BACKOFF)
