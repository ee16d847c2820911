"""Decide whether a HugeTLBQuota may be created, changed or deleted.

The API server checks with the CRD what concerns one quota alone; the model in ``api`` checks
again what CEL can't. The checks here need the forest.
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
from hugetlb_quota.admission.batch import ChainChanged, NoRoom, TooManyReservations
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

#: How long a change waits until related changes are stored, and how often it looks, in seconds.
LONGEST_WAIT: Final = 2.0
WAIT_PERIOD: Final = 0.05


class _QuotaRefused(Exception):
    """The change is refused; the fields are those of a Decision."""

    def __init__(self, message: str, *, retry_after: int = 0, cause: Cause = "rule") -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.cause = cause


class QuotaAdmission:
    """Decides on quotas, and reserves the charge of a quota that moves to another parent.

    :param now: returns the present time.
    :param lifetime: how long the write of a quota may run after admission's answer.
    """

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

        :raises ApiError: if a read or a write fails.
        :raises MalformedReview: if the request has no quota.
        """
        match request.operation:
            case "CREATE":
                return await self._change(request, None, deadline)
            case "UPDATE":
                # A change of finalizers or annotations never waits for a decision.
                if request.new.get("spec") == request.old.get("spec"):
                    return ALLOW
                return await self._change(request, _valid_or_none(request.old), deadline)
            case "DELETE":
                return await self._delete(request, deadline)
            case _:
                return ALLOW

    async def _change(
        self, request: AdmissionRequest, old: QuotaObject | None, deadline: Deadline
    ) -> Decision:
        """Decide on a new or changed quota.

        :param old: the stored quota; None if there is none, or if its spec is invalid.
        """
        key = _key(request)
        try:
            new = QuotaObject.from_json(request.new)
        except InvalidQuota as error:
            return deny(quota_sentences.invalid_spec(key, error.why))
        if new.quota.parent == key:
            return deny(quota_sentences.own_parent(key))
        if fault := selector_fault(old, new):
            return deny(fault)
        # The status in the request is the stored one: if the status changes before this write, the
        # API server asks again. So no charge can be missed here.
        moved = old is not None and old.quota.parent != new.quota.parent
        if old is not None and moved and old.counter.pending:
            # Until the pods of these reservations are counted, it is open which parent pays.
            return deny(quota_sentences.move_with_reservations(old.counter))
        try:
            proposal = await self._check_and_note(request, old, new, deadline)
        except _QuotaRefused as refused:
            return deny(refused.message, retry_after=refused.retry_after, cause=refused.cause)
        if old is None or not proposal.charge_moves:
            return allow(*proposal.warnings)
        try:
            await self._reserve_move(request, old, proposal.joined(), deadline)
        except ChainChanged:
            return await self._change(request, old, deadline)
        except NoRoom as error:
            denied = deny(quota_sentences.no_room_to_move(old.counter, error.shortfalls))
        except TooManyReservations as error:
            message = quota_sentences.no_line_for_move(old.counter, error.counter)
            denied = deny(message, cause="full")
        except Overloaded as error:
            what = f"The move of HugeTLBQuota {key}"
            message = request_sentences.overloaded(what, error.waiting, error.seconds)
            denied = deny(message, retry_after=1, cause="overloaded")
        else:
            return allow(*proposal.warnings)
        await self._notes.withdraw(lambda each: each.request == request.uid, deadline)
        return denied

    async def _check_and_note(
        self,
        request: AdmissionRequest,
        old: QuotaObject | None,
        new: QuotaObject,
        deadline: Deadline,
    ) -> Proposal:
        """Check the change against the stored quotas, and note it for later changes.

        :raises _QuotaRefused: if the change breaks a rule, or can't be noted, or if related
            changes were not stored in time.
        """
        until = deadline.left() - min(LONGEST_WAIT, deadline.seconds / 2)
        while True:
            # After a dry run nothing is stored.
            if request.dry_run or not _may_clash(request, old, new):
                quotas, namespaces = await read_all(self._api, deadline)
                return _checked(Proposal(old, new, quotas, namespaces))
            try:
                async with self._notes.lock:
                    proposal, waits_for = await self._try_to_note(request, old, new, deadline)
            except errors.Conflict:
                continue
            except NotesUnusable as error:
                message = quota_sentences.notes_unusable(new.key, error)
                raise _QuotaRefused(message, cause="full") from error
            if not waits_for:
                return proposal
            if deadline.left() <= until:
                message = quota_sentences.others_under_way(new.key, waits_for)
                raise _QuotaRefused(message, retry_after=1)
            await asyncio.sleep(WAIT_PERIOD)

    async def _try_to_note(
        self,
        request: AdmissionRequest,
        old: QuotaObject | None,
        new: QuotaObject,
        deadline: Deadline,
    ) -> tuple[Proposal, tuple[QuotaKey, ...]]:
        """Check the change, and note it if no related change may still be stored.

        :returns: the proposal, and the quotas with changes that are in the way; if there are any,
            the change is not noted.
        :raises Conflict: if another replica wrote a note meanwhile.
        :raises _QuotaRefused: if the change breaks a rule.
        """
        notes = await self._notes.read(deadline)
        quotas, namespaces = await read_all(self._api, deadline)
        proposal = _checked(Proposal(old, new, quotas, namespaces))
        versions = {each.key: int(each.resource_version) for each in quotas}
        is_creation = request.operation == "CREATE"
        change = Change(
            quota=new.key,
            parent=new.quota.parent,
            since=0 if is_creation else _version(request),
            request=request.uid,
            expires=self._notes.expires(deadline),
        )
        pending = self._notes.pending(notes, versions)
        if waits_for := in_the_way(change, pending, proposal.forest()):
            return proposal, waits_for
        # The API server refuses to create a quota that exists.
        if not is_creation or new.key not in versions:
            others = [each for each in pending if each.request != request.uid]
            await self._notes.write(notes, [*others, change], deadline)
        return proposal, ()

    async def _reserve_move(
        self,
        request: AdmissionRequest,
        quota: QuotaObject,
        joined: tuple[QuotaObject, ...],
        deadline: Deadline,
    ) -> None:
        """Reserve all that is charged to ``quota`` on its new ancestors, or nothing.

        The controller ends the reservation in the write that counts the quota's pods there.

        :param joined: the new ancestors.
        :raises NoRoom: if a new ancestor has no room.
        :raises ChainChanged: if a new ancestor is no longer as in ``joined``.
        :raises TooManyReservations: if the object of a new ancestor has no room for a reservation.
        :raises Overloaded: if the reservation can't be made in time.
        """
        charge = quota.counter.used.without_zeros()
        if short := shortfalls((each.counter for each in joined), charge, quota.uid):
            raise NoRoom.of(short, joined)
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
        old = _valid_or_none(request.old)
        # Nothing is admitted under an invalid quota, and people must be able to remove it.
        if old is None:
            return ALLOW
        if not request.dry_run:
            # The creation of this quota was stored: no change needs to wait for it any more.
            await self._notes.withdraw(
                lambda each: each.quota == old.key and not each.since, deadline
            )
        counter = old.counter
        # A namespace that is being deleted takes its quotas along.
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
            # From now on the quota takes no pods. The finalizer keeps it until nothing is charged.
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


def _valid_or_none(raw: Mapping[str, object]) -> QuotaObject | None:
    """The stored quota, or None if its spec is invalid."""
    mapping(raw, "metadata", "request.oldObject")
    try:
        return QuotaObject.from_json(raw)
    except InvalidQuota:
        return None


def _may_clash(request: AdmissionRequest, old: QuotaObject | None, new: QuotaObject) -> bool:
    """Whether this change and another change can each be valid, and both together invalid."""
    if old is None:
        # Nothing is attached yet below a new root.
        return request.operation != "CREATE" or new.quota.parent is not None
    return any(
        getattr(old.quota, name) != getattr(new.quota, name)
        for name in ("parent", "hard", "child_namespaces")
    )


def _version(request: AdmissionRequest) -> int:
    """The resourceVersion of the stored object."""
    return resource_version(mapping(request.old, "metadata", "request.oldObject"))


def _checked(proposal: Proposal) -> Proposal:
    """The proposal; raises _QuotaRefused if it breaks a rule."""
    if why := proposal.refusal():
        raise _QuotaRefused(why)
    return proposal
