"""Options of the chart for some clusters: OpenShift, and seats at the API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from tests.kube import chart
from tests.kube.api import Object
from tests.kube.control_plane import ControlPlane
from tests.waiting import eventually

#: The fields of SecurityContextConstraints (security.openshift.io/v1), from the documentation,
#: because the API server of the tests has no such kind.
REQUIRED: Final = {
    "allowHostDirVolumePlugin": bool,
    "allowHostIPC": bool,
    "allowHostNetwork": bool,
    "allowHostPID": bool,
    "allowHostPorts": bool,
    "allowPrivilegedContainer": bool,
    "readOnlyRootFilesystem": bool,
}
FIELDS: Final[dict[str, type]] = REQUIRED | {
    "apiVersion": str,
    "kind": str,
    "metadata": dict,
    "allowPrivilegeEscalation": bool,
    "defaultAllowPrivilegeEscalation": bool,
    "allowedCapabilities": list,
    "requiredDropCapabilities": list,
    "volumes": list,
    "users": list,
    "groups": list,
    "seccompProfiles": list,
    "runAsUser": dict,
    "seLinuxContext": dict,
    "fsGroup": dict,
    "supplementalGroups": dict,
}


def constraints(helm: Path, **agent: Any) -> tuple[Object, Object]:
    """The SecurityContextConstraints, and the spec of the agent's pods."""
    values = {"openshift": {"securityContextConstraints": True}, "agent": agent}
    rendered = chart.render(helm, values=values)
    (made,) = rendered.of_kind("SecurityContextConstraints")
    (agents,) = rendered.of_kind("DaemonSet")
    spec: Object = agents["spec"]["template"]["spec"]
    return made, spec


@pytest.mark.parametrize("reclaim", [False, True])
def test_the_constraints_for_openshift_allow_exactly_the_agents_needs(
    reclaim: bool, helm: Path
) -> None:
    made, spec = constraints(helm, reclaim=reclaim)
    assert REQUIRED.keys() <= made.keys() <= FIELDS.keys()
    assert [name for name, value in made.items() if not isinstance(value, FIELDS[name])] == []
    assert made["apiVersion"] == "security.openshift.io/v1"
    account = f"system:serviceaccount:{chart.NAMESPACE}:{spec['serviceAccountName']}"
    assert made["users"] == [account]
    (container,) = spec["containers"]
    security = container["securityContext"]
    assert set(made["allowedCapabilities"]) == set(security["capabilities"]["add"])
    assert made["requiredDropCapabilities"] == security["capabilities"]["drop"]
    assert made["runAsUser"] == {"type": "MustRunAs", "uid": security["runAsUser"]}
    assert made["readOnlyRootFilesystem"] == security["readOnlyRootFilesystem"]
    assert made["allowPrivilegedContainer"] == security["privileged"]
    assert made["allowPrivilegeEscalation"] == security["allowPrivilegeEscalation"]
    assert made["seccompProfiles"] == ["runtime/default"]
    # The API server adds the token's volume, which is a projected volume.
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert set(made["volumes"]) == kinds | {"projected"}
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        assert made[f"allowH{field[1:]}"] == spec.get(field, False)


def test_without_openshift_makes_no_constraints(helm: Path) -> None:
    kinds = {found["kind"] for found in chart.render(helm).objects}
    assert not kinds & {"SecurityContextConstraints", "FlowSchema", "PriorityLevelConfiguration"}


def test_admission_and_controller_have_a_flow_schema(
    control_plane: ControlPlane, helm: Path
) -> None:
    """Compare the header in which the API server names the FlowSchema of a request."""
    values = {"flowSchema": {"enabled": True, "matchingPrecedence": 950}}
    rendered = chart.render(helm, values=values)
    chart.install(control_plane, rendered)
    schemas = "flowcontrol.apiserver.k8s.io/v1/flowschemas"
    made = control_plane.api.get(schemas, chart.RELEASE)
    assert made["spec"]["matchingPrecedence"] == 950

    def flow_schema_of(program: str) -> str:
        account = f"{chart.RELEASE}-{program}"
        kubeconfig = control_plane.service_account_kubeconfig(chart.NAMESPACE, account)
        answer = control_plane.api_for(kubeconfig).raw("GET", "/apis/hugetlb.dev/v1alpha1")
        return str(answer.headers["X-Kubernetes-PF-FlowSchema-UID"])

    for program in ("admission", "controller"):
        eventually(lambda program=program: flow_schema_of(program) == made["metadata"]["uid"])  # type: ignore[misc]
    assert flow_schema_of("agent") != made["metadata"]["uid"]
    for kind in ("FlowSchema", "PriorityLevelConfiguration"):
        for found in rendered.of_kind(kind):
            control_plane.api.remove(found)
