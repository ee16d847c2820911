"""The rotation, step by step: leaders are killed after any step, and every reader may be late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509 import verification
from hypothesis import given, settings
from hypothesis import strategies as st

from hugetlb_quota.controller.certificates import authority
from hugetlb_quota.controller.certificates.rotation import (
    Policy,
    Rest,
    Step,
    StoreAuthorities,
    StoreServing,
    StoreTrust,
    next_step,
)
from hugetlb_quota.controller.certificates.state import Authorities, Serving, State, Trust

HOST = "admission.system.svc"
POLICY = Policy("test-ca", (HOST,))
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
#: The longest time until a write is seen: less than `Policy.propagation`.
LATE = timedelta(seconds=8)


@dataclass
class Store:
    """The stored state, and the earlier states that a late reader may still see."""

    now: datetime = BEGAN
    state: State = State(Authorities(), Serving(), Trust())
    served: list[tuple[datetime, Serving]] = field(default_factory=list)
    configured: list[tuple[datetime, Trust]] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def decide(self) -> Step:
        return next_step(self.state, POLICY, self.now)

    def write(self, step: Step) -> None:
        self.written.append(type(step).__name__)
        if isinstance(step, StoreAuthorities):
            self.state = replace(self.state, authorities=step.authorities)
        elif isinstance(step, StoreServing):
            self.served.append((self.now, self.state.serving))
            self.state = replace(self.state, serving=step.serving)
        elif isinstance(step, StoreTrust):
            self.configured.append((self.now, self.state.configured))
            self.state = replace(self.state, configured=step.trust)

    def check(self) -> None:
        """Check that every replica can answer every API server, in any state that they may see."""
        servings = [self.state.serving, *(s for at, s in self.served if at > self.now - LATE)]
        trusts = [self.state.configured, *(t for at, t in self.configured if at > self.now - LATE)]
        for serving in servings:
            for trust in trusts:
                # Without a certificate no replica serves; without a CA no API server calls.
                if serving.pair is not None and trust.bundle:
                    assert is_trusted(serving.pair.certificate, trust.bundle, self.now)
                    assert trust.path in (serving.path, serving.former_path)

    def write_all(self, *, checked: bool = True) -> None:
        """Make all writes that are due now."""
        for _ in range(20):
            step = self.decide()
            if isinstance(step, Rest):
                assert step.until > self.now
                return
            self.write(step)
            if checked:
                self.check()
        raise AssertionError(f"too many writes: {self.written[-20:]}")

    def harm(self, harm: Callable[[State], State]) -> None:
        """Overwrite the state as another writer does, and correct it; check only later states."""
        self.state = harm(self.state)
        self.write_all(checked=False)
        self.served.clear()
        self.configured.clear()

    def live(self, span: timedelta) -> None:
        """Let time pass, from each Rest to the next."""
        end = self.now + span
        pair = self.state.serving.pair
        if pair is not None and not authority.is_valid(pair.certificate, self.now):
            self.write_all(checked=False)
        while self.now < end:
            self.write_all()
            step = self.decide()
            assert isinstance(step, Rest)
            self.now = min(step.until, end)
            self.check()


def is_trusted(certificate: str, bundle: tuple[str, ...], now: datetime) -> bool:
    """Whether an API server with the CAs of ``bundle`` accepts the certificate."""
    store = verification.Store([x509.load_pem_x509_certificate(each.encode()) for each in bundle])
    verifier = (
        verification.PolicyBuilder()
        .store(store)
        .time(now)
        .build_server_verifier(x509.DNSName(HOST))
    )
    try:
        verifier.verify(x509.load_pem_x509_certificate(certificate.encode()), [])
    except verification.VerificationError:
        return False
    return True


def complete() -> Store:
    store = Store()
    store.write_all()
    return store


def test_five_writes_make_everything_from_nothing() -> None:
    store = complete()
    first = ["StoreAuthorities", "StoreServing", "StoreTrust"]
    assert store.written == [*first, "StoreAuthorities", "StoreServing"]
    state = store.state
    assert state.authorities.current is not None
    assert state.configured == Trust((state.authorities.current.certificate,), state.serving.path)
    assert len(state.serving.path) == 40


def test_everything_is_renewed_long_before_it_expires() -> None:
    store = complete()
    first = store.state
    store.live(timedelta(days=400))
    now = store.state
    assert now.authorities.current != first.authorities.current
    assert now.serving.path != first.serving.path
    assert now.authorities.retired == ()
    assert len(now.configured.bundle) == 1
    assert now.configured.path == now.serving.path
    assert now.authorities.current is not None
    assert authority.expires_at(now.authorities.current.certificate) - store.now > timedelta(
        days=121
    )
    # Five serving certificates a year, and a rotation.
    assert store.written.count("StoreServing") < 12


def rotate(store: Store) -> None:
    store.state = replace(
        store.state, authorities=replace(store.state.authorities, rotation_requested=True)
    )


def test_an_administrator_requests_a_rotation() -> None:
    store = complete()
    first = store.state
    rotate(store)
    store.write_all()
    assert len(store.state.configured.bundle) == 2
    assert store.state.serving == first.serving, "the next CA must not sign before it is trusted"
    store.live(3 * POLICY.overlap)
    assert first.authorities.current is not None
    assert first.authorities.current.certificate not in store.state.configured.bundle
    assert store.state.configured.path != first.configured.path
    assert not store.state.authorities.rotation_requested


def test_the_next_leader_continues_after_a_kill_at_any_write() -> None:
    """Each write of a rotation is the last write of a leader. The next leader has another clock."""
    for killed_after in range(12):
        store = complete()
        rotate(store)
        for skew in (timedelta(), timedelta(minutes=-3), timedelta(minutes=3)):
            for _ in range(killed_after):
                step = store.decide()
                if isinstance(step, Rest):
                    store.now = step.until
                else:
                    store.write(step)
                store.check()
            store.now += skew
        store.live(4 * POLICY.overlap)
        assert len(store.state.configured.bundle) == 1
        assert store.state.authorities.retired == ()
        assert store.state.authorities.next is None


Harm = Callable[[State], State]
FOREIGN = authority.make_authority("other", BEGAN, timedelta(days=3650))
HARMS: dict[str, Harm] = {
    "the bundle is wiped": lambda s: replace(s, configured=replace(s.configured, bundle=())),
    "the path is wiped": lambda s: replace(s, configured=replace(s.configured, path="")),
    "one webhook differs": lambda s: replace(s, configured=replace(s.configured, uniform=False)),
    "another CA is added": lambda s: replace(
        s, configured=replace(s.configured, bundle=(*s.configured.bundle, FOREIGN.certificate))
    ),
    "the path is replaced": lambda s: replace(s, configured=replace(s.configured, path="other")),
    "a rotation is requested": lambda s: replace(
        s, authorities=replace(s.authorities, rotation_requested=True)
    ),
}
LOSSES: dict[str, Harm] = {
    "the CA is lost": lambda s: replace(s, authorities=Authorities()),
    "the serving certificate is lost": lambda s: replace(s, serving=Serving()),
}


@pytest.mark.parametrize("harm", [*HARMS, *LOSSES])
def test_lost_and_overwritten_state_is_corrected(harm: str) -> None:
    store = complete()
    store.harm(HARMS.get(harm) or LOSSES[harm])
    store.live(3 * POLICY.overlap)
    assert len(store.state.configured.bundle) == 1
    assert store.state.configured.path == store.state.serving.path != ""
    pair = store.state.serving.pair
    assert pair is not None
    assert is_trusted(pair.certificate, store.state.configured.bundle, store.now)


@pytest.mark.parametrize("steps", range(10))
def test_a_rotation_ends_after_years_without_a_leader(steps: int) -> None:
    store = complete()
    rotate(store)
    for _ in range(steps):
        step = store.decide()
        if isinstance(step, Rest):
            store.now = step.until
        else:
            store.write(step)
    store.now += timedelta(days=1000)
    store.live(4 * POLICY.overlap)
    pair = store.state.serving.pair
    assert pair is not None
    assert is_trusted(pair.certificate, store.state.configured.bundle, store.now)
    assert len(store.state.configured.bundle) == 1


@settings(max_examples=40)
@given(st.data())
def test_replicas_can_always_answer(data: st.DataObject) -> None:
    """Steps, kills, other clocks and other writers, in any order; readers are late at any time."""
    store = complete()
    for _ in range(data.draw(st.integers(5, 40))):
        move = data.draw(st.sampled_from(["step", "step", "step", "wait", "day", "skew", *HARMS]))
        if move == "step":
            step = store.decide()
            if isinstance(step, Rest):
                store.now = min(step.until, store.now + timedelta(days=1))
            else:
                store.write(step)
        elif move == "wait":
            store.now += timedelta(seconds=data.draw(st.integers(1, 7200)))
            store.write_all()
        elif move == "day":
            store.live(timedelta(days=1))
        elif move == "skew":
            store.now += timedelta(seconds=data.draw(st.integers(-30, 30)))
        else:
            store.harm(HARMS[move])
        store.check()
    store.live(10 * POLICY.overlap)
    assert len(store.state.configured.bundle) == 1


def test_the_ca_of_an_older_release_stays_trusted_for_a_while() -> None:
    """An upgrade: the older chart made CA and path, and older replicas still serve."""
    old = authority.issue(FOREIGN, (HOST,), BEGAN, timedelta(days=3650))
    store = Store(state=State(Authorities(), Serving(), Trust((FOREIGN.certificate,), "oldpath")))
    for _ in range(20):
        step = store.decide()
        if isinstance(step, Rest):
            break
        store.write(step)
        assert is_trusted(old.certificate, store.state.configured.bundle, store.now)
        assert store.state.configured.path == "oldpath"
        store.check()
    assert isinstance(step, Rest)
    assert step.until == store.now + POLICY.propagation, (
        "some API server may not trust the new CA yet"
    )
    store.live(POLICY.overlap / 2)
    assert store.state.serving.pair is not None
    assert is_trusted(old.certificate, store.state.configured.bundle, store.now)
    store.live(POLICY.overlap)
    assert not is_trusted(old.certificate, store.state.configured.bundle, store.now)


def test_replicas_can_answer_after_a_rollback_to_an_older_release() -> None:
    """The older chart restores its CA and path. The older replicas use no other CA and path."""
    store = complete()
    ours = store.state.serving
    store.state = replace(store.state, configured=Trust((FOREIGN.certificate,), "oldpath"))
    store.write_all(checked=False)
    assert store.state.configured.path == "oldpath"
    assert FOREIGN.certificate in store.state.configured.bundle
    # The replicas of this release that still run can answer too.
    assert (store.state.serving.path, store.state.serving.former_path) == ("oldpath", ours.path)
    assert store.state.serving.pair == ours.pair
    assert ours.pair is not None
    assert is_trusted(ours.pair.certificate, store.state.configured.bundle, store.now)


def test_a_leader_with_a_late_clock_keeps_an_adopted_path() -> None:
    store = complete()
    store.harm(HARMS["the path is replaced"])
    store.now -= timedelta(minutes=3)
    store.write_all()
    assert store.state.configured.path == "other"


def test_a_certificate_for_another_host_is_replaced() -> None:
    store = complete()
    moved = replace(POLICY, hosts=("other.system.svc",))
    step = next_step(store.state, moved, store.now)
    assert isinstance(step, StoreServing)
    assert step.serving.pair is not None
    assert authority.hosts_of(step.serving.pair.certificate) == {"other.system.svc"}


def test_an_expired_ca_is_replaced_at_once() -> None:
    store = complete()
    store.now += timedelta(days=500)  # without a leader
    store.written.clear()
    for _ in range(20):
        step = store.decide()
        if isinstance(step, Rest):
            break
        store.write(step)
    pair = store.state.serving.pair
    assert pair is not None
    assert is_trusted(pair.certificate, store.state.configured.bundle, store.now)


def test_only_the_path_is_managed_if_another_tool_makes_certificates() -> None:
    policy = replace(POLICY, makes_certificates=False)
    state = State(Authorities(), Serving(), Trust((FOREIGN.certificate,), ""))
    step = next_step(state, policy, BEGAN)
    assert isinstance(step, StoreServing)
    assert step.serving.pair is None
    state = replace(state, serving=step.serving)
    step = next_step(state, policy, BEGAN)
    assert step == StoreTrust(
        Trust((FOREIGN.certificate,), state.serving.path),
        "wrote the path into the webhook configuration",
    )
    assert isinstance(next_step(replace(state, configured=step.trust), policy, BEGAN), Rest)
