"""The certificates step by step: whoever leads is killed between any two, and everybody is late."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509 import verification
from hypothesis import given, settings
from hypothesis import strategies as st

from hugetlb_quota.controller.certificates import authority
from hugetlb_quota.controller.certificates.rotation import (
    Authority,
    Policy,
    Rest,
    Serving,
    State,
    Step,
    StoreAuthority,
    StoreServing,
    StoreTrust,
    Trust,
    next_step,
)

HOST = "admission.system.svc"
POLICY = Policy("test-ca", (HOST,))
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
#: Nobody is later than this: less than `settle`.
LATE = timedelta(seconds=8)


@dataclass
class Store:
    """What is stored, and what was, as long as somebody may still go by it."""

    now: datetime = BEGAN
    state: State = State(Authority(), Serving(), Trust())
    served: list[tuple[datetime, Serving]] = field(default_factory=list)
    told: list[tuple[datetime, Trust]] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def decide(self) -> Step:
        return next_step(self.state, POLICY, self.now)

    def write(self, step: Step) -> None:
        self.written.append(type(step).__name__)
        if isinstance(step, StoreAuthority):
            self.state = replace(self.state, authority=step.authority)
        elif isinstance(step, StoreServing):
            self.served.append((self.now, self.state.serving))
            self.state = replace(self.state, serving=step.serving)
        elif isinstance(step, StoreTrust):
            self.told.append((self.now, self.state.told))
            self.state = replace(self.state, told=step.trust)

    def check(self) -> None:
        """Whatever state an API server and a replica are in, the one is answered by the other."""
        servings = [self.state.serving, *(s for at, s in self.served if at > self.now - LATE)]
        trusts = [self.state.told, *(t for at, t in self.told if at > self.now - LATE)]
        for serving in servings:
            for trust in trusts:
                # Before the first certificate nobody serves, and before the first CA nobody asks.
                if serving.pair is not None and trust.bundle:
                    assert is_trusted(serving.pair.certificate, trust.bundle, self.now)
                    assert trust.path in (serving.path, serving.former_path)

    def settle(self, *, checked: bool = True) -> None:
        """Do all there is to do now."""
        for _ in range(20):
            step = self.decide()
            if isinstance(step, Rest):
                assert step.until > self.now
                return
            self.write(step)
            if checked:
                self.check()
        raise AssertionError(f"it does not come to rest: {self.written[-20:]}")

    def harm(self, harm: Callable[[State], State]) -> None:
        """What others write cuts off by itself; once it is put right, nothing of ours may."""
        self.state = harm(self.state)
        self.settle(checked=False)
        self.served.clear()
        self.told.clear()

    def live(self, span: timedelta) -> None:
        """Go on by what is said of when to look again."""
        end = self.now + span
        pair = self.state.serving.pair
        if pair is not None and not authority.is_valid(pair.certificate, self.now):
            self.settle(checked=False)
        while self.now < end:
            self.settle()
            step = self.decide()
            assert isinstance(step, Rest)
            self.now = min(step.until, end)
            self.check()


def is_trusted(certificate: str, bundle: tuple[str, ...], now: datetime) -> bool:
    """As an API server finds out, by path building."""
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


def settled() -> Store:
    store = Store()
    store.settle()
    return store


def test_from_nothing_it_comes_to_rest_in_a_few_writes() -> None:
    store = settled()
    first = ["StoreAuthority", "StoreServing", "StoreTrust"]
    assert store.written == [*first, "StoreAuthority", "StoreServing"]
    state = store.state
    assert state.authority.current is not None
    assert state.told == Trust((state.authority.current.certificate,), state.serving.path)
    assert len(state.serving.path) == 40


def test_a_year_passes_and_everything_is_renewed_long_before_its_end() -> None:
    store = settled()
    first = store.state
    store.live(timedelta(days=400))
    now = store.state
    assert now.authority.current != first.authority.current
    assert now.serving.path != first.serving.path
    assert now.authority.retired == ()
    assert len(now.told.bundle) == 1
    assert now.told.path == now.serving.path
    assert now.authority.current is not None
    assert authority.ends(now.authority.current.certificate) - store.now > timedelta(days=121)
    # Five serving certificates a year, and a rotation.
    assert store.written.count("StoreServing") < 12


def rotate(store: Store) -> None:
    store.state = replace(store.state, authority=replace(store.state.authority, asked=True))


def test_an_administrator_asks_for_a_rotation() -> None:
    store = settled()
    first = store.state
    rotate(store)
    store.settle()
    assert len(store.state.told.bundle) == 2
    assert store.state.serving == first.serving, "signed by the next CA before it was trusted"
    store.live(3 * POLICY.overlap)
    assert first.authority.current is not None
    assert first.authority.current.certificate not in store.state.told.bundle
    assert store.state.told.path != first.told.path
    assert not store.state.authority.asked


def test_killed_after_any_write_the_next_leader_goes_on() -> None:
    """Each write of a rotation is the last of a leader; the next has another clock."""
    for killed_after in range(12):
        store = settled()
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
        assert len(store.state.told.bundle) == 1
        assert store.state.authority.retired == ()
        assert store.state.authority.coming is None


Harm = Callable[[State], State]
FOREIGN = authority.make_authority("other", BEGAN, timedelta(days=3650))
HARMS: dict[str, Harm] = {
    "the bundle is wiped": lambda s: replace(s, told=replace(s.told, bundle=())),
    "the path is wiped": lambda s: replace(s, told=replace(s.told, path="")),
    "one webhook differs": lambda s: replace(s, told=replace(s.told, everywhere=False)),
    "another CA comes beside": lambda s: replace(
        s, told=replace(s.told, bundle=(*s.told.bundle, FOREIGN.certificate))
    ),
    "another path comes": lambda s: replace(s, told=replace(s.told, path="other")),
    "a rotation is asked for": lambda s: replace(s, authority=replace(s.authority, asked=True)),
}
LOSSES: dict[str, Harm] = {
    "the CA is lost": lambda s: replace(s, authority=Authority()),
    "what is served is lost": lambda s: replace(s, serving=Serving()),
}


@pytest.mark.parametrize("what", [*HARMS, *LOSSES])
def test_what_is_lost_or_written_over_is_put_right(what: str) -> None:
    store = settled()
    store.harm(HARMS.get(what) or LOSSES[what])
    store.live(3 * POLICY.overlap)
    assert len(store.state.told.bundle) == 1
    assert store.state.told.path == store.state.serving.path != ""
    pair = store.state.serving.pair
    assert pair is not None
    assert is_trusted(pair.certificate, store.state.told.bundle, store.now)


@pytest.mark.parametrize("steps", range(10))
def test_nobody_leads_for_years_in_the_middle_of_a_rotation(steps: int) -> None:
    store = settled()
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
    assert is_trusted(pair.certificate, store.state.told.bundle, store.now)
    assert len(store.state.told.bundle) == 1


@settings(max_examples=40)
@given(st.data())
def test_nobody_is_ever_cut_off(data: st.DataObject) -> None:
    """Steps, deaths, other clocks, and others who write, in any order; lateness at any moment."""
    store = settled()
    for _ in range(data.draw(st.integers(5, 40))):
        what = data.draw(st.sampled_from(["step", "step", "step", "wait", "day", "skew", *HARMS]))
        if what == "step":
            step = store.decide()
            if isinstance(step, Rest):
                store.now = min(step.until, store.now + timedelta(days=1))
            else:
                store.write(step)
        elif what == "wait":
            store.now += timedelta(seconds=data.draw(st.integers(1, 7200)))
            store.settle()
        elif what == "day":
            store.live(timedelta(days=1))
        elif what == "skew":
            store.now += timedelta(seconds=data.draw(st.integers(-30, 30)))
        else:
            store.harm(HARMS[what])
        store.check()
    store.live(10 * POLICY.overlap)
    assert len(store.state.told.bundle) == 1


def test_an_older_release_is_cut_off_no_sooner_than_nobody_serves_by_it() -> None:
    """An upgrade: the chart before made the CA and the path, and its replicas serve on."""
    old = authority.issue(FOREIGN, (HOST,), BEGAN, timedelta(days=3650))
    store = Store(state=State(Authority(), Serving(), Trust((FOREIGN.certificate,), "oldpath")))
    for _ in range(20):
        step = store.decide()
        if isinstance(step, Rest):
            break
        store.write(step)
        assert is_trusted(old.certificate, store.state.told.bundle, store.now)
        assert store.state.told.path == "oldpath"
        store.check()
    assert isinstance(step, Rest)
    assert step.until == store.now + POLICY.settle, "no API server has surely seen the new CA yet"
    store.live(POLICY.overlap / 2)
    assert store.state.serving.pair is not None
    assert is_trusted(old.certificate, store.state.told.bundle, store.now)
    store.live(POLICY.overlap)
    assert not is_trusted(old.certificate, store.state.told.bundle, store.now)


def test_a_rollback_to_an_older_release_stays_answered() -> None:
    """The chart before brings back its CA and path, and its replicas know nothing else."""
    store = settled()
    ours = store.state.serving
    store.state = replace(store.state, told=Trust((FOREIGN.certificate,), "oldpath"))
    store.settle(checked=False)
    assert store.state.told.path == "oldpath"
    assert FOREIGN.certificate in store.state.told.bundle
    # And so do those of ours that still serve.
    assert (store.state.serving.path, store.state.serving.former_path) == ("oldpath", ours.path)
    assert store.state.serving.pair == ours.pair
    assert ours.pair is not None
    assert is_trusted(ours.pair.certificate, store.state.told.bundle, store.now)


def test_a_leader_whose_clock_is_behind_keeps_to_the_path_that_was_taken_over() -> None:
    store = settled()
    store.harm(HARMS["another path comes"])
    store.now -= timedelta(minutes=3)
    store.settle()
    assert store.state.told.path == "other"


def test_a_certificate_for_another_name_is_replaced() -> None:
    store = settled()
    moved = replace(POLICY, hosts=("other.system.svc",))
    step = next_step(store.state, moved, store.now)
    assert isinstance(step, StoreServing)
    assert step.serving.pair is not None
    assert authority.hosts_of(step.serving.pair.certificate) == {"other.system.svc"}


def test_a_ca_that_has_ended_is_replaced_at_once() -> None:
    store = settled()
    store.now += timedelta(days=500)  # nobody led
    store.written.clear()
    for _ in range(20):
        step = store.decide()
        if isinstance(step, Rest):
            break
        store.write(step)
    pair = store.state.serving.pair
    assert pair is not None
    assert is_trusted(pair.certificate, store.state.told.bundle, store.now)


def test_where_others_make_certificates_the_path_alone_is_kept() -> None:
    policy = replace(POLICY, own=False)
    state = State(Authority(), Serving(), Trust((FOREIGN.certificate,), ""))
    step = next_step(state, policy, BEGAN)
    assert isinstance(step, StoreServing)
    assert step.serving.pair is None
    state = replace(state, serving=step.serving)
    step = next_step(state, policy, BEGAN)
    assert step == StoreTrust(
        Trust((FOREIGN.certificate,), state.serving.path), "told the API server the path"
    )
    assert isinstance(next_step(replace(state, told=step.trust), policy, BEGAN), Rest)


def test_openssl_takes_them(tmp_path: Path) -> None:
    """Python's own TLS, with its strictest checks, as the leader asks admission."""
    ca = authority.make_authority("ca", datetime.now(UTC), timedelta(days=1))
    pair = authority.issue(ca, (HOST,), datetime.now(UTC), timedelta(days=1))
    client = ssl.create_default_context(cadata=ca.certificate)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    (tmp_path / "c").write_text(pair.certificate)
    (tmp_path / "k").write_text(pair.key)
    server.load_cert_chain(tmp_path / "c", tmp_path / "k")
    here, there, back, forth = (ssl.MemoryBIO() for _ in range(4))
    one = client.wrap_bio(here, there, server_hostname=HOST)
    other = server.wrap_bio(back, forth, server_side=True)
    for _ in range(4):
        for end in (one, other):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
            back.write(there.read())
            here.write(forth.read())
    assert one.getpeercert()
