"""The effective huge page request; tests/cluster compares it with Kubernetes' code."""

from typing import Any

import pytest

from hugetlb_quota.accounting.demand import MalformedDemand, demand

MIB = 1024**2


def container(amount: str | int, **more: Any) -> dict[str, Any]:
    return {"name": "c", "resources": {"requests": {"hugepages-2Mi": amount, "cpu": "1"}}, **more}


def megabytes(spec: dict[str, Any]) -> dict[str, float]:
    return {size.resource: amount / MIB for size, amount in demand(spec).items()}


def test_containers_add_up() -> None:
    spec = {"containers": [container("4Mi"), container("6Mi")]}
    assert megabytes(spec) == {"hugepages-2Mi": 10}


def test_the_largest_init_container_counts_when_it_is_more_than_all_containers() -> None:
    spec = {
        "initContainers": [container("8Mi"), container("20Mi")],
        "containers": [container("4Mi")],
    }
    assert megabytes(spec) == {"hugepages-2Mi": 20}


def test_an_init_container_runs_beside_the_sidecars_before_it() -> None:
    sidecar = container("4Mi", restartPolicy="Always")
    spec = {
        "initContainers": [sidecar, container("10Mi"), sidecar],
        "containers": [container("2Mi")],
    }
    assert megabytes(spec) == {"hugepages-2Mi": 14}


def test_the_pod_level_request_replaces_the_sum_and_overhead_is_added() -> None:
    spec = {
        "containers": [container("4Mi")],
        "resources": {"requests": {"hugepages-2Mi": "32Mi"}},
        "overhead": {"hugepages-2Mi": "2Mi", "hugepages-1Gi": "1Gi"},
    }
    assert megabytes(spec) == {"hugepages-2Mi": 34, "hugepages-1Gi": 1024}


@pytest.mark.parametrize("amount", ["0", 0, "0Gi"])
def test_a_request_of_nothing_is_no_demand(amount: str | int) -> None:
    assert not demand({"containers": [container(amount)]})


def test_ephemeral_containers_and_absent_fields_do_not_count() -> None:
    spec = {"containers": [{"name": "c"}], "ephemeralContainers": [container("8Mi")]}
    assert not demand(spec)


@pytest.mark.parametrize("amount", [2**63, "9223372036854775808", "-2Mi", "16Ei", "many", "1e99"])
def test_a_malformed_amount_is_refused_and_named(amount: str | int) -> None:
    with pytest.raises(MalformedDemand, match="container 'c' can't be counted"):
        demand({"containers": [container(amount)]})


def test_a_sum_above_the_largest_quantity_of_kubernetes_is_refused() -> None:
    with pytest.raises(MalformedDemand, match="the pod can't be counted"):
        demand({"containers": [container("6Ei"), container("6Ei")]})


def test_an_unknown_size_is_refused() -> None:
    spec = {"containers": [{"name": "c", "resources": {"requests": {"hugepages-3Mi": "3Mi"}}}]}
    with pytest.raises(MalformedDemand, match="'hugepages-3Mi' is not a huge page size"):
        demand(spec)
