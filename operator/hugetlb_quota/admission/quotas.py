"""Decides whether a HugeTLBQuota may be made, changed or deleted: all that takes the forest.

What a quota says in itself is checked by the API server with the CRD; the model checks
it again here, for whatever CEL can't.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from hugetlb_quota.accounting.changes import Change, in_the_way
from hugetlb_quota.accounting.counter import shortfalls
from hugetlb_quota.accounting.forest import Forest, QuotaKey
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME, Reservation
from hugetlb_quota.admission import quota_sentences, request_sentences
from hugetlb_quota.admission.api import Api, is_leaving, read_all
from hugetlb_quota.admission.batch import NoRoom, PlaceChanged, TooManyReservations
from hugetlb_quota.admission.changes import ChangeNotes, NotesUnusable
from hugetlb_quota.admission.commit import Committer, Overloaded
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.proposal import Proposal, selector_fault
from hugetlb_quota.admission.review import (
    ALLOW,
    AdmissionRequest,
    Cause,
    Decision,
    allow,
    deny,
    mapping,
    resource_version,
)
from hugetlb_quota.api.quota import FINALIZER
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.quotas import InvalidQuota, QuotaObject

#: How long a change waits for others to be stored, and how often it looks, in seconds.
LONGEST_WAIT: Final = 2.0
WAIT_PERIOD: Final = 0.05


class _Refused(Exception):
    """The sentence that refuses, after how many seconds it may go otherwise, and the cause."""

    def __init__(self, message: str, *, retry_after: int, cause: Cause = "rule") -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.cause = cause


class QuotaAdmission:
    """Decides on quotas; what a move brings along is reserved before it answers."""

    def __init__(
        self,
        api: Api,
        committer: Committer,
        notes: ChangeNotes,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        lifetime: timedelta = RESERVATION_LIFETIME,
    ) -> None:
        self._api = api
        self._committer = committer
        self._notes = notes
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
            return deny(quota_sentences.invalid_spec(key, error.why))
        if new.quota.parent == key:
            return deny(quota_sentences.own_parent(key))
        if fault := selector_fault(old, new):
            return deny(fault)
        # The status in the request is the one that this very write replaces: the API
        # server asks again when it changed meanwhile, so nothing can be charged between.
        moved = old is not None and old.quota.parent != new.quota.parent
        if old is not None and moved and old.counter.pending:
            # Where these count is not settled until their pods are seen.
            return deny(quota_sentences.move_with_reservations(old.counter))
        try:
            proposal = await self._settle(request, old, new, deadline)
        except _Refused as refused:
            return deny(refused.message, retry_after=refused.retry_after, cause=refused.cause)
        if old is None or not proposal.charge_moves:
            return allow(*proposal.warnings)
        try:
            await self._bring_along(request, old, proposal.joined(), deadline)
        except PlaceChanged:
            return await self._change(request, old, deadline)
        except NoRoom as error:
            denied = deny(quota_sentences.no_room_to_move(old.counter, error.shortfalls))
        except TooManyReservations as error:
            denied = deny(
                quota_sentences.no_place_to_move(old.counter, error.counter), cause="full"
            )
        except Overloaded as error:
            what = f"The move of HugeTLBQuota {key}"
            denied = deny(
                request_sentences.overloaded(what, error.waiting, error.seconds),
                retry_after=1,
                cause="overloaded",
            )
        else:
            return allow(*proposal.warnings)
        await self._notes.withdraw(lambda each: each.request == request.uid, deadline)
        return denied

    async def _settle(
        self,
        request: AdmissionRequest,
        old: QuotaObject | None,
        new: QuotaObject,
        deadline: Deadline,
    ) -> Proposal:
        """The change in the forest that there is, noted for those that come after it.

        :raises _Refused: when it can't be, or others are under way that it depends on.
        """
        until = deadline.left() - min(LONGEST_WAIT, deadline.seconds / 2)
        while True:
            # Nothing is stored after a dry run, and nothing but the place matters to others.
            if request.dry_run or not _may_clash(request, old, new):
                quotas, namespaces = await read_all(self._api, deadline)
                return _judged(Proposal(old, new, quotas, namespaces))
            try:
                async with self._notes.lock:
                    proposal, waits_for = await self._note(request, old, new, deadline)
            except errors.Conflict:
                continue
            except NotesUnusable as error:
                message = quota_sentences.notes_unusable(new.key, error)
                raise _Refused(message, retry_after=0, cause="full") from error
            if not waits_for:
                return proposal
            if deadline.left() <= until:
                raise _Refused(quota_sentences.others_under_way(new.key, waits_for), retry_after=1)
            await asyncio.sleep(WAIT_PERIOD)

    async def _note(
        self,
        request: AdmissionRequest,
        old: QuotaObject | None,
        new: QuotaObject,
        deadline: Deadline,
    ) -> tuple[Proposal, tuple[QuotaKey, ...]]:
        """Judge the change, and note it, unless others are in its way: then which.

        :raises Conflict: when another replica came between.
        """
        noted = await self._notes.read(deadline)
        quotas, namespaces = await read_all(self._api, deadline)
        proposal = _judged(Proposal(old, new, quotas, namespaces))
        versions = {each.key: int(each.resource_version) for each in quotas}
        change = Change(
            quota=new.key,
            parent=new.quota.parent,
            since=0 if request.operation == "CREATE" else _version(request),
            request=request.uid,
            expires=self._notes.expires(deadline),
        )
        pending = [each for each in noted.changes if each.may_come(versions, self._notes.now())]
        if waits_for := in_the_way(change, pending, proposal.forest()):
            return proposal, waits_for
        # What is there already is not made, whatever is answered.
        if request.operation != "CREATE" or new.key not in versions:
            others = [each for each in pending if each.request != request.uid]
            await self._notes.write(noted, [*others, change], deadline)
        return proposal, ()

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
                expires=self._now() + self._lifetime,
                request=request.uid,
                since=quota.generation,
            )
            await self._committer.charge(joined, moving, deadline)

    async def _delete(self, request: AdmissionRequest, deadline: Deadline) -> Decision:
        old = _understood(request.old)
        # One that can't be understood can't be admitted to either: let it be removed.
        if old is None:
            return ALLOW
        if not request.dry_run:
            # It was made, and nobody is to wait for that any more.
            await self._notes.withdraw(
                lambda each: each.quota == old.key and not each.since, deadline
            )
        counter = old.counter
        # A namespace that goes takes its quotas along.
        leaving = bool(counter.used) and await is_leaving(self._api, old.key.namespace, deadline)
        waits = bool(counter.used) and request.old["spec"].get("deletionPolicy") == "Wait"
        if (counter.pods or counter.pending) and not (leaving or waits):
            return deny(quota_sentences.charged_delete(counter, old.retained_files))
        quotas, namespaces = await read_all(self._api, deadline)
        forest = Forest(
            [*(each.quota for each in quotas if each.key != old.key), old.quota], namespaces
        )
        children = {each.key for each in forest.children(old.key)}
        charged = [each.counter for each in quotas if each.key in children and each.counter.used]
        warnings = [quota_sentences.loses_children(old.key, sorted(children))] if children else []
        if waits or (leaving and (charged or counter.pods or counter.reservations)):
            if FINALIZER not in (request.old["metadata"].get("finalizers") or ()):
                return deny(quota_sentences.unguarded_delete(counter))
            # It takes no more pods from now on, and stays until nothing is charged.
            return allow(quota_sentences.goes_when_uncharged(counter), *warnings)
        if counter.retained:
            if charged:
                return deny(quota_sentences.charged_children(old.key, charged))
            if not leaving and not old.quota.reparents:
                return deny(quota_sentences.charged_delete(counter, old.retained_files))
            above = forest.attached(old.key)[1:2]
            if not leaving and not above:
                return deny(quota_sentences.nowhere_to_reparent(counter))
            warnings.append(quota_sentences.reparented(counter, above[0].key if above else None))
        return allow(*warnings)


def _key(request: AdmissionRequest) -> QuotaKey:
    return QuotaKey(*request.namespace_and_name(mapping(request.new, "metadata", "request.object")))


def _understood(raw: Mapping[str, object]) -> QuotaObject | None:
    mapping(raw, "metadata", "request.oldObject")
    try:
        return QuotaObject.from_json(raw)
    except InvalidQuota:
        return None


def _may_clash(request: AdmissionRequest, old: QuotaObject | None, new: QuotaObject) -> bool:
    """Whether this change and another can each be right, and both together wrong."""
    if old is None:
        # Below a root that is to be made nothing is attached yet.
        return request.operation != "CREATE" or new.quota.parent is not None
    return any(
        getattr(old.quota, name) != getattr(new.quota, name)
        for name in ("parent", "hard", "child_namespaces")
    )


def _version(request: AdmissionRequest) -> int:
    return resource_version(mapping(request.old, "metadata", "request.oldObject"))


def _judged(proposal: Proposal) -> Proposal:
    """:raises _Refused: when it is wrong by what is stored."""
    if why := proposal.refusal():
        raise _Refused(why, retry_after=0)
    return proposal
