"""``kubectl hugetlb`` on a real API server: each command, its data, exit codes and rights."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
import yaml

from tests.cluster import plugin_world
from tests.cluster.plugin_world import FILE, QUOTAS, a_pod
from tests.kube import chart
from tests.kube.api import Object
from tests.kube.control_plane import ControlPlane

Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]

VIEW = f"{chart.RELEASE}-view"


@pytest.fixture(scope="module")
def bare(assets: Path) -> Iterator[ControlPlane]:
    """A control plane for this module alone, because commands show all objects."""
    with ControlPlane(assets) as running:
        yield running


@pytest.fixture(scope="module")
def without_anything(bare: ControlPlane) -> Done:
    """The result of the plugin before the chart is installed."""
    return hugetlb(bare.admin_kubeconfig, "tree")


@pytest.fixture(scope="module")
def plane(bare: ControlPlane, without_anything: Done, helm: Path) -> Iterator[ControlPlane]:
    """The control plane with the tenant of ``plugin_world``, and with admission for dry runs."""
    rendered = chart.render(helm)
    plugin_world.fill(bare, rendered)
    programs = plugin_world.serve(bare, rendered)
    yield bare
    programs.stop()


@pytest.fixture
def run(plane: ControlPlane) -> Run:
    """Run the plugin as an administrator."""
    return lambda *words, **more: hugetlb(plane.admin_kubeconfig, *words, **more)


@pytest.fixture
def viewer(plane: ControlPlane) -> Callable[[str | None], Path]:
    """Make a kubeconfig of a user with the view role, in all namespaces or in one."""

    def make(namespace: str | None) -> Path:
        user = f"viewer-of-{namespace or 'all'}"
        scope = "RoleBinding" if namespace else "ClusterRoleBinding"
        metadata = {"name": user, **({"namespace": namespace} if namespace else {})}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": VIEW}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
        plane.api.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": scope,
                "metadata": metadata,
                "roleRef": role,
                "subjects": [subject],
            }
        )
        kubeconfig = plane.user_kubeconfig(user)
        may = plane.api_for(kubeconfig)
        deadline = time.monotonic() + 30
        path = "/apis/hugetlb.dev/v1alpha1"
        path += f"/namespaces/{namespace}/hugetlbquotas" if namespace else "/hugetlbquotas"
        while may.raw("GET", path).status_code != 200:
            assert time.monotonic() < deadline, "the role is not in force"
            time.sleep(0.05)
        return kubeconfig

    return make


def hugetlb(kubeconfig: Path, *words: str, stdin: str | None = None) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "hugetlb_quota.plugin", *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            "KUBECONFIG": str(kubeconfig),
            "HOME": "/nonexistent",
            "PATH": os.environ.get("PATH", ""),
            "PYTHONUTF8": "1",
        },
    )


def data(done: Done) -> Any:
    assert done.stderr == ""
    return json.loads(done.stdout)


def rows(done: Done) -> list[list[str]]:
    """The words of each line of a table except the first."""
    assert done.stdout, f"exit code {done.returncode}: {done.stderr}"
    return [line.split() for line in done.stdout.splitlines()[1:]]


def deployment(amount: str, replicas: int = 3) -> str:
    pod = a_pod("ignored", amount)
    template = {"metadata": {"labels": {"app": "api"}}, "spec": pod["spec"]}
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": "api"}},
        "template": template,
    }
    metadata = {"name": "api", "namespace": "acme-web"}
    raw = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}
    return yaml.safe_dump_all([{"kind": "Service"}, raw])


def test_says_that_nothing_is_installed(without_anything: Done) -> None:
    assert without_anything.returncode == 6
    assert "hugetlb-quota is not installed" in without_anything.stderr
    assert without_anything.stdout == ""


def test_tree(run: Run) -> None:
    done = run("tree")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert re.search(r"acme/tenant +2Mi +█+▓+▒+░+ +78% +176Mi +224Mi", done.stdout)
    assert re.search(r"├─ acme-db/db +2Mi +█+░+ +50% +64Mi +128Mi", done.stdout)
    assert re.search(r"lab/lost .* ParentNotFound", done.stdout)
    assert "lab" not in run("tree", "-n", "acme-web").stdout


def test_tree_as_data(run: Run) -> None:
    found = data(run("tree", "-o", "json"))["items"]
    tenant = found[0]
    assert [each["name"] for each in found] == ["tenant", "lost"]
    assert tenant["used"] == {"hugepages-2Mi": "176Mi", "hugepages-1Gi": "0"}
    assert [each["name"] for each in tenant["children"]] == ["db", "web"]
    assert found[1]["state"] == ["ParentNotFound"]
    assert yaml.safe_load(run("tree", "-o", "yaml").stdout)["items"] == found


def test_tree_of_one_quota(run: Run) -> None:
    (found,) = data(run("tree", "acme-web/web", "-o", "json"))["items"]
    assert found["name"] == "web"
    assert data(run("tree", "web", "-n", "acme-web", "-o", "json"))["items"] == [found]


def test_suggests_a_quota_for_a_wrong_name(run: Run) -> None:
    for command in ("tree", "who"):
        done = run(command, "tenant")
        assert done.returncode == 3
        assert done.stderr == (
            "There is no HugeTLBQuota default/tenant; did you mean acme/tenant?\n"
        )


def test_tree_watch_shows_changes(plane: ControlPlane) -> None:
    command = [sys.executable, "-m", "hugetlb_quota.plugin", "tree", "acme-db/db", "--watch"]
    env = {"KUBECONFIG": str(plane.admin_kubeconfig), "HOME": "/nonexistent", "PYTHONUTF8": "1"}
    watching = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        # Background jobs and processes of `pytest -n` ignore SIGINT; a shell's jobs do not.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert watching.stdout is not None
    try:
        assert until(watching.stdout, "acme-db/db").split()[-2:] == ["64Mi", "128Mi"]
        limit(plane, "160Mi")
        assert until(watching.stdout, "160Mi").split()[-3:] == ["64Mi", "160Mi", "NotCounted"]
    finally:
        limit(plane, "128Mi")
        status(plane, observedGeneration=99)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 0


def until(lines: IO[str], text: str) -> str:
    return next(line for line in lines if text in line)


def limit(plane: ControlPlane, amount: str) -> None:
    spec = {"spec": {"hard": {"hugepages-2Mi": amount}}}
    plane.api.patch(QUOTAS, "db", spec, namespace="acme-db")


def status(plane: ControlPlane, **fields: Any) -> None:
    body = {"status": fields}
    plane.api.patch(QUOTAS, "db", body, namespace="acme-db", subresource="status")


def test_top_pods(run: Run) -> None:
    assert rows(run("top")) == [
        ["acme-db/db-0", "n1", "2Mi", "64Mi", "32Mi", "acme-db/db"],
        ["acme-web/web-0", "-", "2Mi", "64Mi", "0", "acme-web/web"],
    ]
    (only,) = data(run("top", "pods", "-n", "acme-web", "-o", "json"))["items"]
    assert (only["pod"], only["state"]) == ("acme-web/web-0", "pending")


def test_top_nodes(run: Run) -> None:
    assert rows(run("top", "nodes")) == [
        ["n1", "2Mi", "1Gi", "960Mi", "32Mi", "32Mi", "0"],
        ["n2", "2Mi", "1Gi", "960Mi", "0", "0", "0", "NoCgroup2"],
    ]
    first, _ = data(run("top", "nodes", "-o", "json"))["items"]
    assert first["pools"][0]["retained"] == "32Mi"


def test_files(run: Run) -> None:
    (found,) = rows(run("files"))
    assert found[:3] + found[4:] == ["n1", "2Mi", "32Mi", "acme-web/old", "acme-web/web", FILE]
    (file,) = data(run("files", "-o", "json"))["items"]
    assert (file["path"], file["gone"], file["quotas"]) == (FILE, True, ["acme-web/web"])
    assert "No file of namespace acme-db" in run("files", "-n", "acme-db").stdout


def test_who(run: Run) -> None:
    found = data(run("who", "acme/tenant", "-o", "json"))
    assert [(each["kind"], each["pod"], each["quotas"]) for each in found["holders"]] == [
        ("pod", "acme-db/db-0", ["acme-db/db"]),
        ("pod", "acme-web/web-0", ["acme-web/web"]),
        ("retained", "acme-web/old", ["acme-web/web"]),
        ("reserved", "acme-web/new", ["acme-web/web"]),
    ]
    assert found["unexplained"] == {}
    assert f"in {FILE}" in run("who", "web", "-n", "acme-web").stdout


def test_explain_makes_a_dry_run(run: Run) -> None:
    done = run("explain", "-f", "-", stdin=deployment("100Mi"))
    assert done.returncode == 1
    assert "refused, by a dry run of the API server" in done.stdout
    assert "HugeTLBQuota acme/tenant has room for 48Mi" in done.stdout  # admission's own words
    assert "ask for 48Mi of hugepages-2Mi or less" in done.stdout
    fits = run("explain", "-f", "-", stdin=deployment("48Mi"))
    assert (fits.returncode, "admitted, by a dry run" in fits.stdout) == (0, True)


def test_explain_as_data(run: Run) -> None:
    (found,) = data(run("explain", "-o", "json", "-f", "-", stdin=deployment("100Mi")))["items"]
    assert (found["refused"], found["decidedBy"]) == (True, "dry run")
    assert {each["quota"]: each["short"] for each in found["quotas"]} == {
        "acme-web/web": "20Mi",
        "acme/tenant": "52Mi",
    }
    assert found["fitsAt"] == {"hugepages-2Mi": "48Mi"}


def test_explain_shows_other_refusals_too(run: Run) -> None:
    done = run("explain", "-f", "-", stdin=deployment("1Mi"))
    assert done.returncode == 1
    assert "not positive integer multiple of hugepages-2Mi" in done.stdout


def test_explain_stored_objects(run: Run, plane: ControlPlane) -> None:
    done = run("explain", "pod", "acme-db/db-0")
    assert "It is admitted; whether another pod like it would be" in done.stdout
    assert done.returncode == 1
    for raw in yaml.safe_load_all(deployment("2Mi", replicas=0)):
        if "spec" in raw:
            plane.api.create("apps/v1/deployments", raw)
    done = run("explain", "deploy/api", "-n", "acme-web")
    assert "Deployment api in namespace acme-web" in done.stdout
    assert done.returncode == 0
    missing = run("explain", "pod", "acme-db/db-1")
    assert (missing.returncode, "did you mean acme-db/db-0?" in missing.stderr) == (3, True)


def test_explain_reserves_nothing(run: Run, plane: ControlPlane) -> None:
    def stored() -> list[Object]:
        return [each["status"] for each in plane.api.list(QUOTAS)]

    before = stored()
    run("explain", "-f", "-", stdin=deployment("2Mi"))
    assert stored() == before


def test_check(run: Run) -> None:
    done = run("check", "-o", "json")
    found = data(done)
    assert done.returncode == 1
    levels = {(each["topic"], each["level"]) for each in found["findings"]}
    # No Deployment runs here, and no controller leads; everything else is as in the chart.
    assert ("CRDs", "OK") in levels
    (webhooks,) = [each for each in found["findings"] if each["topic"] == "webhooks"]
    assert "hugetlb-quota-admission has no ready endpoint" in webhooks["message"]
    assert {(topic, "ERROR") for topic in ("admission", "controller", "agent", "leader")} <= levels
    bad = [each for each in found["findings"] if each["level"] in ("ERROR", "WARNING")]
    assert all(each["remedy"] for each in bad)
    messages = " ".join(each["message"] for each in bad)
    assert "n2: Ready is False (NoCgroup2)" in messages
    assert "lab/lost is ParentNotFound" in messages


def test_check_reads_the_deployed_programs(run: Run, plane: ControlPlane, helm: Path) -> None:
    rendered = chart.render(helm)
    workloads = rendered.of_kind("Deployment") + rendered.of_kind("DaemonSet")
    # PyYAML reads an octal number of YAML 1.2 as a string.
    shipped = json.loads(json.dumps(workloads).replace('"0o440"', str(0o440)))
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "hugetlb-quota-controller", "namespace": chart.NAMESPACE},
        "spec": {"holderIdentity": "", "leaseDurationSeconds": 1},
    }
    for each in (*shipped, lease):
        plane.api.apply(each)
    try:
        found = data(run("check", "-o", "json"))["findings"]
    finally:
        for each in (*shipped, lease):
            plane.api.remove(each)
    messages = {each["topic"]: each["message"] for each in found}
    assert "Deployment hugetlb-system/hugetlb-quota-admission" in messages["admission"]
    assert "Deployment hugetlb-system/hugetlb-quota-controller" in messages["controller"]
    assert "DaemonSet hugetlb-system/hugetlb-quota-agent" in messages["agent"]
    assert "has no holder" in messages["leader"]
    assert "The programs and the plugin have version" in messages["versions"]


def test_a_viewer_sees_everything_except_pods(viewer: Callable[[str | None], Path]) -> None:
    kubeconfig = viewer(None)
    tree = hugetlb(kubeconfig, "tree")
    assert (tree.returncode, tree.stderr) == (0, "")
    assert "└─ acme-web/web" in tree.stdout
    top = hugetlb(kubeconfig, "top", "pods")
    assert [row[0] for row in rows(top)] == ["acme-db/db-0"]
    assert "Not seen: pods that no node reports yet" in top.stderr
    assert FILE in hugetlb(kubeconfig, "files").stdout
    assert "acme-web/old" in hugetlb(kubeconfig, "who", "acme/tenant").stdout
    done = hugetlb(kubeconfig, "explain", "-f", "-", stdin=deployment("100Mi"))
    assert done.returncode == 1
    assert "no dry run: you may not create pods in namespace acme-web" in done.stdout


def test_a_viewer_of_one_namespace(viewer: Callable[[str | None], Path]) -> None:
    kubeconfig = viewer("acme-web")
    tree = hugetlb(kubeconfig, "tree", "-n", "acme-web")
    assert tree.returncode == 0
    assert re.search(r"acme-web/web .* below acme/tenant", tree.stdout)
    assert "quotas of other namespaces than acme-web" in tree.stderr
    nodes = hugetlb(kubeconfig, "top", "nodes")
    assert (nodes.returncode, nodes.stdout) == (5, "")
    check = hugetlb(kubeconfig, "check", "-n", "acme-web", "-o", "json")
    assert check.returncode == 5
    assert data(check)["worst"] == "UNSEEN"
    fits = hugetlb(kubeconfig, "explain", "-n", "acme-web", "-f", "-", stdin=deployment("2Mi"))
    assert fits.returncode == 0
    assert "you may not see acme/tenant and the quotas above" in fits.stdout


def test_without_any_right(plane: ControlPlane) -> None:
    kubeconfig = plane.user_kubeconfig("nobody-at-all")
    for words in (("tree",), ("top",), ("files",), ("who", "x"), ("check",)):
        done = hugetlb(kubeconfig, *words)
        assert done.returncode == 5
        assert "Traceback" not in done.stderr
    assert "hugetlb-quota-view" in hugetlb(kubeconfig, "tree").stderr


def test_runs_as_a_plugin_of_kubectl(plane: ControlPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{scripts}:{os.environ.get('PATH', '')}")
    done = plane.kubectl("hugetlb", "who", "acme/tenant", "-o", "json")
    assert json.loads(done.stdout)["quota"] == "acme/tenant"
    assert plane.kubectl("hugetlb", "who", "nothing", check=False).returncode == 3
    offered = plane.kubectl("__complete", "hugetlb", "who", "acme-").stdout
    assert offered.splitlines() == ["acme-db/db", "acme-web/web", ":4"]
