"""Decide the next write for the webhooks' certificates; pure.

The leader may be killed after any write, and API servers and replicas of admission may see a write
late. So every change overlaps with the state before. A rotation of the CA:

1. The next CA is made, and is added to the webhook configuration.
2. After the overlap the next CA becomes the current CA. The old CA is retired, but stays trusted.
3. The current CA signs a new serving certificate. A new path begins; admission still answers on the
   former path, and the API server still uses the former path.
4. After the overlap the webhook configuration gets the new path, and loses the retired CA.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from hugetlb_quota.controller.certificates import authority
from hugetlb_quota.controller.certificates.authority import Pair
from hugetlb_quota.controller.certificates.state import Authorities, Serving, State, Trust
from hugetlb_quota.plural import number_of

#: A certificate is replaced when a third of its lifetime is left.
_LIFETIME_BY_REST: Final = 3
#: The random bytes of a path.
_PATH_BYTES: Final = 20


@dataclass(frozen=True, slots=True)
class Policy:
    """Names and durations.

    ``name``: the first part of the CAs' names. ``hosts``: the host names of admission's Services.
    ``overlap``: how long two CAs, or two paths, are valid at the same time. ``propagation``: how
    long an API server may take to see a new CA. ``makes_certificates``: False if another tool makes
    the certificates, and writes their CA into the webhook configuration; then only the path is
    managed here.
    """

    name: str
    hosts: tuple[str, ...]
    authority_lifetime: timedelta = timedelta(days=365)
    serving_lifetime: timedelta = timedelta(days=90)
    overlap: timedelta = timedelta(hours=1)
    propagation: timedelta = timedelta(seconds=10)
    makes_certificates: bool = True


@dataclass(frozen=True, slots=True)
class StoreAuthorities:
    """Write the Secret of the CA; ``why`` is for the log, "" for a write that is not logged."""

    authorities: Authorities
    why: str = ""


@dataclass(frozen=True, slots=True)
class StoreServing:
    """Write the Secret of admission."""

    serving: Serving
    why: str = ""


@dataclass(frozen=True, slots=True)
class StoreTrust:
    """Write the webhook configuration."""

    trust: Trust
    why: str = ""


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to write until the time ``until``, or until the stored state changes."""

    until: datetime


Step = StoreAuthorities | StoreServing | StoreTrust | Rest


def next_step(state: State, policy: Policy, now: datetime) -> Step:
    """The most urgent write; after the write, call again with the new state."""
    steps = _steps if policy.makes_certificates else _path_steps
    return next(steps(_without_future_times(state, now), policy, now))


def _path_steps(state: State, policy: Policy, now: datetime) -> Iterator[Step]:
    """The steps if another tool makes the certificates."""
    serving, configured = state.serving, state.configured
    if not serving.path:
        path = configured.path or secrets.token_hex(_PATH_BYTES)
        yield StoreServing(replace(serving, path=path))
    elif _is_foreign_path(configured.path, serving) and configured.uniform:
        yield _adopt_path(serving, configured.path, policy, now)
    elif configured.path != serving.path or not configured.uniform:
        trust = Trust(configured.bundle, serving.path)
        yield StoreTrust(trust, "wrote the path into the webhook configuration")
    yield Rest(now + policy.overlap)


