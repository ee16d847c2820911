"""The counter of a quota, and a chain of counters that is charged together."""

from datetime import UTC, datetime

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter, Tab, shortfalls
from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import LARGEST_RESERVATIONS, Reservation, ReservationId
from hugetlb_quota.page_size import PageSize

MIB = 1024**2
TWO_MIB, ONE_GIB = PageSize(2 * MIB), PageSize(1024 * MIB)
LATER = datetime(2030, 1, 1, tzinfo=UTC)


def megabytes(amount: int) -> Charge:
    return Charge({TWO_MIB: amount * MIB})


def counter(hard: int, pods: int = 0, name: str = "q") -> Counter:
    return Counter(QuotaKey("ns", name), megabytes(hard), pods=megabytes(pods))


def reservation(uid: str, amount: int, request: str = "r") -> Reservation:
    return Reservation(uid, f"ns/{uid}", megabytes(amount), LATER, request)


def test_a_demand_that_fits_exactly_fits() -> None:
    assert counter(64, pods=32).shortfalls(megabytes(32)) == ()


def test_a_shortfall_has_all_amounts() -> None:
    charged = counter(64, pods=32).charge(reservation("a", 16))
    (shortfall,) = charged.shortfalls(megabytes(20))
    numbers = (shortfall.requested, shortfall.pods, shortfall.reserved, shortfall.hard)
    assert [number // MIB for number in numbers] == [20, 32, 16, 64]
    assert shortfall.short == 4 * MIB


def test_an_unnamed_size_has_no_limit_and_zero_is_a_limit() -> None:
    gibibyte = Charge({ONE_GIB: ONE_GIB.bytes})
    assert counter(0).shortfalls(gibibyte) == ()
    none = Counter(QuotaKey("ns", "q"), Charge({ONE_GIB: 0}))
    assert [each.size for each in none.shortfalls(gibibyte)] == [ONE_GIB]


def test_a_repeated_request_reserves_once() -> None:
    charged = counter(64).charge(reservation("a", 16)).charge(reservation("a", 16))
    assert charged.used == megabytes(16)
    held = ReservationId("a", "r")
    assert charged.holds(held)
    assert not charged.release(held).holds(held)
    assert charged.release(held).used == megabytes(0)


def test_two_requests_for_one_pod_reserve_the_maximum_and_release_their_own() -> None:
    charged = counter(64).charge(reservation("a", 16, "r1")).charge(reservation("a", 24, "r2"))
    assert charged.used == megabytes(24)
    assert charged.shortfalls(megabytes(64), "a") == ()
    assert charged.shortfalls(megabytes(48), "b") != ()
    assert charged.release(ReservationId("a", "r2")).used == megabytes(16)


def test_a_quota_holds_reservations_up_to_the_size_limit() -> None:
    line = len(reservation("a", 16, "0").line) + 3
    many = tuple(
        reservation("a", 16, f"{number:08}") for number in range(LARGEST_RESERVATIONS // line)
    )
    kept = Counter(QuotaKey("ns", "q"), megabytes(64), reservations=many[:100])
    full = Counter(QuotaKey("ns", "q"), megabytes(64), reservations=many)
    assert kept.can_hold(reservation("b", 16))
    assert not full.can_hold(reservation("b", 16))


def test_shortfalls_name_the_quotas_in_the_order_of_the_chain() -> None:
    chain = (counter(8, name="leaf"), counter(99, name="mid"), counter(9, name="root"))
    refused = shortfalls(chain, megabytes(10))
    assert [each.quota.name for each in refused] == ["leaf", "root"]


def test_an_identity_reserves_nothing() -> None:
    identity = reservation("a", 64).as_identity("worker")
    charged = counter(64, pods=32).charge(identity)
    assert charged.used == megabytes(32)
    assert charged.pending == ()
    assert charged.shortfalls(megabytes(32)) == ()
    tab = Tab(charged)
    assert tab.shortfalls(reservation("b", 32)) == ()
    tab.put(reservation("b", 32))
    assert tab.counter.reservations == (identity, reservation("b", 32))
    assert tab.counter.used == megabytes(64)
    # The pod is relabelled. Its new reservation is charged, although the pod has an identity.
    moved = Tab(counter(64).charge(identity))
    moved.put(reservation("a", 64, request="relabel"))
    assert moved.counter.used == megabytes(64)
