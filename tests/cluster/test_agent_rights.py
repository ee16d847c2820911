"""An agent can write only the report of its own node, although RBAC allows every name.

The agent can write only the Events of an agent, and only in its own name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hugetlb_quota.kube.events import Regarding, event
from tests.kube import chart
from tests.kube.api import Api, ApiError, Object
from tests.kube.control_plane import ControlPlane
from tests.waiting import eventually

NODES = "hugetlb.dev/v1alpha1/hugetlbnodes"
ROLES = "rbac.authorization.k8s.io/v1/clusterroles"
BINDINGS = "rbac.authorization.k8s.io/v1/clusterrolebindings"
EVENTS = "events.k8s.io/v1/events"
ACCOUNT = f"{chart.RELEASE}-agent"


@pytest.fixture(scope="module")
def installed(control_plane: ControlPlane, helm: Path) -> ControlPlane:
    chart.install(control_plane, chart.render(helm))
    return control_plane


@pytest.fixture
def agent(installed: ControlPlane, node: str) -> Iterator[Api]:
    """The API with the token of the agent of `node`."""
    kubeconfig = installed.service_account_kubeconfig(chart.NAMESPACE, ACCOUNT, node=node)
    yield installed.api_for(kubeconfig)
    for left in installed.api.list(NODES):
        installed.api.remove(left)


def report(name: str) -> Object:
    return {
        "apiVersion": "hugetlb.dev/v1alpha1",
        "kind": "HugeTLBNode",
        "metadata": {"name": name},
        "spec": {},
    }


def test_writes_its_own_report(agent: Api, node: str) -> None:
    created = agent.create(NODES, report(node))
    stored = agent.replace(NODES, created | {"status": {"bootID": "one"}}, subresource="status")
    assert stored["status"]["bootID"] == "one"


def test_writes_no_other_report(
    agent: Api, installed: ControlPlane, node: str, unique: Callable[[str], str]
) -> None:
    other = unique("other")
    why = f"the agent on node {node} may write only the HugeTLBNode {node}, not {other}"
    with pytest.raises(ApiError, match=why) as refused:
        agent.create(NODES, report(other))
    assert refused.value.code == 403
    theirs = installed.api.create(NODES, report(other))
    with pytest.raises(ApiError, match=why):
        agent.replace(NODES, theirs | {"status": {"bootID": "mine"}}, subresource="status")
    with pytest.raises(ApiError, match="cannot delete resource"):
        agent.delete(NODES, other)


@pytest.mark.parametrize(
    "spec",
    [
        {"heirs": [{"uid": "uid", "quotas": ["ns/quota"]}]},
        {"reclaim": [{"uid": "uid", "after": "1s"}]},
    ],
)
def test_creates_its_report_without_a_spec(agent: Api, node: str, spec: Object) -> None:
    why = "an agent may write only the status of a HugeTLBNode"
    with pytest.raises(ApiError, match=why) as refused:
        agent.create(NODES, report(node) | {"spec": spec})
    assert refused.value.code == 403
    agent.create(NODES, {key: it for key, it in report(node).items() if key != "spec"})


def test_changes_no_spec_even_with_the_right(
    agent: Api, installed: ControlPlane, node: str, unique: Callable[[str], str]
) -> None:
    """The agent's role forbids this too, but an administrator may give the agent more rights."""
    role = unique("more")
    rules = [{"apiGroups": ["hugetlb.dev"], "resources": ["hugetlbnodes"], "verbs": ["update"]}]
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": role}}
    installed.api.create(ROLES, rbac | {"kind": "ClusterRole", "rules": rules})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": chart.NAMESPACE}
    installed.api.create(
        BINDINGS,
        rbac | {"kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [subject]},
    )
    made = agent.create(NODES, report(node))
    wished = installed.api.replace(NODES, made | {"spec": {"heirs": [], "reclaim": []}})
    labelled = wished | {"metadata": wished["metadata"] | {"labels": {"a": "b"}}}

    def relabels() -> bool:
        try:
            agent.replace(NODES, labelled)
        except ApiError as error:
            if "cannot update resource" not in error.message:
                raise
            return False  # RBAC takes a moment to apply the right
        return True

    eventually(relabels)
    now = installed.api.get(NODES, node)
    with pytest.raises(ApiError, match="the controller writes the spec"):
        agent.replace(NODES, now | {"spec": {"heirs": [{"uid": "u", "quotas": ["ns/q"]}]}})
    installed.api.delete(BINDINGS, role)
    installed.api.delete(ROLES, role)


def test_a_token_without_a_node_writes_no_report(
    agent: Api, installed: ControlPlane, node: str
) -> None:
    kubeconfig = installed.service_account_kubeconfig(chart.NAMESPACE, ACCOUNT)
    with pytest.raises(ApiError, match="an agent needs a token that names its node"):
        installed.api_for(kubeconfig).create(NODES, report(node))


def test_the_policy_applies_only_to_agents(installed: ControlPlane, agent: Api, node: str) -> None:
    """The policy restricts only agents: an administrator may remove a report."""
    agent.create(NODES, report(node))
    installed.api.delete(NODES, node)


def agent_event(regarding: Regarding, instance: str, reason: str = "Reclaimed") -> Object:
    """An Event like those of the agent on the node `instance`."""
    made: Object = event(
        regarding,
        kind="Normal",
        reason=reason,
        note="a sentence",
        program="agent",
        instance=instance,
        action="Reconcile",
    )
    return made


def pod_of(namespace: str) -> Regarding:
    return Regarding("v1", "Pod", namespace, "p", "uid")


def node_of(name: str) -> Regarding:
    return Regarding("hugetlb.dev/v1alpha1", "HugeTLBNode", "", name)


def test_writes_events_about_pods_and_its_own_node(agent: Api, node: str, namespace: str) -> None:
    for reason in ("Reclaimed", "HugePagesRefused"):
        agent.create(EVENTS, agent_event(pod_of(namespace), node, reason))
        agent.create(EVENTS, agent_event(node_of(node), node, reason))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"reportingInstance": "another"}, "and the reportingInstance {node}"),
        ({"reportingController": "kubelet"}, "must have the reportingController hugetlb.dev/agent"),
        ({"reason": "Evicted"}, "must have the reason HugePagesRefused or Reclaimed"),
        (
            {"related": {"kind": "Pod", "name": "q", "namespace": "default"}},
            "and no related object",
        ),
    ],
)
def test_writes_events_only_in_its_own_name(
    agent: Api, node: str, namespace: str, changed: Object, why: str
) -> None:
    with pytest.raises(ApiError, match=why.format(node=node)) as refused:
        agent.create(EVENTS, agent_event(pod_of(namespace), node) | changed)
    assert refused.value.code == 403


def test_writes_no_other_events(agent: Api, node: str, namespace: str) -> None:
    others = (
        Regarding("hugetlb.dev/v1alpha1", "HugeTLBQuota", namespace, "q"),
        Regarding("apps/v1", "Deployment", namespace, "d"),
        Regarding("v1", "Node", "", node),
        node_of("another"),
    )
    for regarding in others:
        why = f"only about pods and the HugeTLBNode {node}, not about {regarding.kind}"
        with pytest.raises(ApiError, match=why):
            agent.create(EVENTS, agent_event(regarding, node))


def test_a_token_without_a_node_writes_no_event(
    installed: ControlPlane, node: str, namespace: str
) -> None:
    kubeconfig = installed.service_account_kubeconfig(chart.NAMESPACE, ACCOUNT)
    with pytest.raises(ApiError, match="an Event of the agent on node"):
        installed.api_for(kubeconfig).create(EVENTS, agent_event(pod_of(namespace), node))


def test_the_policy_for_events_applies_only_to_agents(
    installed: ControlPlane, namespace: str
) -> None:
    installed.api.create(EVENTS, agent_event(pod_of(namespace), "me", "Anything"))
