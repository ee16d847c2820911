"""The API server, the CRD and admission refuse bad quotas, and nothing changes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.kube import chart
from tests.kube.api import Api, ApiError, Object
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Programs
from tests.kube.quotas import quota_object

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
SIZE = "hugepages-2Mi"
#: Before admission put changes in an order, 40 of 40 cycles were accepted.
RACES = 40


@pytest.fixture(scope="module")
def api(control_plane: ControlPlane, helm: Path) -> Iterator[Api]:
    """The API with admission's webhooks in force."""
    rendered = chart.render(helm)
    chart.install(control_plane, rendered)
    admission = Programs(control_plane, rendered).start_admission()
    admission.wait_ready()
    chart.register_webhooks(control_plane, rendered, admission.address)
    yield control_plane.api
    chart.unregister_webhooks(control_plane, rendered)
    assert admission.stop() == 0


@pytest.fixture
def tenant(api: Api, tenant_namespaces: tuple[str, str]) -> tuple[str, str]:
    """Two namespaces: TENANT/root with 256Mi, and DB/leaf with 128Mi below."""
    top, below = tenant_namespaces
    api.create(QUOTAS, quota(top, "root", "256Mi", children={"matchLabels": {"tenant": top}}))
    api.create(QUOTAS, quota(below, "leaf", "128Mi", parent=(top, "root")))
    return top, below


def quota(
    namespace: str,
    name: str,
    limit: Any,
    *,
    parent: tuple[str, str] | None = None,
    children: Object | None = None,
    size: str = SIZE,
) -> Object:
    spec: Object = {"hard": {size: limit}}
    if parent is not None:
        spec["parentRef"] = {"namespace": parent[0], "name": parent[1]}
    if children is not None:
        spec["childNamespaces"] = children
    return quota_object(namespace, name, spec)


def charge(api: Api, namespace: str, name: str, amount: str) -> None:
    """Write a charge for pods like the controller."""
    found = api.get(QUOTAS, name, namespace=namespace)
    found["status"] = {"pods": {SIZE: amount}, "used": {SIZE: amount}}
    api.replace(QUOTAS, found, subresource="status")


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ApiError) as refused:
        call()
    assert refused.value.code in (403, 422)
    return refused.value.message


@pytest.mark.parametrize(
    ("size", "limit", "sentence"),
    [
        ("hugepages-3Mi", "3Mi", "hugepages-3Mi' is not a huge page size"),
        ("memory", "64Mi", "memory"),
        ("hugepages-huge", "64Mi", "hugepages-huge"),
        (SIZE, "3Mi", "the limit of hugepages-2Mi is 3Mi, which is not a multiple of 2Mi."),
        (SIZE, 3, "the limit of hugepages-2Mi is 3, which is not a multiple of 2Mi."),
        (SIZE, "-2Mi", "the limit of hugepages-2Mi is -2Mi; it must not be negative."),
        (SIZE, "many", "the limit of hugepages-2Mi is many, not a whole number"),
        (SIZE, "9223372036854775808", "is 9223372036854775808, not a whole number of bytes"),
        (SIZE, True, "hard"),
    ],
)
def test_a_malformed_limit_changes_nothing(
    api: Api, tenant: tuple[str, str], size: str, limit: Any, sentence: str
) -> None:
    top, _ = tenant
    message = refusal(lambda: api.create(QUOTAS, quota(top, "bad", limit, size=size)))
    assert sentence.strip("'") in message or sentence.replace("'", "") in message, message
    names = [each["metadata"]["name"] for each in api.list(QUOTAS, namespace=top)]
    assert names == ["root"]


def test_refuses_a_quota_as_its_own_parent(api: Api, tenant: tuple[str, str]) -> None:
    top, _ = tenant
    assert "names itself as its parent" in refusal(
        lambda: api.create(QUOTAS, quota(top, "self", "2Mi", parent=(top, "self")))
    )


def test_refuses_a_cycle(api: Api, tenant: tuple[str, str]) -> None:
    top, _ = tenant
    api.create(QUOTAS, quota(top, "middle", "64Mi", parent=(top, "root")))
    message = refusal(
        lambda: api.patch(
            QUOTAS,
            "root",
            {"spec": {"parentRef": {"namespace": top, "name": "middle"}}},
            namespace=top,
        )
    )
    assert f"{top}/root -> {top}/middle -> {top}/root" in message


def test_refuses_a_parent_that_does_not_select_the_namespace(
    api: Api, tenant: tuple[str, str], control_plane: ControlPlane, unique: Callable[[str], str]
) -> None:
    top, _ = tenant
    strange = unique("strange")
    control_plane.create_namespace(strange)
    message = refusal(lambda: api.create(QUOTAS, quota(strange, "q", "2Mi", parent=(top, "root"))))
    assert f"{top}/root does not let quotas of namespace {strange} attach" in message
    api.delete("v1/namespaces", strange)


def test_kubectl_prints_the_warning_about_a_missing_parent(
    tenant: tuple[str, str], control_plane: ControlPlane
) -> None:
    top, _ = tenant
    waiting = quota(top, "waiting", "2Mi", parent=(top, "later"))
    done = control_plane.kubectl("create", "-f", "-", input=json.dumps(waiting))
    assert f"Warning: HugeTLBQuota {top}/waiting is not attached yet" in done.stderr


