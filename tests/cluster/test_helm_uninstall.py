"""`helm uninstall` of an application with its own quota, and of the operator.

Also `kubectl hugetlb uninstall`, after the operator was deleted without its hook.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from hugetlb_quota.api.quota import FINALIZER
from tests.kube import chart as charts
from tests.kube.api import Object
from tests.kube.cluster import Cluster
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program
from tests.kube.quotas import quota_object
from tests.waiting import eventually

QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
CRDS = "apiextensions.k8s.io/v1/customresourcedefinitions"
CRD_OF_QUOTAS = "hugetlbquotas.hugetlb.dev"
WEBHOOKS = "admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
OF = f"--set=image.repository={charts.IMAGE['repository']}"

Helm = Callable[..., subprocess.CompletedProcess[str]]


def simple_quota(namespace: str) -> Object:
    return quota_object(namespace, "q", {"hard": {"hugepages-2Mi": "4Mi"}})


def runner(plane: ControlPlane) -> Helm:
    return partial(plane.helm, check=False)


def application(folder: Path, policy: str) -> str:
    """A chart with a quota and a pod that the quota governs."""
    quota = {
        "apiVersion": "hugetlb.dev/v1alpha1",
        "kind": "HugeTLBQuota",
        "metadata": {"name": "own"},
        "spec": {"hard": {"hugepages-2Mi": "4Mi"}, "deletionPolicy": policy},
    }
    limits = {"hugepages-2Mi": "2Mi", "cpu": "1m", "memory": "1Mi"}
    container = {"name": "c", "image": "none", "resources": {"limits": limits}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "own"},
        "spec": {"containers": [container], "schedulerName": "nobody"},
    }
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("{apiVersion: v2, name: application, version: 1.0.0}")
    (folder / "templates" / "all.yaml").write_text(yaml.safe_dump_all([quota, pod]))
    return str(folder)


def test_an_application_is_uninstalled_with_its_own_quota(
    cluster: Cluster, cluster_namespace: str, tmp_path: Path
) -> None:
    helm = runner(cluster.control_plane)
    api, here = cluster.control_plane.api, f"--namespace={cluster_namespace}"
    done = helm("install", "app", application(tmp_path / "app", "Wait"), here)
    assert done.returncode == 0, done.stderr

    def charged() -> bool:
        found = api.get(QUOTAS, "own", namespace=cluster_namespace)
        status, guarded = found.get("status") or {}, found["metadata"].get("finalizers")
        return bool(guarded) and (status.get("used") or {}).get("hugepages-2Mi") == "2Mi"

    eventually(charged, timeout=60)
    done = helm("uninstall", "app", here)
    assert done.returncode == 0, done.stderr
    assert "app" not in helm("list", "--all", "--short", here).stdout.split()
    eventually(lambda: not api.list(QUOTAS, namespace=cluster_namespace), timeout=60)


@pytest.fixture
def alone(assets: Path) -> Iterator[Cluster]:
    """A cluster for this test alone, with the operator running."""
    with Cluster(assets=assets) as running:
        yield running


@pytest.mark.timeout(300)
def test_the_uninstall_removes_finalizers_before_the_operator(alone: Cluster) -> None:
    api = alone.control_plane.api
    api.create(QUOTAS, simple_quota("default"))

    def finalizers() -> list[str]:
        found: list[str] = api.get(QUOTAS, "q", namespace="default")["metadata"].get("finalizers")
        return found or []

    eventually(finalizers, timeout=60)

    def lease() -> Object:
        name = "hugetlb-quota-controller"
        path = "coordination.k8s.io/v1/leases"
        found: Object = api.get(path, name, namespace=charts.NAMESPACE)["spec"]
        return found

    leader: Program = alone.controller
    standby = alone.programs.start_controller()
    standby.wait_ready()
    farewell = alone.programs.start_uninstall()
    eventually(lambda: lease()["holderIdentity"] == "uninstall")
    taken = lease()
    eventually(lambda: lease()["renewTime"] != taken["renewTime"])
    assert lease()["acquireTime"] == taken["acquireTime"]
    assert farewell.child.wait(120) == 0
    assert "HugeTLBQuota default/q" in farewell.log()
    # No controller leads that would add the finalizer again.
    assert leader.child.wait(60) != 0
    assert finalizers() == []
    assert "leads" not in standby.log()


def hugetlb(plane: ControlPlane, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the plugin as an administrator, without a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "hugetlb_quota.plugin", "uninstall", *words],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={"KUBECONFIG": str(plane.admin_kubeconfig), "HOME": "/nonexistent"},
    )


@pytest.mark.timeout(300)
def test_the_plugin_removes_finalizers_when_the_operator_is_lost(alone: Cluster) -> None:
    """The same state as after `helm uninstall --no-hooks`."""
    plane, api = alone.control_plane, alone.control_plane.api
    for namespace in ("stays", "goes"):
        plane.create_namespace(namespace)
        api.create(QUOTAS, simple_quota(namespace))

    def guarded() -> dict[str, bool]:
        return {
            each["metadata"]["namespace"]: FINALIZER in (each["metadata"].get("finalizers") or ())
            for each in api.list(QUOTAS)
        }

    eventually(lambda: guarded() == {"stays": True, "goes": True}, timeout=60)
    patch: Object = {"metadata": {"finalizers": [FINALIZER, "example.com/others"]}}
    api.patch(QUOTAS, "q", patch, namespace="stays")
    done = hugetlb(plane, "--yes")
    assert (done.returncode, "leads: hugetlb-quota is installed" in done.stderr) == (1, True)
    assert guarded() == {"stays": True, "goes": True}

    alone.controller.kill9()
    alone.admission.stop()
    api.delete(WEBHOOKS, alone.chart.fullname)
    api.delete("v1/namespaces", "goes")
    is_deleting = "deletionTimestamp"
    eventually(lambda: is_deleting in api.get(QUOTAS, "q", namespace="goes")["metadata"])
    done = hugetlb(plane, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "2 quotas have the operator's finalizer" in done.stdout
    assert "is deleted with its namespace" in done.stdout
    done = hugetlb(plane)
    assert (done.returncode, "add --yes" in done.stderr) == (2, True)
    assert guarded() == {"stays": True, "goes": True}

    done = hugetlb(plane, "--yes", "-o", "json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert sorted(result["letGo"]) == ["goes/q", "stays/q"]
    assert result["customResourceDefinitions"] == [CRD_OF_QUOTAS, "hugetlbnodes.hugetlb.dev"]
    left = api.get(QUOTAS, "q", namespace="stays")["metadata"]["finalizers"]
    assert left == ["example.com/others"]
    eventually(lambda: not api.list("v1/namespaces", fields="metadata.name=goes"), timeout=60)
    done = hugetlb(plane)
    assert (done.returncode, "No quota has the operator's" in done.stdout) == (0, True)


def test_a_release_of_any_name_can_take_over_existing_crds(
    control_plane: ControlPlane, unique: Callable[[str], str]
) -> None:
    charts.install(control_plane, charts.render(control_plane.assets / "helm"))
    helm, name = runner(control_plane), unique("release")
    words = (name, str(charts.CHART), f"--namespace={name}", "--create-namespace", OF)
    done = helm("install", *words)
    assert done.returncode == 0, done.stderr
    assert "hugetlbquotas.hugetlb.dev does not belong to this release" in done.stdout
    # The commands in the notes make the CRDs part of this release.
    for what in ("kubectl annotate crd", "kubectl label crd"):
        command = next(line for line in done.stdout.splitlines() if what in line)
        control_plane.kubectl(*command.split()[1:])
    done = helm("upgrade", *words, "--force-conflicts")
    assert done.returncode == 0, done.stderr
    assert "does not belong to this release" not in done.stdout
    done = helm("uninstall", name, f"--namespace={name}", "--no-hooks")
    assert done.returncode == 0, done.stderr
    assert control_plane.api.get(CRDS, CRD_OF_QUOTAS)
