"""The programs use each of their rights: the API server's audit log shows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.cluster.left_files import leave_file
from tests.cluster.test_chart import rights_of
from tests.cluster.test_reclaim import NOBODY, QUOTAS
from tests.kube import chart
from tests.kube.api import Api, ApiError, Object
from tests.kube.cluster import Cluster
from tests.kube.control_plane import ControlPlane
from tests.kube.quotas import create_quota, quota_object
from tests.testnode.hugepages import reserved_pages
from tests.testnode.process import TestNode
from tests.waiting import eventually
from tests.workloads import command

PROGRAMS = ("admission", "controller", "agent")
ACCOUNT = "system:serviceaccount:{}:hugetlb-quota-{}"


class Right(NamedTuple):
    program: str
    resource: str
    verb: str


@pytest.fixture
def audited(assets: Path, tmp_path: Path) -> Iterator[tuple[Cluster, Path]]:
    """A cluster with an API server that logs every request of the programs."""
    policy, log = tmp_path / "policy.yaml", tmp_path / "audit.log"
    rules = [
        {"level": "Metadata", "userGroups": [f"system:serviceaccounts:{chart.NAMESPACE}"]},
        {"level": "None"},
    ]
    policy.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "audit.k8s.io/v1",
                "kind": "Policy",
                "omitStages": ["RequestReceived"],
                "rules": rules,
            }
        )
    )
    flags = (f"--audit-policy-file={policy}", f"--audit-log-path={log}")
    values = {"agent": {"reclaim": True}, "requestTimeoutSeconds": 5}
    with (
        ControlPlane(assets, apiserver_flags=flags) as plane,
        Cluster(control_plane=plane, values=values) as running,
    ):
        yield running, log


def used(log: Path, among: tuple[str, ...] = PROGRAMS) -> set[Right]:
    """The rights of all requests that were not refused."""
    who = {ACCOUNT.format(chart.NAMESPACE, program): program for program in among}
    found = set()
    for line in log.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # the last line may be incomplete
            event = json.loads(line)
            program, about = who.get(event["user"]["username"]), event.get("objectRef")
            if program is None or about is None:
                continue
            if event.get("responseStatus", {}).get("code") == 403:
                continue
            group, resource = about.get("apiGroup", ""), about["resource"]
            resource += f"/{about['subresource']}" if "subresource" in about else ""
            found.add(Right(program, f"{group}/{resource}".removeprefix("/"), event["verb"]))
    return found


def granted(rendered: chart.Chart) -> set[Right]:
    return {
        # A right in one namespace, or for one name, allows the same request.
        Right(program, resource.partition(" ")[0], verb)
        for program in PROGRAMS
        for resource, verbs in rights_of(rendered, f"hugetlb-quota-{program}").items()
        for verb in verbs
    }


def quota(namespace: str, name: str, hard: str, **spec: object) -> Object:
    return quota_object(namespace, name, {"hard": {"hugepages-2Mi": hard}, **spec})


def pod(namespace: str, name: str, node: str, maps: str) -> Object:
    resources = {"hugepages-2Mi": "2Mi", "cpu": "1m", "memory": "16Mi"}
    container = {
        "name": "main",
        "image": "host",
        "command": command("map_pages", maps, "--hold"),
        "resources": {"requests": resources, "limits": resources},
    }
    spec = {"containers": [container], "restartPolicy": "Never", "nodeName": node}
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def use_all_rights(api: Api, node: str, hugetlbfs: Path) -> None:
    """Create, change and delete quotas; admit and refuse pods; let pods leave files."""
    retained = {"policy": "Truncate", "after": "1s"}
    create_quota(api, quota("day", "team", "8Mi", retained=retained, childNamespaces={}))
    above = {"namespace": "day", "name": "team"}
    create_quota(api, quota("below", "part", "4Mi", parentRef=above))
    leave_file(api, "day", node, hugetlbfs / "left", NOBODY)
    eventually(lambda: not list(hugetlbfs.iterdir()), timeout=60)
    api.create("v1/pods", pod("day", "greedy", node, "4Mi"))
    # A pod that is admitted and never created: a live read ends its reservation.
    api.create(
        "v1/resourcequotas",
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "none", "namespace": "below"},
            "spec": {"hard": {"pods": "0"}},
        },
    )
    eventually(lambda: bool(api.get("v1/resourcequotas", "none", namespace="below").get("status")))
    with pytest.raises(ApiError, match="exceeded quota"):
        api.create("v1/pods", pod("below", "never", node, "2Mi"))
    too_much = pod("day", "refused", node, "2Mi")
    limits = too_much["spec"]["containers"][0]["resources"]
    limits["limits"]["hugepages-2Mi"] = limits["requests"]["hugepages-2Mi"] = "64Mi"
    for times in (1, 2):
        with pytest.raises(ApiError, match="Ask for less"):
            api.create("v1/pods", too_much)
        # The second refusal updates the Event of the first.
        eventually(lambda times=times: _refusals(api) == times)  # type: ignore[misc]
    # A quota without its parent refuses pods, after admission has read it again.
    nowhere, label = {"namespace": "day", "name": "nowhere"}, {"is": "lost"}
    selector = {"matchLabels": label}
    api.create(QUOTAS, quota("below", "lost", "2Mi", parentRef=nowhere, podSelector=selector))
    lost = pod("below", "lost", node, "2Mi")
    lost["metadata"]["labels"] = label
    with pytest.raises(ApiError, match="nowhere"):
        api.create("v1/pods", lost)
    api.delete(QUOTAS, "lost", namespace="below")
    api.patch(QUOTAS, "part", {"spec": {"hard": {"hugepages-2Mi": "6Mi"}}}, namespace="below")
    api.delete("v1/pods", "greedy", namespace="day", grace_seconds=0)
    eventually(lambda: _deleted(api, "below", "part"), timeout=60)
    eventually(lambda: _deleted(api, "day", "team"), timeout=60)


def _refusals(api: Api) -> int:
    events = api.list("events.k8s.io/v1/events", namespace="day")
    refused = [each for each in events if each["reason"] == "PodRefused"]
    return sum(each.get("series", {}).get("count", 1) for each in refused)


def _deleted(api: Api, namespace: str, name: str) -> bool:
    with suppress(ApiError):
        api.delete(QUOTAS, name, namespace=namespace)
    return not api.list(QUOTAS, namespace=namespace)


def test_every_right_is_used(
    audited: tuple[Cluster, Path], hugetlbfs: Path, unique: Callable[[str], str]
) -> None:
    cluster, log = audited
    api, name = cluster.control_plane.api, unique("node")
    for namespace in ("day", "below"):
        cluster.control_plane.create_namespace(namespace)
    kubeconfig = cluster.control_plane.user_kubeconfig(f"system:node:{name}", "system:nodes")
    with (
        reserved_pages(2 << 20, 12),
        TestNode(name, kubeconfig, capacity={"hugepages-2Mi": "24Mi"}) as node,
    ):
        agent = cluster.start_agent(name, cgroup_root=node.cgroup_parent)
        use_all_rights(api, name, hugetlbfs)
        agent.stop()
    # The log names no handler: kopf must write no Event about each try to delete.
    assert "andler" not in cluster.controller.log()
    rights = granted(cluster.chart)
    assert len(rights) > 30
    unused = [" ".join(right) for right in sorted(rights - used(log))]
    assert not unused, f"these rights are never used: {unused}"


def test_no_role_for_people_reads_secrets(helm: Path) -> None:
    rendered = chart.render(helm)
    bound = {
        binding["roleRef"]["name"]
        for binding in rendered.of_kind("ClusterRoleBinding") + rendered.of_kind("RoleBinding")
    }
    people = [
        role
        for role in rendered.of_kind("ClusterRole") + rendered.of_kind("Role")
        if role["metadata"]["name"] not in bound
    ]
    assert {role["metadata"]["name"] for role in people} == {
        f"{chart.RELEASE}-{name}" for name in ("view", "manager", "delegate")
    }
    groups = {group for role in people for rule in role["rules"] for group in rule["apiGroups"]}
    assert groups == {"hugetlb.dev"}
