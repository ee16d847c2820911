"""The recount, compared with a brute-force model: every pod is counted at every moment."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hugetlb_quota.accounting.charge import NOTHING, Charge
from hugetlb_quota.accounting.counter import Counter, shortfalls
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.recount import (
    IDENTITIES_KEPT,
    ChargedPod,
    Identities,
    Identity,
    Retained,
    RetainedFile,
    Tally,
    recount,
    tally,
)
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.page_size import PageSize

SIZE = PageSize(2 * 1024**2)
START = datetime(2030, 1, 1, tzinfo=UTC)


def pages(count: int) -> Charge:
    return Charge({SIZE: count * SIZE.bytes})


def key(name: str) -> QuotaKey:
    return QuotaKey("ns", name)


QUOTAS = {
    "root": Quota(key("root"), pages(12)),
    "left": Quota(key("left"), pages(8), parent=key("root")),
    "right": Quota(key("right"), pages(8), parent=key("root")),
    "leaf": Quota(key("leaf"), pages(4), parent=key("left")),
}
FOREST = Forest(QUOTAS.values(), {})


def test_a_pod_under_two_quotas_is_charged_to_their_ancestor_once() -> None:
    pod = ChargedPod("a", pages(3), frozenset({key("left"), key("right")}))
    totals = tally(FOREST, [pod])
    assert {name: totals[key(name)].pods for name in QUOTAS} == {
        "root": pages(3),
        "left": pages(3),
        "right": pages(3),
        "leaf": NOTHING,
    }


def test_a_duplicate_pod_counts_once() -> None:
    pod = ChargedPod("a", pages(3), frozenset({key("leaf")}))
    assert tally(FOREST, [pod, pod])[key("root")].pods == pages(3)


def test_the_retained_charge_counts_at_every_ancestor() -> None:
    pod = ChargedPod("a", pages(3), frozenset({key("leaf")}))
    left = [
        Retained("gone-1", pages(2), frozenset({key("left"), key("leaf")})),
        Retained("gone-2", pages(1), frozenset({key("right")})),
    ]
    totals = tally(FOREST, [pod], left)
    assert {name: totals[key(name)].retained for name in QUOTAS} == {
        "root": pages(3),
        "left": pages(2),
        "right": pages(1),
        "leaf": pages(2),
    }
    counter = recount(Counter(key("root"), pages(12)), totals[key("root")], set())
    assert counter.used == pages(6)
    assert counter.shortfalls(pages(7))[0].retained == 3 * SIZE.bytes


def test_a_tally_lists_the_largest_files() -> None:
    files = [
        RetainedFile(
            "node", f"/huge/{n}", "ns/gone", SIZE, n * SIZE.bytes, frozenset({key("leaf")})
        )
        for n in range(1, 9)
    ]
    totals = tally(FOREST, [], [], files)
    assert [file.path for file in totals[key("root")].files] == [
        f"/huge/{n}" for n in (8, 7, 6, 5, 4)
    ]
    assert tally(FOREST, [], [], files)[key("right")].files == ()


def test_a_reservation_ends_in_the_write_that_counts_its_pod() -> None:
    held = Reservation("a", "ns/a", pages(3), START)
    counter = Counter(key("leaf"), pages(4), reservations=(held,))
    assert recount(counter, Tally(), set()) == counter
    seen = recount(counter, Tally(pages(3), {"a": 7}), set())
    assert (seen.pods, seen.reservations) == (pages(3), ())
    assert recount(counter, Tally(), {held.id}).reservations == ()


def test_a_pod_seen_before_its_relabelling_ends_no_reservation() -> None:
    # The labels go b -> none -> b. The count still has the pod under b from the first time.
    second = Reservation("a", "ns/a", pages(3), START, "second", since=12)
    counter = Counter(key("leaf"), pages(4), reservations=(second,))
    stale = recount(counter, Tally(pages(3), {"a": 12}), set())
    assert stale.reservations == (second,)
    assert recount(counter, Tally(pages(3), {"a": 13}), set()).reservations == ()


def test_an_unreadable_line_stays_until_it_is_gone() -> None:
    counter = Counter(key("leaf"), pages(4), unreadable=("garbage",))
    assert recount(counter, Tally(), set()).unreadable == ("garbage",)
    assert recount(counter, Tally(), {"garbage"}).unreadable == ()


def test_the_reservation_of_a_moving_quota_ends_when_its_pods_are_counted() -> None:
    moved = Quota(key("moved"), uid="uid-of-moved", parent=key("left"))
    pod = ChargedPod("a", pages(2), frozenset({key("moved")}))
    held = Reservation("uid-of-moved", "ns/moved", pages(2), START)
    before = Counter(key("left"), pages(8), reservations=(held,))
    elsewhere = tally(Forest([*QUOTAS.values(), replace(moved, parent=key("right"))], {}), [pod])
    assert recount(before, elsewhere[key("left")], set()).used == pages(2)
    here = recount(before, tally(Forest([*QUOTAS.values(), moved], {}), [pod])[key("left")], set())
    assert (here.pods, here.reservations) == (pages(2), ())


COUNTED = Tally(pages(3), {"a": 7})


def kept(counted: str = "worker", quota: str = "leaf") -> Identities:
    return Identities({"a": Identity(counted, frozenset({key(quota)}), in_api=True)})


def test_a_reservation_becomes_an_identity_on_the_directly_charged_quota() -> None:
    held = Reservation("a", "ns/a", pages(3), START)
    leaf = Counter(key("leaf"), pages(4), reservations=(held,))
    identity = recount(leaf, COUNTED, set(), kept())
    assert identity.reservations == (held.as_identity("worker"),)
    assert identity.used == pages(3)
    above = Counter(key("left"), pages(8), reservations=(held,))
    assert recount(above, COUNTED, set(), kept()).reservations == ()
    # The next count keeps the identity, or writes another node into the identity.
    assert recount(identity, COUNTED, set(), kept()) == identity
    bound = recount(identity, COUNTED, set(), kept("other"))
    assert bound.reservations == (held.as_identity("other"),)


def test_an_identity_ends_if_it_is_unneeded_or_if_other_quotas_pay() -> None:
    held = Reservation("a", "ns/a", pages(3), START).as_identity("worker")
    leaf = Counter(key("leaf"), pages(4), reservations=(held,))
    assert recount(leaf, COUNTED, set(), Identities(unneeded=frozenset({"a"}))).reservations == ()
    assert recount(leaf, COUNTED, set(), kept(quota="right")).reservations == ()
    # The next count decides about an identity that was written during this count.
    assert recount(leaf, COUNTED, set()).reservations == (held,)


def test_an_expired_reservation_becomes_an_identity_while_a_node_may_report() -> None:
    held = Reservation("a", "ns/a", pages(3), START)
    leaf = Counter(key("leaf"), pages(4), reservations=(held,))
    assert recount(leaf, Tally(), set(), kept("?")).reservations == (held,)
    doubtful = recount(leaf, Tally(), {held.id}, kept("?"))
    assert doubtful.reservations == (held.as_identity("?"),)
    assert doubtful.used == pages(0).named([SIZE])
    assert recount(leaf, Tally(), {held.id}).reservations == ()


def test_two_reservations_of_a_pod_become_one_identity() -> None:
    first = Reservation("a", "ns/a", pages(3), START, "first")
    second = Reservation("a", "ns/a", pages(3), START, "second", since=5)
    leaf = Counter(key("leaf"), pages(4), reservations=(first, second))
    (identity,) = recount(leaf, COUNTED, set(), kept()).reservations
    assert identity == second.as_identity("worker")
    # A third reservation that is not counted yet stays beside the identity.
    third = Reservation("a", "ns/a", pages(3), START, "third", since=9)
    both = Counter(key("leaf"), pages(4), reservations=(identity, third))
    assert recount(both, COUNTED, set(), kept()).reservations == (identity, third)


def many(count: int, word: str = "worker") -> tuple[Reservation, ...]:
    return tuple(
        Reservation(f"pod-{n}", "ns/a", pages(1), START).as_identity(word) for n in range(count)
    )


def identities_of(
    lines: tuple[Reservation, ...], *, in_api: frozenset[str] = frozenset()
) -> Identities:
    leaf = frozenset({key("leaf")})
    return Identities(
        {line.uid: Identity(line.counted or "?", leaf, line.uid in in_api) for line in lines}
    )


def test_surplus_identities_of_pods_in_the_api_are_dropped() -> None:
    lines = many(IDENTITIES_KEPT + 2)
    counter = Counter(key("leaf"), pages(4), reservations=lines)
    half = identities_of(lines, in_api=frozenset({"pod-7", "pod-8", "pod-9"}))
    left = recount(counter, Tally(), set(), half).reservations
    assert left == (*lines[:7], *lines[9:])
    # The other identities are the only records of their pods.
    assert recount(counter, Tally(), set(), identities_of(lines)).reservations == lines


def test_a_reservation_stays_charged_when_there_are_too_many_identities() -> None:
    lines = many(IDENTITIES_KEPT, "?")
    late, later = (Reservation(uid, f"ns/{uid}", pages(2), START) for uid in ("late", "later"))
    counter = Counter(key("leaf"), pages(4), reservations=(*lines, late, later))
    over = {late.id, later.id}
    full = recount(counter, Tally(), over, identities_of(counter.reservations))
    assert full.reservations == (*lines, late, later)
    assert full.used == pages(4)
    # As soon as there is room, the reservation becomes an identity.
    fewer = replace(full, reservations=full.reservations[1:])
    room = recount(fewer, Tally(), over, identities_of(fewer.reservations))
    assert room.reservations == (*lines[1:], late.as_identity("?"), later)
    # The reservation of a pod in the API, or of a counted pod, ends without room too.
    spare = identities_of(counter.reservations, in_api=frozenset({"late"}))
    assert late not in recount(counter, Tally(), over, spare).reservations
    held = Tally(seen={"late": 1})
    assert recount(counter, held, over, identities_of(counter.reservations)).pending == (later,)


class Admission(RuleBasedStateMachine):
    """Admitted creates succeed late or fail, and recounts are late."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.counters = {name: Counter(quota.key, quota.hard) for name, quota in QUOTAS.items()}
        self.creating: dict[str, tuple[str, int]] = {}
        self.pods: dict[str, tuple[str, int]] = {}
        self.informed: dict[str, tuple[str, int]] = {}
        self.serial = 0

    @rule(quota=st.sampled_from(sorted(QUOTAS)), count=st.integers(1, 6))
    def admit(self, quota: str, count: int) -> None:
        chain = [link.key.name for link in FOREST.chain(key(quota))]
        if shortfalls([self.counters[name] for name in chain], pages(count)):
            return
        self.serial += 1
        uid = f"pod-{self.serial}"
        held = Reservation(uid, uid, pages(count), self.now + timedelta(seconds=60))
        for name in chain:
            self.counters[name] = self.counters[name].charge(held)
        self.creating[uid] = (quota, count)

    @precondition(lambda self: self.creating)
    @rule(data=st.data(), succeeds=st.booleans())
    def create_ends(self, data: st.DataObject, succeeds: bool) -> None:
        uid = data.draw(st.sampled_from(sorted(self.creating)))
        pod = self.creating.pop(uid)
        if succeeds:
            self.pods[uid] = pod

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def pod_goes(self, data: st.DataObject) -> None:
        self.pods.pop(data.draw(st.sampled_from(sorted(self.pods))))

    @rule()
    def informer_catches_up(self) -> None:
        self.informed = dict(self.pods)

    @rule(seconds=st.integers(1, 90))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)
        # The API server gives up on a create long before the reservation expires.
        for uid in [uid for uid in self.creating if seconds >= 60]:
            del self.creating[uid]

    @rule()
    def recounts(self) -> None:
        charged = [
            ChargedPod(uid, pages(count), frozenset({key(quota)}))
            for uid, (quota, count) in self.informed.items()
        ]
        totals = tally(FOREST, charged)
        for name, counter in self.counters.items():
            # Only a read proves that a pod is absent. The informer may be late.
            gone = {
                each.id
                for each in counter.pending
                if each.expires <= self.now
                and each.uid not in self.pods
                and each.uid not in self.creating
            }
            self.counters[name] = recount(counter, totals[key(name)], gone)

    @invariant()
    def no_pod_is_uncounted_and_no_limit_is_passed(self) -> None:
        for name, quota in QUOTAS.items():
            below = {
                child
                for child in QUOTAS
                if quota.key in {link.key for link in FOREST.chain(key(child))}
            }
            present = sum(count for where, count in self.pods.values() if where in below)
            counted = self.counters[name].used.of(SIZE) // SIZE.bytes
            assert present <= counted <= quota.hard[SIZE] // SIZE.bytes

    def teardown(self) -> None:
        self.creating.clear()
        self.now += timedelta(seconds=61)
        self.informer_catches_up()
        self.recounts()
        for counter in self.counters.values():
            assert counter.reservations == ()


TestAdmission = Admission.TestCase
TestAdmission.settings = settings(max_examples=150, stateful_step_count=40)
