"""What is to be done next about the certificates: pure, one write at a time.

Whoever leads may be killed after any write, and an API server or a replica of admission may
be late to learn of one. So a CA is trusted for a while before anything is signed by it, and
for a while after nothing is; and the paths overlap in the same way.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from hugetlb_quota.controller.certificates import authority
from hugetlb_quota.controller.certificates.authority import Pair

#: A certificate is renewed when this part of its life is left: a third.
_RENEWED_WITH_LEFT: Final = 3
_PATH_BYTES: Final = 20


@dataclass(frozen=True, slots=True)
class Policy:
    """How long things last.

    ``name``: the CAs' names begin with it. ``hosts``: what admission is asked by. ``overlap``:
    how long two CAs, or two paths, are good beside each other. ``settle``: how long an API
    server may take to see a CA, where others still serve by an older one. ``own``: False where
    somebody else makes certificates and tells the API server of their CA; then the path alone
    is kept here.
    """

    name: str
    hosts: tuple[str, ...]
    authority_lifetime: timedelta = timedelta(days=365)
    serving_lifetime: timedelta = timedelta(days=90)
    overlap: timedelta = timedelta(hours=1)
    settle: timedelta = timedelta(seconds=10)
    own: bool = True


@dataclass(frozen=True, slots=True)
class Authority:
    """The CAs. ``current`` signs; ``coming`` is to; ``retired`` have signed, and are trusted yet.

    ``trusted_since`` and ``coming_trusted_since``: when the API server had been told of each.
    ``served_since``: when what ``current`` signed had been stored. ``asked``: an administrator
    wants new ones now.
    """

    current: Pair | None = None
    trusted_since: datetime | None = None
    coming: Pair | None = None
    coming_trusted_since: datetime | None = None
    retired: tuple[str, ...] = ()
    served_since: datetime | None = None
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Serving:
    """What admission serves with, and what its paths begin with.

    Both paths are answered. ``path_since``: when ``path`` took the place of ``former_path``.
    """

    pair: Pair | None = None
    path: str = ""
    former_path: str = ""
    path_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """What the API server is told: the CAs it may trust, and what the paths begin with.

    ``everywhere``: False where one webhook says this, and another something else.
    """

    bundle: tuple[str, ...] = ()
    path: str = ""
    everywhere: bool = True


@dataclass(frozen=True, slots=True)
class State:
    """All that is stored. ``told``: what the webhook configuration says."""

    authority: Authority
    serving: Serving
    told: Trust


@dataclass(frozen=True, slots=True)
class StoreAuthority:
    """Write the CAs; ``why`` is for the log, "" for what is not worth a line."""

    authority: Authority
    why: str = ""


@dataclass(frozen=True, slots=True)
class StoreServing:
    """Write what admission serves with."""

    serving: Serving
    why: str = ""


@dataclass(frozen=True, slots=True)
class StoreTrust:
    """Write what the API server is told."""

    trust: Trust
    why: str = ""


@dataclass(frozen=True, slots=True)
class Rest:
    """There is nothing to do until ``until``, or until something is changed."""

    until: datetime


Step = StoreAuthority | StoreServing | StoreTrust | Rest


def next_step(state: State, policy: Policy, now: datetime) -> Step:
    """The first thing to do; when it is stored, ask again with what is stored then."""
    steps = _steps if policy.own else _path_alone
    return next(steps(_without_the_future(state, now), policy, now))


def _path_alone(state: State, policy: Policy, now: datetime) -> Iterator[Step]:
    """The same where the certificates are somebody else's."""
    serving, told = state.serving, state.told
    if not serving.path:
        yield StoreServing(replace(serving, path=told.path or secrets.token_hex(_PATH_BYTES)))
    elif _is_foreign(told.path, serving) and told.everywhere:
        yield StoreServing(_with_path(serving, told.path, policy, now), "took over another path")
    elif told.path != serving.path or not told.everywhere:
        told = Trust(told.bundle, serving.path)
        yield StoreTrust(told, "told the API server the path")
    yield Rest(now + policy.overlap)