def _steps(state: State, policy: Policy, now: datetime) -> Iterator[Step]:
    """All steps, the most urgent first; the last one is always a Rest."""
    ca, serving, configured = state.authorities, state.serving, state.configured
    if ca.current is None:
        made = authority.make_authority(policy.name, now, policy.authority_lifetime)
        # Replicas may use a certificate of a CA that is configured now: after an upgrade from an
        # older release, or after the loss of the Secret. So these CAs stay trusted for a while.
        yield StoreAuthorities(Authorities(current=made, retired=configured.bundle), "made a CA")
        return
    ours = {ca.current.certificate, *ca.retired, *([ca.next.certificate] if ca.next else [])}
    if foreign := tuple(each for each in configured.bundle if each not in ours):
        # A rollback configures its own CA, and its replicas use a certificate of that CA.
        kept = replace(ca, retired=(*ca.retired, *foreign), served_since=None)
        yield StoreAuthorities(kept, "found another CA, which stays trusted for a while")
    if not serving.path:
        path = configured.path or secrets.token_hex(_PATH_BYTES)
        yield StoreServing(replace(serving, path=path))
        return
    if _is_foreign_path(configured.path, serving) and configured.uniform:
        # A rollback configures its own path, and its replicas answer on no other path.
        yield _adopt_path(serving, configured.path, policy, now)
        return
    if configured != (wanted := _wanted_trust(ca, serving, policy, now)):
        yield StoreTrust(
            wanted, f"wrote {number_of(len(wanted.bundle), 'CA')} into the webhook configuration"
        )
    if ca.trusted_since is None:
        yield StoreAuthorities(replace(ca, trusted_since=now))
        return
    yield from _next_ca_steps(ca, policy, now)
    yield from _serving_steps(ca, serving, configured, policy, now)
    yield from _retired_ca_steps(ca, policy, now)
    yield Rest(_next_change(ca, serving, policy, now))


def _is_foreign_path(path: str, serving: Serving) -> bool:
    return path not in ("", serving.path, serving.former_path)


def _adopt_path(serving: Serving, path: str, policy: Policy, now: datetime) -> StoreServing:
    """Adopt a path that is already in the webhook configuration.

    The path needs no overlap, so ``path_since`` is before any overlap. The clock of the
    next leader may be behind; with a later ``path_since`` that leader would go back to the former
    path.
    """
    adopted = Serving(serving.pair, path, serving.path, now - 2 * policy.overlap)
    return StoreServing(adopted, "adopted the path of the webhook configuration")


def _next_ca_steps(ca: Authorities, policy: Policy, now: datetime) -> Iterator[Step]:
    """Make the next CA, and make it the current CA after the overlap."""
    assert ca.current is not None
    # Nobody trusts an expired CA, so no overlap is needed.
    has_expired = not authority.is_valid(ca.current.certificate, now)
    if ca.next is None:
        due = ca.rotation_requested or now >= _replace_at(ca.current, policy)
        if has_expired or (due and not ca.retired):
            made = authority.make_authority(policy.name, now, policy.authority_lifetime)
            with_next = replace(ca, next=made, next_trusted_since=None, rotation_requested=False)
            yield StoreAuthorities(with_next, "made the next CA")
        return
    if ca.next_trusted_since is None:
        yield StoreAuthorities(replace(ca, next_trusted_since=now))
        return
    if has_expired or now >= ca.next_trusted_since + policy.overlap:
        promoted = Authorities(
            current=ca.next,
            trusted_since=ca.next_trusted_since,
            retired=(*ca.retired, ca.current.certificate),
            rotation_requested=ca.rotation_requested,
        )
        yield StoreAuthorities(promoted, "the next CA became the current CA")


def _serving_steps(
    ca: Authorities, serving: Serving, configured: Trust, policy: Policy, now: datetime
) -> Iterator[Step]:
    """Replace a serving certificate that is old, or that the current CA did not sign."""
    assert ca.current is not None
    assert ca.trusted_since is not None
    if serving.former_path and serving.path_since is None:
        yield StoreServing(replace(serving, path_since=now))
        return
    is_current = serving.pair is not None and authority.is_issued_by(
        serving.pair.certificate, ca.current.certificate
    )
    if is_current and not _needs_renewal(serving, ca.current, policy, now):
        return
    # Without a stored certificate, replicas of another release may use one.
    is_in_use = serving.pair is None or authority.is_valid(serving.pair.certificate, now)
    due = ca.trusted_since + policy.propagation
    if ca.retired and not is_current and is_in_use and now < due:
        # The certificate in use still works, and some API server may not trust the current CA yet.
        yield Rest(due)
        return
    pair = authority.issue(ca.current, policy.hosts, now, policy.serving_lifetime)
    renewed = replace(serving, pair=pair)
    rotates = serving.pair is not None and not is_current
    if rotates and configured.path == serving.path and not _paths_overlap(serving, policy, now):
        # The path changes too, because an error message may have shown it.
        renewed = Serving(pair, secrets.token_hex(_PATH_BYTES), serving.path, now)
    yield StoreServing(renewed, "made a serving certificate")


