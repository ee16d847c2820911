"""``uninstall``: the plan, the leader, and the list of the objects that are left."""

from __future__ import annotations

import re
from typing import Any

from hugetlb_quota.api.quota import FINALIZER
from hugetlb_quota.plugin import uninstall
from hugetlb_quota.plugin.table import Screen
from hugetlb_quota.plugin.uninstall import Left

Json = dict[str, Any]


def quota(name: str, *finalizers: str, deleting: bool = False) -> Json:
    namespace, _, own = name.partition("/")
    metadata: Json = {"namespace": namespace, "name": own, "finalizers": list(finalizers)}
    if deleting:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {"metadata": metadata, "spec": {}}


def lease(version: str, holder: str = "a") -> Json:
    metadata = {"namespace": "system", "name": "lease", "resourceVersion": version}
    return {"metadata": metadata, "spec": {"holderIdentity": holder}}


LEFT = Left(
    quotas=[
        quota("a/stays", FINALIZER, "other"),
        quota("a/goes", FINALIZER, deleting=True),
        quota("gone/x", FINALIZER, deleting=True),
        quota("a/others", "other"),
    ],
    namespaces=["gone"],
    crds=["hugetlbquotas.hugetlb.dev"],
    webhooks=["hooks"],
)


def test_a_controller_that_renews_its_lease_leads() -> None:
    assert uninstall.leader([lease("1")], [lease("2")]) == "a (Lease system/lease)"
    assert uninstall.leader([lease("1")], [lease("1")]) == ""
    assert uninstall.leader([], [lease("1")]) == "a (Lease system/lease)"
    # The controller released the Lease in between.
    assert uninstall.leader([lease("1")], [lease("2", "")]) == ""


def test_the_plan_says_which_quotas_stay() -> None:
    lines = uninstall.plan(LEFT, Screen()).splitlines()
    assert [re.split(r" {2,}", line) for line in lines[1:4]] == [
        ["a/stays", "stays"],
        ["a/goes", "is deleted"],
        ["gone/x", "is deleted with its namespace"],
    ]
    assert lines[-1] == "3 quotas have the operator's finalizer."
    none = Left([quota("a/b")], [], [], [])
    assert uninstall.plan(none, Screen()) == "No quota has the operator's finalizer."


def test_the_list_of_what_is_left_has_commands() -> None:
    text = uninstall.rest(LEFT)
    assert "kubectl delete validatingwebhookconfiguration hooks" in text
    assert "2 quotas (a/stays, a/others)" in text
    assert "2 quotas being deleted (a/goes, gone/x)" in text
    assert "1 namespace being deleted with quotas (gone)" in text
    assert "kubectl delete crd hugetlbquotas.hugetlb.dev" in text
    assert uninstall.rest(Left([], [], [], [])).endswith("- nothing")


def test_the_result_as_data() -> None:
    data = uninstall.document(LEFT, ["a/b"])
    assert data["letGo"] == ["a/b"]
    first, *_, last = data["quotas"]
    assert first == {"namespace": "a", "name": "stays", "finalizer": True, "deleting": False}
    assert not last["finalizer"]