def _steps(state: State, policy: Policy, now: datetime) -> Iterator[Step]:
    """What is to be done, the most urgent first; always ends with a rest."""
    ca, serving, told = state.authority, state.serving, state.told
    if ca.current is None:
        made = authority.make_authority(policy.name, now, policy.authority_lifetime)
        # Somebody may serve by what is trusted now: an older release, or one whose CA is lost.
        yield StoreAuthority(Authority(current=made, retired=told.bundle), "made a CA")
        return
    known = {ca.current.certificate, *ca.retired, *([ca.coming.certificate] if ca.coming else [])}
    if foreign := tuple(each for each in told.bundle if each not in known):
        # As a rollback leaves it. Taken away at once, it would cut off those who serve by it.
        kept = replace(ca, retired=(*ca.retired, *foreign), served_since=None)
        yield StoreAuthority(kept, "found another CA, which stays trusted for a while")
    if not serving.path:
        yield StoreServing(replace(serving, path=told.path or secrets.token_hex(_PATH_BYTES)))
        return
    if _is_foreign(told.path, serving) and told.everywhere:
        # As a rollback leaves it, whose replicas know that path alone.
        yield StoreServing(_with_path(serving, told.path, policy, now), "took over another path")
        return
    if told != (wanted := _wanted(ca, serving, policy, now)):
        yield StoreTrust(wanted, f"told the API server of {len(wanted.bundle)} CAs")
    if ca.trusted_since is None:
        yield StoreAuthority(replace(ca, trusted_since=now))
        return
    yield from _come(ca, policy, now)
    yield from _serve(ca, serving, told, policy, now)
    yield from _retire(ca, policy, now)
    yield Rest(_next_look(ca, serving, policy, now))


def _is_foreign(path: str, serving: Serving) -> bool:
    return path not in ("", serving.path, serving.former_path)


def _with_path(serving: Serving, path: str, policy: Policy, now: datetime) -> Serving:
    """With a path that the API server knows already, so the paths do not overlap.

    The overlap is over since long: a next leader whose clock is behind must not go back to the
    former path.
    """
    return Serving(serving.pair, path, serving.path, now - 2 * policy.overlap)


def _come(ca: Authority, policy: Policy, now: datetime) -> Iterator[Step]:
    """Bring up the next CA, and let it take over."""
    assert ca.current is not None
    # Where the one that signs is over already, nothing can get worse.
    over = not authority.is_valid(ca.current.certificate, now)
    if ca.coming is None:
        if over or (not ca.retired and (ca.asked or now >= _worn_at(ca.current, policy))):
            made = authority.make_authority(policy.name, now, policy.authority_lifetime)
            coming = replace(ca, coming=made, coming_trusted_since=None, asked=False)
            yield StoreAuthority(coming, "made the next CA")
        return
    if ca.coming_trusted_since is None:
        yield StoreAuthority(replace(ca, coming_trusted_since=now))
        return
    if over or now >= ca.coming_trusted_since + policy.overlap:
        promoted = Authority(
            current=ca.coming,
            trusted_since=ca.coming_trusted_since,
            retired=(*ca.retired, ca.current.certificate),
            asked=ca.asked,
        )
        yield StoreAuthority(promoted, "the next CA takes over")


def _serve(
    ca: Authority, serving: Serving, told: Trust, policy: Policy, now: datetime
) -> Iterator[Step]:
    """See that what admission serves with is of the current CA, and fresh."""
    assert ca.current is not None
    assert ca.trusted_since is not None
    if serving.former_path and serving.path_since is None:
        yield StoreServing(replace(serving, path_since=now))
        return
    is_current = serving.pair is not None and authority.is_issued_by(
        serving.pair.certificate, ca.current.certificate
    )
    if is_current and not _is_stale(serving, ca.current, policy, now):
        return
    # Where no pair is stored, those of another release may serve.
    is_served = serving.pair is None or authority.is_valid(serving.pair.certificate, now)
    due = ca.trusted_since + policy.settle
    if ca.retired and not is_current and is_served and now < due:
        yield Rest(due)
        return
    pair = authority.issue(ca.current, policy.hosts, now, policy.serving_lifetime)
    renewed = replace(serving, pair=pair)
    rotates = serving.pair is not None and not is_current
    if rotates and told.path == serving.path and not _paths_overlap(serving, policy, now):
        # Who learned the path, by an error that told of it, has it no longer.
        renewed = Serving(pair, secrets.token_hex(_PATH_BYTES), serving.path, now)
    yield StoreServing(renewed, "made a serving certificate")


