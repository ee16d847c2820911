"""``uninstall``: the plan, the signs of an operator, and the list of what is left."""

from __future__ import annotations

import re
from typing import Any

from hugetlb_quota.api.quota import FINALIZER
from hugetlb_quota.kube.controller_lease import HOOK
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
    assert uninstall.led([lease("1")], [lease("2")]).startswith("a (Lease system/lease) leads: ")
    assert uninstall.led([lease("1")], [lease("1")]) == ""
    assert uninstall.led([], [lease("1")]).startswith("a (Lease system/lease) leads: ")
    # The controller released the Lease in between.
    assert uninstall.led([lease("1")], [lease("2", "")]) == ""


def test_the_hook_of_helm_is_no_controller() -> None:
    # The plugin meets the hooks of earlier and later releases too.
    assert HOOK == "uninstall"
    said = uninstall.led([lease("1", HOOK)], [lease("2", HOOK)])
    assert said.startswith("The hook of helm uninstall holds Lease system/lease")
    # The hook ended; the Lease keeps its holder.
    assert uninstall.led([lease("2", HOOK)], [lease("2", HOOK)]) == ""


def test_a_deployment_or_a_daemon_set_means_that_the_operator_is_installed() -> None:
    none: dict[str, list[Json]] = {"admission": [], "controller": [], "agent": []}
    assert uninstall.installed(none) == ""
    for component, what in (
        ("admission", "Deployment system/admission"),
        ("agent", "DaemonSet system/agent"),
    ):
        raw = {"metadata": {"namespace": "system", "name": component}}
        said = uninstall.installed({**none, component: [raw]})
        assert said.startswith(f"hugetlb-quota is installed ({what})")
        assert "helm uninstall" in said
        assert "kubectl delete" not in said


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
