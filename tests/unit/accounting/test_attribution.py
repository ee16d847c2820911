"""The quotas that pay for a pod, compared with a brute-force implementation of the rule."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.accounting.attribution import Attribution, Line, read_lines
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.counter import Counter
from hugetlb_quota.accounting.forest import Forest, Quota, QuotaKey
from hugetlb_quota.accounting.reservation import Reservation
from hugetlb_quota.accounting.selector import Selector
from hugetlb_quota.page_size import PageSize

LATER = datetime(2030, 1, 1, tzinfo=UTC)
PAGE = Charge({PageSize(2 << 20): 2 << 20})
KEYS = [QuotaKey(namespace, name) for namespace in ("a", "b") for name in ("red", "blue", "all")]
LABELS = st.sets(st.sampled_from(["red", "blue"])).map(lambda names: dict.fromkeys(names, "yes"))
SOME_KEYS = st.frozensets(st.sampled_from([*KEYS, QuotaKey("a", "never-was")]))


def selector(name: str) -> Selector:
    return Selector() if name == "all" else Selector.from_json({"matchLabels": {name: "yes"}})


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    keys = draw(st.sets(st.sampled_from(KEYS)))
    return Forest(
        (
            Quota(key, pod_selector=selector(key.name), terminating=draw(st.booleans()))
            for key in sorted(keys)
        ),
        {},
    )


def brute_force(
    forest: Forest,
    namespace: str,
    labels: Mapping[str, str],
    heirs: frozenset[QuotaKey] | None,
    line: frozenset[QuotaKey],
) -> set[QuotaKey]:
    """The quotas that pay, by brute force."""
    paying = set()
    for quota in forest:
        governs = quota.key.namespace == namespace and (
            quota.key.name == "all" or quota.key.name in labels
        )
        if governs and (not quota.terminating or heirs is None):
            paying.add(quota.key)
        if heirs is not None and quota.key in heirs:
            paying.add(quota.key)
    return paying if paying or heirs is not None else set(line)


@given(
    forest=forests(),
    namespace=st.sampled_from(["a", "b", ""]),
    labels=LABELS,
    heirs=st.none() | SOME_KEYS,
    line=SOME_KEYS,
)
def test_who_pays_follows_the_rule(
    forest: Forest,
    namespace: str,
    labels: dict[str, str],
    heirs: frozenset[QuotaKey] | None,
    line: frozenset[QuotaKey],
) -> None:
    rule = Attribution(
        forest,
        {} if heirs is None else {("node", "uid"): heirs},
        {"uid": Line("uid", "a/pod", PAGE, line)},
    )
    expected = brute_force(forest, namespace, labels, heirs, line)
    assert rule.who_pays("uid", namespace, labels, "node") == expected
    # Heirs and line belong to one pod. The heirs belong to the entry in the report of one node.
    other = brute_force(forest, namespace, labels, None, frozenset())
    assert rule.who_pays("other", namespace, labels, "node") == other
    elsewhere = brute_force(forest, namespace, labels, None, line)
    assert rule.who_pays("uid", namespace, labels, "other") == elsewhere


ROOT, TEAM, OTHER = QuotaKey("a", "root"), QuotaKey("a", "team"), QuotaKey("a", "other")
FOREST = Forest([Quota(ROOT), Quota(TEAM, parent=ROOT), Quota(OTHER)], {})


def held(counted: str = "", amount: int = 1) -> Reservation:
    charge = Charge({size: n * amount for size, n in PAGE.items()})
    return Reservation("uid", "a/pod", charge, LATER, counted=counted)


def lines(**by_quota: Reservation | tuple[Reservation, ...]) -> Line:
    counters = [
        Counter(QuotaKey("a", name), Charge(), reservations=it if isinstance(it, tuple) else (it,))
        for name, it in by_quota.items()
    ]
    return read_lines(counters, FOREST)["uid"]


def test_the_lowest_quotas_with_a_reservation_pay() -> None:
    assert lines(root=held(), team=held()) == Line("uid", "a/pod", PAGE, frozenset({TEAM}))
    both = lines(root=held(), team=held(), other=held())
    assert both.quotas == {TEAM, OTHER}


def test_every_quota_with_an_identity_pays() -> None:
    """Only the quotas that are charged directly hold an identity."""
    line = lines(root=held("worker"), team=held("worker"))
    assert line.quotas == {ROOT, TEAM}
    assert line.counted == "worker"


def test_an_identity_precedes_a_reservation_of_the_same_pod() -> None:
    assert lines(root=held(), team=held("worker")).quotas == {TEAM}
    # The write to quota other failed, so its reservation is no identity yet.
    assert lines(other=held(), team=held("worker")).quotas == {OTHER, TEAM}
    assert lines(team=(held("worker"), held())).counted == "worker"
    assert lines(team=(held(), held("worker"))).counted == "worker"


def test_a_line_with_a_node_precedes_a_line_without_a_node() -> None:
    assert lines(team=held("-"), other=held("worker")).counted == "worker"
    assert lines(team=held("?"), other=held("-")).counted == "-"


def test_the_charge_of_a_line_is_the_largest() -> None:
    largest = lines(team=held("worker", 3), other=held("worker", 2)).charge
    assert sum(largest.values()) == 3 * (2 << 20)