def _retire(ca: Authority, policy: Policy, now: datetime) -> Iterator[Step]:
    """Forget the CAs by which nobody serves any more."""
    if not ca.retired:
        return
    if ca.served_since is None:
        yield StoreAuthority(replace(ca, served_since=now))
    elif _is_over(ca, policy, now):
        # What the API server was told comes before: see _wanted.
        retired = replace(ca, retired=(), served_since=None)
        yield StoreAuthority(retired, "the CA before is trusted no more")


def _wanted(ca: Authority, serving: Serving, policy: Policy, now: datetime) -> Trust:
    """What the API server should be told."""
    assert ca.current is not None
    retired = () if _is_over(ca, policy, now) else ca.retired
    coming = () if ca.coming is None else (ca.coming.certificate,)
    bundle = dict.fromkeys((ca.current.certificate, *coming, *retired))
    former = _paths_overlap(serving, policy, now)
    return Trust(tuple(bundle), serving.former_path if former else serving.path)


def _is_over(ca: Authority, policy: Policy, now: datetime) -> bool:
    """Whether nobody serves by a retired CA any more."""
    return ca.served_since is not None and now >= ca.served_since + policy.overlap


def _paths_overlap(serving: Serving, policy: Policy, now: datetime) -> bool:
    """Whether some replica may not have heard of the new path yet."""
    if not serving.former_path:
        return False
    return serving.path_since is None or now < serving.path_since + policy.overlap


def _worn_at(pair: Pair, policy: Policy) -> datetime:
    """When a CA is to be replaced."""
    left = policy.authority_lifetime / _RENEWED_WITH_LEFT
    return authority.ends(pair.certificate) - max(left, 2 * policy.overlap)


def _is_stale(serving: Serving, by: Pair, policy: Policy, now: datetime) -> bool:
    """Whether what is served is worn, or for other hosts, or no use."""
    pair = serving.pair
    assert pair is not None
    if not authority.is_valid(pair.certificate, now):
        return True
    if not authority.hosts_of(pair.certificate) >= set(policy.hosts):
        return True
    end = authority.ends(pair.certificate)
    could_end = min(now + policy.serving_lifetime, authority.ends(by.certificate))
    is_worn = end - now <= policy.serving_lifetime / _RENEWED_WITH_LEFT
    return is_worn and could_end > end + timedelta(seconds=1)


def _next_look(ca: Authority, serving: Serving, policy: Policy, now: datetime) -> datetime:
    """When time alone may give something to do."""
    assert ca.current is not None
    times = [_worn_at(ca.current, policy)]
    if serving.pair is not None:
        left = policy.serving_lifetime / _RENEWED_WITH_LEFT
        times.append(authority.ends(serving.pair.certificate) - left)
    overlaps = (ca.coming_trusted_since, ca.served_since, serving.path_since)
    times += [since + policy.overlap for since in overlaps if since is not None]
    return min((each for each in times if each > now), default=now + policy.overlap)


def _without_the_future(state: State, now: datetime) -> State:
    """Take times that have not come, by another clock or one that was wrong, for none."""

    def past(when: datetime | None) -> datetime | None:
        return None if when is None or when > now else when

    ca, serving = state.authority, state.serving
    return replace(
        state,
        authority=replace(
            ca,
            trusted_since=past(ca.trusted_since),
            coming_trusted_since=past(ca.coming_trusted_since),
            served_since=past(ca.served_since),
        ),
        serving=replace(serving, path_since=past(serving.path_since)),
    )
