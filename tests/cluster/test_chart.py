"""The objects of the chart: rights, CRDs, commands; and the values that the chart refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube import chart
from tests.kube.api import Object
from tests.kube.control_plane import ControlPlane
from tests.kube.process import ProgramError
from tests.waiting import eventually

READ = {"get", "list", "watch"}
FOLLOW = {"list", "watch"}
CRDS = Path(__file__).resolve().parents[2] / "crds"

Rights = dict[str, set[str]]


@pytest.fixture(scope="module")
def rendered(helm: Path) -> chart.Chart:
    return chart.render(helm)


def test_the_programs_have_exactly_these_rights(rendered: chart.Chart) -> None:
    """Another right needs a deliberate change of this table."""
    assert rights_of(rendered, "hugetlb-quota-admission") == {
        "hugetlb.dev/hugetlbquotas": READ,
        "hugetlb.dev/hugetlbquotas/status": {"update"},
        "namespaces": READ,
        "events.k8s.io/events": {"get", "create", "update"},
        "configmaps in hugetlb-system named hugetlb-quota-changes": {"get", "update"},
        "secrets in hugetlb-system named hugetlb-quota-admission-serving": {"list", "watch"},
    }
    assert rights_of(rendered, "hugetlb-quota-controller") == {
        "hugetlb.dev/hugetlbquotas": READ | {"patch"},
        "hugetlb.dev/hugetlbquotas/status": {"update"},
        "hugetlb.dev/hugetlbnodes": READ | {"update"},
        "pods": READ,
        "nodes": FOLLOW,
        "namespaces": FOLLOW,
        "apiextensions.k8s.io/customresourcedefinitions": FOLLOW,
        "events.k8s.io/events": {"create"},
        "coordination.k8s.io/leases in hugetlb-system": {"create"},
        "coordination.k8s.io/leases in hugetlb-system named hugetlb-quota-controller": {
            "get",
            "update",
        },
        "admissionregistration.k8s.io/validatingwebhookconfigurations named hugetlb-quota": READ
        | {"update"},
        "secrets in hugetlb-system named"
        " hugetlb-quota-admission-serving,hugetlb-quota-admission-ca": READ | {"update"},
        "services in hugetlb-system named hugetlb-quota-admission": {"get"},
    }
    assert rights_of(rendered, "hugetlb-quota-uninstall") == {
        "hugetlb.dev/hugetlbquotas": {"list", "update"},
        "coordination.k8s.io/leases in hugetlb-system named hugetlb-quota-controller": {
            "get",
            "update",
        },
    }
    assert rights_of(rendered, "hugetlb-quota-agent") == {
        "hugetlb.dev/hugetlbnodes": READ | {"create"},
        "hugetlb.dev/hugetlbnodes/status": {"update"},
        "pods": FOLLOW,
        "nodes": {"get"},
        "events.k8s.io/events": {"create"},
    }


def test_tenants_read_quotas_and_cannot_write_them(
    control_plane: ControlPlane, namespace: str, rendered: chart.Chart
) -> None:
    """The default role `admin`, which tenants have in their namespace, may only view quotas."""
    chart.install(control_plane, rendered)
    users = {}
    for role in ("view", "admin", "hugetlb-quota-manager"):
        users[role] = control_plane.user_kubeconfig(role)
        control_plane.kubectl(
            "create",
            "rolebinding",
            role,
            f"--clusterrole={role}",
            f"--user={role}",
            "-n",
            namespace,
        )

    def may(verb: str, user: Path) -> bool:
        answer = control_plane.kubectl(
            "auth", "can-i", verb, "hugetlbquotas.hugetlb.dev", "-n", namespace,
            check=False, kubeconfig=user,
        )  # fmt: skip
        return answer.stdout.strip() == "yes"

    eventually(lambda: may("list", users["view"]))
    eventually(lambda: may("list", users["admin"]))
    eventually(lambda: may("create", users["hugetlb-quota-manager"]))
    writes = ("create", "update", "patch", "delete")
    assert [verb for verb in writes if may(verb, users["admin"])] == []


def test_emits_the_crds_of_the_source_tree(rendered: chart.Chart) -> None:
    emitted = {crd["metadata"]["name"]: crd for crd in rendered.of_kind(chart.CRD)}
    source = {crd["metadata"]["name"]: crd for crd in map(_load, sorted(CRDS.glob("*.yaml")))}
    assert set(emitted) == set(source) != set()
    for name, crd in emitted.items():
        assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert crd == source[name]


def test_can_render_without_crds(helm: Path) -> None:
    assert not chart.render(helm, values={"crds": {"install": False}}).of_kind(chart.CRD)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"admission": {"failurePolicy": "Maybe"}}, "/admission/failurePolicy"),
        ({"admission": {"timeoutSeconds": 31}}, "/admission/timeoutSeconds"),
        ({"admission": {"replicas": 0}}, "/admission/replicas"),
        ({"admission": {"tls": {"caBundle": "LS0tLS1CRUdJTg=="}}}, "/admission/tls/caBundle"),
        ({"agent": {"mirrorUnknown": "yes"}}, "/agent/mirrorUnknown"),
        ({"controler": {"replicas": 1}}, "'controler' not allowed"),
        ({"agent": {"tolerations": [{"ky": "a"}]}}, "'ky' not allowed"),
        ({"controller": {"extraEnv": [{"name": "A", "vale": "b"}]}}, "'vale' not allowed"),
        ({"admission": {"affinity": {"nodeAfinity": {}}}}, "'nodeAfinity' not allowed"),
        ({"agent": {"updateStrategy": {"rollingUpdate": {"max": 1}}}}, "'max' not allowed"),
        (
            {"admission": {"namespaceSelector": {"matchExpressions": [{"key": "a"}]}}},
            "missing property 'operator'",
        ),
        ({"bindAddress": "[::]"}, "/bindAddress"),
        ({"startupSeconds": 0}, "/startupSeconds"),
        ({"log": {"format": "xml"}}, "/log/format"),
        ({"admission": {"requireQuota": "yes"}}, "/admission/requireQuota"),
        ({"requestTimeoutSeconds": 0}, "/requestTimeoutSeconds"),
        ({"priorityClassQuota": {"pods": "many"}}, "/priorityClassQuota/pods"),
        ({"admission": {"tls": {"existingSecret": "mine"}}}, "admission.tls.caBundle must hold"),
        ({"image": {}}, "image.repository is not set, and there is no public image. Build one"),
        ({"image": {"repository": "a:1"}}, "/image/repository"),
        ({"image": {"repository": "a", "digest": "sha256:1"}}, "/image/digest"),
    ],
)
def test_refuses_bad_values(values: dict[str, Any], why: str, helm: Path) -> None:
    with pytest.raises(ProgramError, match=why):
        chart.render(helm, values=values)


VERSION = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())["appVersion"]
DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("image", "registry", "expected"),
    [
        ({"repository": "a/b"}, "", f"a/b:{VERSION}"),
        ({"repository": "a/b", "tag": "1"}, "r.test:5000", "r.test:5000/a/b:1"),
        ({"repository": "r.test:5000/b", "digest": DIGEST}, "", f"r.test:5000/b@{DIGEST}"),
    ],
)
def test_all_programs_use_the_named_image(
    image: dict[str, str], registry: str, expected: str, helm: Path
) -> None:
    values = {"image": image, "global": {"imageRegistry": registry}}
    rendered = chart.render(helm, values=values)
    images = {
        container["image"]
        for workload in rendered.of_kind("Deployment") + rendered.of_kind("DaemonSet")
        for container in workload["spec"]["template"]["spec"]["containers"]
    }
    assert images == {expected}


def workload(rendered: chart.Chart, program: str) -> Object:
    found = rendered.of_kind("Deployment") + rendered.of_kind("DaemonSet")
    (one,) = [each for each in found if each["metadata"]["name"] == f"hugetlb-quota-{program}"]
    return one


def spread(rendered: chart.Chart, program: str) -> Any:
    return workload(rendered, program)["spec"]["template"]["spec"].get("topologySpreadConstraints")


def test_replicas_spread_as_configured(helm: Path) -> None:
    usual = chart.render(helm)
    own = workload(usual, "controller")["spec"]["selector"]
    assert [each["labelSelector"] for each in spread(usual, "controller")] == [own, own]
    rack = {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
    named = {"labelSelector": {"matchLabels": {"a": "b"}}}
    values = {
        "admission": {"topologySpreadConstraints": []},
        "controller": {"topologySpreadConstraints": [rack, {**rack, **named}]},
    }
    changed = chart.render(helm, values=values)
    assert spread(changed, "admission") is None
    expected = [{**rack, "labelSelector": own}, {**rack, **named}]
    assert spread(changed, "controller") == expected


@pytest.mark.parametrize("program", ["admission", "controller", "agent"])
def test_each_program_gets_the_configured_additions(program: str, helm: Path) -> None:
    added = {
        "podLabels": {"team": "a"},
        "podAnnotations": {"note": "b"},
        "serviceAccountAnnotations": {"role": "c"},
        "extraArgs": ["--log-level=debug"],
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
    }
    rendered = chart.render(helm, values={program: added})
    template = workload(rendered, program)["spec"]["template"]
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["annotations"]["note"] == "b"
    (container,) = template["spec"]["containers"]
    assert container["args"][-1] == "--log-level=debug"
    assert {"name": "TZ", "value": "UTC"} in container["env"]
    (account,) = [
        each
        for each in rendered.of_kind("ServiceAccount")
        if each["metadata"]["name"] == f"hugetlb-quota-{program}"
    ]
    assert account["metadata"]["annotations"] == {"role": "c"}


def test_the_values_say_where_programs_run(helm: Path) -> None:
    values = {
        "fixedUser": False,
        "admission": {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"},
        "agent": {"cgroupRoot": "kubelet", "updateStrategy": {"type": "OnDelete"}},
    }
    rendered = chart.render(helm, values=values)
    spec = workload(rendered, "admission")["spec"]["template"]["spec"]
    assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    assert "runAsUser" not in spec["securityContext"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert "--cgroup-root=kubelet" in rendered.container("agent").command
    assert workload(rendered, "agent")["spec"]["updateStrategy"]["type"] == "OnDelete"


def test_rendering_is_repeatable_and_has_no_key(helm: Path, rendered: chart.Chart) -> None:
    assert chart.render(helm).objects == chart.render(helm).objects
    assert len(rendered.of_kind("Secret")) == 2
    assert not [each for each in rendered.of_kind("Secret") if each.keys() & {"data", "stringData"}]
    (configuration,) = rendered.of_kind(chart.WEBHOOKS)
    clients = [each["clientConfig"] for each in configuration["webhooks"]]
    assert not [each for each in clients if "caBundle" in each or "path" in each["service"]]


def test_the_webhook_covers_all_namespaces_except_spared_ones(helm: Path) -> None:
    def selectors(**admission: Any) -> list[Object]:
        (found,) = chart.render(helm, values={"admission": admission}).of_kind(chart.WEBHOOKS)
        return [each.get("namespaceSelector", {}) for each in found["webhooks"]]

    def spared(*names: str) -> Object:
        return {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": [*names]}

    usual: Object = {"matchExpressions": [spared("kube-system", chart.NAMESPACE)]}
    # Admission is called for the quotas of all namespaces.
    assert selectors() == [usual, usual, {}]
    assert selectors(sparedNamespaces=[], spareOwnNamespace=False) == [{}, {}, {}]
    chosen: Object = {"matchLabels": {"a": "b"}}
    both = chosen | {"matchExpressions": [spared("kube-system", "cni")]}
    several = selectors(
        namespaceSelector=chosen, sparedNamespaces=["kube-system", "cni"], spareOwnNamespace=False
    )
    assert several == [both, both, chosen]


def test_a_given_certificate_is_used(helm: Path) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
    values = {"admission": {"tls": {"existingSecret": "mine", "caBundle": pem}}}
    own = chart.render(helm, values=values)
    (serving,) = own.of_kind("Secret")
    assert serving["metadata"]["name"] == "hugetlb-quota-admission-serving"
    assert "--tls-cert=/tls/tls.crt" in own.container("admission").command
    assert own.container("admission").volumes["/tls"]["secret"]["secretName"] == "mine"
    assert not [w for w in own.container("controller").command if "authority" in w]
    (configuration,) = own.of_kind(chart.WEBHOOKS)
    bundles = {webhook["clientConfig"]["caBundle"] for webhook in configuration["webhooks"]}
    assert bundles == {
        "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1BQT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo="
    }


def test_cert_manager_can_make_the_certificates(helm: Path) -> None:
    rendered = chart.render(helm, values={"admission": {"tls": {"certManager": {"enabled": True}}}})
    by_name = {each["metadata"]["name"]: each["spec"] for each in rendered.of_kind("Certificate")}
    serving = by_name["hugetlb-quota-admission"]
    assert serving["dnsNames"] == ["hugetlb-quota-admission.hugetlb-system.svc"]
    assert by_name["hugetlb-quota-admission-ca"]["isCA"] is True
    assert by_name["hugetlb-quota-admission-ca"]["privateKey"]["rotationPolicy"] == "Never"
    mounted = rendered.container("admission").volumes["/tls"]["secret"]["secretName"]
    assert mounted == serving["secretName"]
    (configuration,) = rendered.of_kind(chart.WEBHOOKS)
    annotations = configuration["metadata"]["annotations"]
    inject = {"cert-manager.io/inject-ca-from": "hugetlb-system/hugetlb-quota-admission"}
    assert annotations == inject


@pytest.mark.parametrize(
    ("values", "budget"), [({}, 300), ({"startupSeconds": 121}, 122)], ids=["default", "configured"]
)
def test_every_program_may_start_slowly(values: dict[str, Any], budget: int, helm: Path) -> None:
    rendered = chart.render(helm, values=values)
    workloads = rendered.of_kind("Deployment") + rendered.of_kind("DaemonSet")
    assert len(workloads) == 3
    for workload in workloads:
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        probe = container["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] == budget
        assert probe["httpGet"]["path"] == "/healthz"


def test_makes_a_quota_for_critical_pods_only_on_request(helm: Path, rendered: chart.Chart) -> None:
    assert not rendered.of_kind("ResourceQuota")
    changed = chart.render(helm, values={"priorityClassQuota": {"create": True, "pods": 40}})
    (quota,) = changed.of_kind("ResourceQuota")
    assert quota["metadata"]["namespace"] == chart.NAMESPACE
    assert quota["spec"]["hard"] == {"pods": "40"}


def test_all_programs_listen_at_the_configured_address(helm: Path, rendered: chart.Chart) -> None:
    changed = chart.render(helm, values={"bindAddress": "fd00::1"})
    for program in ("admission", "controller", "agent"):
        assert "--bind=*" in rendered.container(program).command
        assert "--bind=fd00::1" in changed.container(program).command


def test_all_programs_log_as_configured_and_admission_may_require_quotas(
    helm: Path, rendered: chart.Chart
) -> None:
    values = {"log": {"level": "debug", "format": "json"}, "admission": {"requireQuota": True}}
    changed = chart.render(helm, values=values)
    for program in ("admission", "controller", "agent"):
        assert {"--log-level=info", "--log-format=text"} <= set(rendered.container(program).command)
        assert {"--log-level=debug", "--log-format=json"} <= set(changed.container(program).command)
    assert "--require-quota" in changed.container("admission").command
    assert "--require-quota" not in rendered.container("admission").command


def test_mirroring_can_be_turned_off(helm: Path, rendered: chart.Chart) -> None:
    changed = chart.render(helm, values={"agent": {"mirrorUnknown": False}})
    assert "--no-mirror-unknown" in changed.container("agent").command
    assert "--no-mirror-unknown" not in rendered.container("agent").command


def test_a_missing_reclaim_path_is_not_created(helm: Path) -> None:
    rendered = chart.render(helm, values={"agent": {"reclaim": True, "reclaimPaths": ["/typo"]}})
    (daemon_set,) = rendered.of_kind("DaemonSet")
    volumes = daemon_set["spec"]["template"]["spec"]["volumes"]
    assert {"path": "/typo", "type": "Directory"} in [each.get("hostPath") for each in volumes]


def test_the_agents_annotations_for_prometheus_name_its_port(helm: Path) -> None:
    def annotations(**agent: Any) -> dict[str, str]:
        (daemon_set,) = chart.render(helm, values={"agent": agent}).of_kind("DaemonSet")
        found: dict[str, str] = daemon_set["spec"]["template"]["metadata"].get("annotations", {})
        return found

    assert annotations(healthPort=9000) == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "9000",
        "prometheus.io/path": "/metrics",
    }
    assert annotations(metrics={"annotations": False}) == {}


def test_no_container_is_privileged_and_only_the_agent_has_capabilities(
    rendered: chart.Chart, helm: Path
) -> None:
    for program in ("admission", "controller"):
        assert rendered.container(program).capabilities == frozenset()
    reading = {"BPF", "PERFMON", "SETUID", "SETGID", "SETPCAP", "KILL"}
    assert rendered.container("agent").capabilities == reading
    changed = chart.render(helm, values={"agent": {"reclaim": True}})
    assert changed.container("agent").capabilities == reading | {"LEASE", "DAC_OVERRIDE", "FOWNER"}
    for workload in rendered.of_kind("Deployment") + rendered.of_kind("DaemonSet"):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        security = container["securityContext"]
        assert not security.get("privileged")
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"]["memory"]


@pytest.fixture
def release(
    control_plane: ControlPlane, unique: Callable[[str], str], tmp_path: Path
) -> Iterator[Callable[..., str]]:
    """Run helm on a release with webhooks that select no namespace."""
    name = unique("release")
    quiet = tmp_path / "values.yaml"
    selector = {"matchLabels": {"release": name}}
    values = {"crds": {"install": False}, "admission": {"namespaceSelector": selector}}
    quiet.write_text(yaml.safe_dump(values | {"image": chart.IMAGE}))

    def run(*args: str) -> str:
        return control_plane.helm(args[0], name, *args[1:], f"--namespace={name}").stdout

    def install_or_upgrade(*args: str) -> str:
        return run("upgrade", str(chart.CHART), "--install", "--create-namespace",
                   f"--values={quiet}", *args)  # fmt: skip

    yield install_or_upgrade
    run("uninstall", "--no-hooks")  # without a kubelet, the Job never runs
    assert name not in control_plane.kubectl("get", "clusterrole,clusterrolebinding").stdout
    control_plane.api.delete("v1/namespaces", name)


def test_an_upgrade_to_other_values_succeeds(release: Callable[..., str]) -> None:
    assert "Create a first quota" in release()
    notes = release("--set=admission.failurePolicy=Ignore")
    assert "WARNING: admission.failurePolicy is Ignore" in notes


def rights_of(rendered: chart.Chart, account: str) -> Rights:
    """Collect the verbs of a ServiceAccount by resource, over all bindings."""
    rights: Rights = {}
    for binding in rendered.of_kind("ClusterRoleBinding") + rendered.of_kind("RoleBinding"):
        if account not in {subject["name"] for subject in binding["subjects"]}:
            continue
        (role,) = [
            found
            for found in rendered.of_kind(binding["roleRef"]["kind"])
            if found["metadata"]["name"] == binding["roleRef"]["name"]
        ]
        where = (
            f" in {binding['metadata']['namespace']}" if binding["kind"] == "RoleBinding" else ""
        )
        for rule in role["rules"]:
            named = f" named {','.join(rule['resourceNames'])}" if "resourceNames" in rule else ""
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    key = f"{group}/{resource}".removeprefix("/") + where + named
                    rights.setdefault(key, set()).update(rule["verbs"])
    return rights


def _load(path: Path) -> Object:
    loaded: Object = yaml.safe_load(path.read_text())
    return loaded