def _retired_ca_steps(ca: Authorities, policy: Policy, now: datetime) -> Iterator[Step]:
    """Forget the retired CAs when no replica uses a certificate of theirs any more."""
    if not ca.retired:
        return
    if ca.served_since is None:
        yield StoreAuthorities(replace(ca, served_since=now))
    elif _retired_are_unused(ca, policy, now):
        # _wanted_trust has already removed these CAs from the webhook configuration.
        rest = replace(ca, retired=(), served_since=None)
        yield StoreAuthorities(rest, "the retired CAs are not trusted any more")


def _wanted_trust(ca: Authorities, serving: Serving, policy: Policy, now: datetime) -> Trust:
    """The CAs and the path that the webhook configuration should have."""
    assert ca.current is not None
    retired = () if _retired_are_unused(ca, policy, now) else ca.retired
    coming = () if ca.next is None else (ca.next.certificate,)
    bundle = dict.fromkeys((ca.current.certificate, *coming, *retired))
    overlap = _paths_overlap(serving, policy, now)
    return Trust(tuple(bundle), serving.former_path if overlap else serving.path)


def _retired_are_unused(ca: Authorities, policy: Policy, now: datetime) -> bool:
    """Whether every replica has loaded the certificate of the current CA by now."""
    return ca.served_since is not None and now >= ca.served_since + policy.overlap


def _paths_overlap(serving: Serving, policy: Policy, now: datetime) -> bool:
    """Whether some replica may not have loaded the new path yet."""
    if not serving.former_path:
        return False
    return serving.path_since is None or now < serving.path_since + policy.overlap


def _replace_at(pair: Pair, policy: Policy) -> datetime:
    """The time to make the next CA."""
    left = policy.authority_lifetime / _LIFETIME_BY_REST
    return authority.expires_at(pair.certificate) - max(left, 2 * policy.overlap)


def _needs_renewal(serving: Serving, ca: Pair, policy: Policy, now: datetime) -> bool:
    """Whether the serving certificate is not valid, lacks a host, or ends soon.

    A certificate that ends with its CA is not renewed: a new one would not end later.
    """
    pair = serving.pair
    assert pair is not None
    if not authority.is_valid(pair.certificate, now):
        return True
    if not authority.hosts_of(pair.certificate) >= set(policy.hosts):
        return True
    end = authority.expires_at(pair.certificate)
    possible_end = min(now + policy.serving_lifetime, authority.expires_at(ca.certificate))
    ends_soon = end - now <= policy.serving_lifetime / _LIFETIME_BY_REST
    return ends_soon and possible_end > end + timedelta(seconds=1)


def _next_change(ca: Authorities, serving: Serving, policy: Policy, now: datetime) -> datetime:
    """The next time at which the passing of time alone may cause a write."""
    assert ca.current is not None
    times = [_replace_at(ca.current, policy)]
    if serving.pair is not None:
        left = policy.serving_lifetime / _LIFETIME_BY_REST
        times.append(authority.expires_at(serving.pair.certificate) - left)
    overlaps = (ca.next_trusted_since, ca.served_since, serving.path_since)
    times += [since + policy.overlap for since in overlaps if since is not None]
    return min((each for each in times if each > now), default=now + policy.overlap)


def _without_future_times(state: State, now: datetime) -> State:
    """The state without times in the future: they are of another clock, or of a wrong one."""

    def past(when: datetime | None) -> datetime | None:
        return None if when is None or when > now else when

    ca, serving = state.authorities, state.serving
    return replace(
        state,
        authorities=replace(
            ca,
            trusted_since=past(ca.trusted_since),
            next_trusted_since=past(ca.next_trusted_since),
            served_since=past(ca.served_since),
        ),
        serving=replace(serving, path_since=past(serving.path_since)),
    )
