"""The values of all limit files of a pod."""

from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.accounting.plan import Allowance, Limit, Limits, admissible, plan
from hugetlb_quota.page_size import PageSize

MIB = 1 << 20
TWO_MIB, ONE_GIB = PageSize(2 * MIB), PageSize(1 << 30)
SIZES = (TWO_MIB, ONE_GIB)
BOTH: tuple[Limit, ...] = ("rsvd.max", "max")
UNLIMITED: Limits = {(size, limit): None for size in SIZES for limit in BOTH}


def both(two_mib: int | None, one_gib: int | None) -> Limits:
    amounts = {TWO_MIB: two_mib, ONE_GIB: one_gib}
    return {(size, limit): amounts[size] for size in SIZES for limit in BOTH}


def megabytes(amount: float) -> Charge:
    return Charge({TWO_MIB: int(amount * MIB)})


def of(allowance: Allowance | None, container: str | None = None, **options: bool) -> Limits:
    return plan(allowance, container, UNLIMITED, SIZES, **{"mirror": True} | options)


def test_a_governed_pod_gets_its_demand_in_both_files_and_nothing_of_other_sizes() -> None:
    assert of(Allowance(megabytes(64))) == both(64 * MIB, 0)


def test_a_governed_pod_without_demand_gets_nothing() -> None:
    assert of(Allowance()) == both(0, 0)


def test_a_container_gets_its_own_request() -> None:
    allowance = Allowance(megabytes(64), {"a": megabytes(16), "b": megabytes(48)})
    assert of(allowance, "a") == both(16 * MIB, 0)
    assert of(allowance, "b") == both(48 * MIB, 0)


def test_the_files_of_an_unknown_container_are_not_written() -> None:
    assert of(Allowance(megabytes(64), {"a": megabytes(64)}), "sandbox") == {}


def test_a_container_may_use_the_whole_pod_level_request() -> None:
    allowance = Allowance(
        megabytes(64), {"a": Charge(), "b": megabytes(16)}, pod_level=frozenset({TWO_MIB})
    )
    assert of(allowance, "a") == both(64 * MIB, 0)
    assert of(allowance, "b") == both(16 * MIB, 0)


def test_an_ungoverned_pod_gets_kubelets_limit_as_rsvd_max() -> None:
    found = {**both(None, None), (TWO_MIB, "max"): 32 * MIB, (ONE_GIB, "max"): 0}
    for order in (found, dict(reversed(found.items()))):
        wanted = plan(None, None, order, SIZES, mirror=True)
        assert wanted == {(TWO_MIB, "rsvd.max"): 32 * MIB, (ONE_GIB, "rsvd.max"): 0}


def test_rsvd_max_follows_when_kubelet_removes_its_limit() -> None:
    found = {**UNLIMITED, (TWO_MIB, "rsvd.max"): 32 * MIB}
    assert plan(None, None, found, SIZES, mirror=True)[TWO_MIB, "rsvd.max"] is None


def test_without_mirror_an_ungoverned_pod_is_not_limited() -> None:
    assert of(None, mirror=False) == {}
    assert of(Allowance(), mirror=False) == both(0, 0)


def test_a_value_is_rounded_as_the_kernel_rounds_it() -> None:
    assert of(Allowance(megabytes(3.5))) == both(2 * MIB, 0)
    assert of(Allowance(Charge({TWO_MIB: 2**63 - 1}))) == both(None, 0)


amounts = st.integers(0, 2**63 - 1)


@given(demand=st.dictionaries(st.sampled_from(SIZES), amounts), found=amounts)
def test_the_plan_of_a_governed_pod_names_every_file(
    demand: dict[PageSize, int], found: int
) -> None:
    files: Limits = {(size, limit): found for size in SIZES for limit in BOTH}
    wanted = plan(Allowance(Charge(demand)), None, files, SIZES, mirror=True)
    assert set(wanted) == set(UNLIMITED)
    for (size, _), value in wanted.items():
        if value is not None:
            assert value % size.bytes == 0
            assert 0 <= demand.get(size, 0) - value < size.bytes


@given(wanted=st.none() | amounts, use=amounts)
def test_a_limit_is_never_below_the_use_and_otherwise_as_wanted(
    wanted: int | None, use: int
) -> None:
    value = admissible(wanted, use)
    if wanted is None:
        assert value is None
    else:
        assert value is not None
        assert value >= use
        assert value in (wanted, use)
