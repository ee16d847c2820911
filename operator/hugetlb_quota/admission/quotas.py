"""Decides whether a HugeTLBQuota may be made, changed or deleted: all that takes the forest.

What a quota says in itself is checked by the API server with the CRD; the model checks
it again here, for whatever CEL can't.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from hugetlb_quota.accounting.counter import shortfalls
from hugetlb_quota.accounting.forest import Cycle, Detached, ForeignParent, Forest, Quota, QuotaKey
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME, Reservation
from hugetlb_quota.admission import chains, refusal
from hugetlb_quota.admission.commit import (
    Committer,
    NoRoom,
    Overloaded,
    PlaceChanged,
    TooManyReservations,
)
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.review import (
    ALLOW,
    AdmissionRequest,
    Decision,
    allow,
    deny,
    mapping,
    text,
)
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject
from hugetlb_quota.page_size import PageSize


class _Excess(NamedTuple):
    """A quota whose limit of a size is above that of the nearest ancestor that has one."""

    quota: QuotaKey
    size: PageSize
    hard: int
    ancestor: QuotaKey
    limit: int


class QuotaAdmission:
    """Decides on quotas; what a move brings along is reserved before it answers."""

    def __init__(
        self,
        api: chains.Api,
        committer: Committer,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        lifetime: timedelta = RESERVATION_LIFETIME,
    ) -> None:
        self._api = api
        self._committer = committer
        self._now = now
        self._lifetime = lifetime

    async def decide(self, request: AdmissionRequest, deadline: Deadline) -> Decision:
        """The decision on a CREATE, UPDATE or DELETE of a HugeTLBQuota.

        :raises ApiError: when the API can't be asked; TimeoutError is the caller's.
        :raises MalformedReview: when there is no quota in it.
        """
        match request.operation:
            case "CREATE":
                return await self._change(request, None, deadline)
            case "UPDATE":
                # Finalizers and annotations must never wait for a decision.
                if request.new.get("spec") == request.old.get("spec"):
                    return ALLOW
                return await self._change(request, _understood(request.old), deadline)
            case "DELETE":
                return await self._delete(request, deadline)
            case _:
                return ALLOW

    async def _change(
        self, request: AdmissionRequest, old: QuotaObject | None, deadline: Deadline
    ) -> Decision:
        key = _key(request)
        try:
            new = QuotaObject.from_json(request.new)
        except InvalidQuota as error:
            return deny(refusal.invalid_spec(key, error.why))
        if new.quota.parent == key:
            return deny(refusal.own_parent(key))
        # The status in the request is the one that this very write replaces: the API
        # server asks again when it changed meanwhile, so nothing can be charged between.
        moved = old is not None and old.quota.parent != new.quota.parent
        if old is not None and moved and old.counter.reservations:
            # Where these count is not settled until their pods are seen.
            return deny(refusal.unsettled_move(old.counter))
        quotas, namespaces = await chains.read_all(self._api, deadline)
        others = [each.quota for each in quotas if each.key != key]
        before = Forest([*others, *([] if old is None else [old.quota])], namespaces)
        after = Forest([*others, new.quota], namespaces)
        warnings: list[str] = []
        try:
            after.chain(key)
        except Detached as error:
            # A link further up that does not hold is not this quota's fault.
            if isinstance(error, Cycle) or (
                isinstance(error, ForeignParent) and error.quota == key
            ):
                return deny(refusal.broken_chain(key, error))
            if old is not None and moved and old.counter.used:
                return deny(refusal.move_to_nowhere(old.counter, error))
            warnings.append(refusal.waits_for_parent(key, error))
        for excess in _excesses(after, key):
            if _is_news(excess, before, new.quota, old):
                return deny(_refusal(key, excess))
            warnings.append(refusal.attaches_above(*excess))
        if old is not None and moved and old.counter.used:
            charged = {link.key for link in before.attached(key)}
            known = {quota.key: quota for quota in quotas}
            joined = tuple(known[link.key] for link in after.chain(key) if link.key not in charged)
            try:
                await self._bring_along(request, old, joined, deadline)
            except PlaceChanged:
                return await self._change(request, old, deadline)
            except NoRoom as error:
                return deny(refusal.no_room_to_move(old.counter, error.shortfalls))
            except TooManyReservations as error:
                return deny(refusal.no_place_to_move(old.counter, error.counter))
            except Overloaded as error:
                message = refusal.overloaded(
                    f"The move of HugeTLBQuota {key}", error.waiting, error.seconds
                )
                return deny(message, again=1)
        warnings += _below_use(new, old)
        if lost := _lost_children(before, after, key):
            warnings.append(refusal.loses_children(key, lost))
        return allow(*warnings)

    async def _bring_along(
        self,
        request: AdmissionRequest,
        quota: QuotaObject,
        joined: tuple[QuotaObject, ...],
        deadline: Deadline,
    ) -> None:
        """Reserve what is charged to ``quota`` on the ancestors it gets, all or nothing.

        The recount drops a reservation in the write that counts the quota's pods there.

        :raises NoRoom: when one of ``joined`` has none for all of it.
        """
        charge = quota.counter.used.without_zeros()
        if short := shortfalls((each.counter for each in joined), charge, quota.uid):
            raise NoRoom(short, {each.key: each.retained_files for each in joined})
        if joined and not request.dry_run:
            moving = Reservation(
                uid=quota.uid,
                pod=str(quota.key),
                charge=charge,
                expires=self._now() + self._lifetime + timedelta(seconds=deadline.left()),
                request=request.uid,
                since=quota.generation,
            )
            await self._committer.charge(joined, moving, deadline)

    async def _delete(self, request: AdmissionRequest, deadline: Deadline) -> Decision:
        old = _understood(request.old)
        # One that can't be understood can't be admitted to either: let it be removed.
        if old is None:
            return ALLOW
        counter = old.counter
        if counter.pods or counter.reservations:
            return deny(refusal.charged_delete(counter, old.retained_files))
        quotas, namespaces = await chains.read_all(self._api, deadline)
        forest = Forest(
            [*(each.quota for each in quotas if each.key != old.key), old.quota], namespaces
        )
        children = {each.key for each in forest.children(old.key)}
        warnings = [refusal.loses_children(old.key, sorted(children))] if children else []
        if counter.retained:
            charged = [
                each.counter for each in quotas if each.key in children and each.counter.used
            ]
            if charged:
                return deny(refusal.charged_children(old.key, charged))
            # A namespace that goes takes its quotas along: what they retain is not lost.
            leaving = await chains.is_leaving(self._api, old.key.namespace, deadline)
            if not leaving and not old.quota.reparents:
                return deny(refusal.charged_delete(counter, old.retained_files))
            above = forest.attached(old.key)[1:2]
            if not leaving and not above:
                return deny(refusal.nowhere_to_reparent(counter))
            warnings.append(refusal.reparented(counter, above[0].key if above else None))
        return allow(*warnings)


def _key(request: AdmissionRequest) -> QuotaKey:
    metadata = mapping(request.new, "metadata", "request.object")
    name = text(metadata, "name") or text(metadata, "generateName") or request.name
    return QuotaKey(request.namespace or text(metadata, "namespace"), name)


def _understood(raw: Mapping[str, object]) -> QuotaObject | None:
    mapping(raw, "metadata", "request.oldObject")
    try:
        return QuotaObject.from_json(raw)
    except InvalidQuota:
        return None


def _excesses(forest: Forest, key: QuotaKey) -> list[_Excess]:
    """Those of ``key`` and of all quotas attached below it."""
    found = []
    for quota in _at_and_below(forest, key):
        ancestors = forest.attached(quota.key)[1:]
        for size, hard in quota.hard.items():
            nearest = next((each for each in ancestors if size in each.hard), None)
            if nearest is not None and hard > nearest.hard[size]:
                found.append(_Excess(quota.key, size, hard, nearest.key, nearest.hard[size]))
    return found


def _at_and_below(forest: Forest, key: QuotaKey) -> Iterable[Quota]:
    children: dict[QuotaKey, list[Quota]] = {}
    for quota in forest:
        if (
            quota.parent is not None
            and quota.parent in forest
            and forest.admits(forest[quota.parent], quota.key)
        ):
            children.setdefault(quota.parent, []).append(quota)
    reached: dict[QuotaKey, Quota] = {}
    level = [forest[key]]
    while level:
        reached |= {quota.key: quota for quota in level}
        below = [child for quota in level for child in children.get(quota.key, ())]
        level = [child for child in below if child.key not in reached]
    return reached.values()


def _is_news(excess: _Excess, before: Forest, new: Quota, old: QuotaObject | None) -> bool:
    """Whether this very change makes ``excess``, rather than finds it.

    It finds it when the quota below was not attached here before (it waited for its
    parent to appear), or had as much too much already.
    """
    if excess.quota == new.key:
        if old is None or old.quota.parent != new.parent:
            return True
        known = {(each.quota, each.size): each for each in _excesses(before, new.key)}
        same = known.get((excess.quota, excess.size))
        return same is None or excess.hard > same.hard
    if old is None:
        return False
    known = {(each.quota, each.size): each for each in _excesses(before, new.key)}
    same = known.get((excess.quota, excess.size))
    attached = excess.quota in {each.key for each in _at_and_below(before, new.key)}
    return attached and (same is None or excess.limit < same.limit)


def _refusal(key: QuotaKey, excess: _Excess) -> str:
    quota, size, hard, ancestor, limit = excess
    if quota == key:
        return refusal.above_ancestor(key, size, hard, ancestor, limit)
    return refusal.below_descendant(key, size, limit, ancestor, quota, hard)


def _below_use(new: QuotaObject, old: QuotaObject | None) -> list[str]:
    if old is None:
        return []
    counter = new.counter
    return [
        refusal.below_use(counter, size)
        for size, limit in counter.hard.items()
        if counter.used.of(size) > limit and old.counter.hard.get(size) != limit
    ]


def _lost_children(before: Forest, after: Forest, key: QuotaKey) -> list[QuotaKey]:
    if key not in before:
        return []
    kept = {each.key for each in after.children(key)}
    return [each.key for each in before.children(key) if each.key not in kept]