@pytest.mark.parametrize(
    ("selector", "sentence"),
    [
        ({"topology.kubernetes.io/zone": "a"}, "gets from its node when the pod is bound"),
        ({"a": "x y"}, "can match no pod, because 'x y' is not a valid value of the label"),
    ],
)
def test_warns_of_a_selector_that_selects_no_new_pod(
    api: Api, tenant: tuple[str, str], selector: dict[str, str], sentence: str
) -> None:
    top, _ = tenant
    new = quota(top, "new", "2Mi")
    new["spec"]["podSelector"] = {"matchLabels": selector}
    assert sentence in refusal(lambda: api.create(QUOTAS, new))


def test_refuses_a_limit_above_the_limit_of_the_parent(api: Api, tenant: tuple[str, str]) -> None:
    top, below = tenant
    message = refusal(lambda: api.create(QUOTAS, quota(below, "q", "512Mi", parent=(top, "root"))))
    assert f"512Mi of {SIZE} is above the 256Mi of {top}/root" in message


def test_refuses_a_limit_below_the_limit_of_a_child(api: Api, tenant: tuple[str, str]) -> None:
    top, below = tenant
    lower = {"spec": {"hard": {SIZE: "64Mi"}}}
    message = refusal(lambda: api.patch(QUOTAS, "root", lower, namespace=top))
    assert f"leave {below}/leaf with 128Mi" in message
    assert api.get(QUOTAS, "root", namespace=top)["spec"]["hard"] == {SIZE: "256Mi"}


def test_a_charged_quota_can_neither_leave_its_tree_nor_be_deleted(
    api: Api, tenant: tuple[str, str]
) -> None:
    _, below = tenant
    charge(api, below, "leaf", "64Mi")
    nowhere = {"spec": {"parentRef": {"namespace": below, "name": "gone"}}}
    message = refusal(lambda: api.patch(QUOTAS, "leaf", nowhere, namespace=below))
    assert f"64Mi of {SIZE}" in message
    assert f"{below}/gone, which does not exist" in message
    assert f"64Mi of {SIZE}" in refusal(lambda: api.delete(QUOTAS, "leaf", namespace=below))
    api.patch(QUOTAS, "leaf", {"spec": {"hard": {SIZE: "32Mi"}}}, namespace=below)
    charge(api, below, "leaf", "0")
    api.patch(QUOTAS, "leaf", nowhere, namespace=below)
    api.delete(QUOTAS, "leaf", namespace=below)


def test_a_change_of_finalizers_needs_no_decision(api: Api, tenant: tuple[str, str]) -> None:
    _, below = tenant
    charge(api, below, "leaf", "512Mi")
    mark = {"metadata": {"annotations": {"a": "b"}}}
    assert api.patch(QUOTAS, "leaf", mark, namespace=below)["metadata"]["annotations"] == {"a": "b"}
    charge(api, below, "leaf", "0")


def race(*changes: Callable[[], object]) -> list[bool]:
    """Send all requests at the same time; return for each whether the API server accepted it."""
    together = threading.Barrier(len(changes))

    def accepted(change: Callable[[], object]) -> bool:
        together.wait(10)
        try:
            change()
        except ApiError as error:
            if error.code not in (403, 409, 429):
                raise
            return False
        return True

    with ThreadPoolExecutor(len(changes)) as pool:
        return list(pool.map(accepted, changes))


def test_two_quotas_put_below_each_other_at_the_same_time(
    api: Api, tenant: tuple[str, str]
) -> None:
    top, _ = tenant
    for name in ("a", "b"):
        api.create(QUOTAS, quota(top, name, "64Mi"))

    def put(name: str, parent: str | None) -> Callable[[], object]:
        above = None if parent is None else {"namespace": top, "name": parent}
        change = {"spec": {"parentRef": above}}
        return lambda: api.patch(QUOTAS, name, change, namespace=top)

    for _ in range(RACES):
        assert sorted(race(put("a", "b"), put("b", "a"))) == [False, True]
        assert sorted(race(put("a", None), put("b", None))) == [True, True]


def test_a_child_raised_while_its_parent_is_lowered(api: Api, tenant: tuple[str, str]) -> None:
    top, below = tenant

    def limit(namespace: str, name: str, amount: str) -> Callable[[], object]:
        change = {"spec": {"hard": {SIZE: amount}}}
        return lambda: api.patch(QUOTAS, name, change, namespace=namespace)

    for _ in range(RACES):
        both = race(limit(below, "leaf", "256Mi"), limit(top, "root", "128Mi"))
        assert sorted(both) == [False, True]
        limit(top, "root", "256Mi")()
        limit(below, "leaf", "128Mi")()


def test_a_child_made_while_its_parent_is_lowered(api: Api, tenant: tuple[str, str]) -> None:
    top, below = tenant
    lower = {"spec": {"hard": {SIZE: "128Mi"}}}
    for number in range(RACES):
        new = quota(below, f"new-{number}", "256Mi", parent=(top, "root"))
        both = race(
            partial(api.create, QUOTAS, new),
            partial(api.patch, QUOTAS, "root", lower, namespace=top),
        )
        assert sorted(both) == [False, True]
        if both[0]:
            api.delete(QUOTAS, f"new-{number}", namespace=below)
        else:
            api.patch(QUOTAS, "root", {"spec": {"hard": {SIZE: "256Mi"}}}, namespace=top)
