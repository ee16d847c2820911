"""The webhooks' certificates on a real API server: made, rotated under load, and kept."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import pytest
import yaml

from hugetlb_quota import quantity
from hugetlb_quota.controller.certificates import authority, stored
from hugetlb_quota.controller.certificates.state import Trust
from hugetlb_quota.controller.webhooks.rules import with_rules
from tests.kube import chart as charts
from tests.kube.api import Api, ApiError, Object
from tests.kube.control_plane import ControlPlane
from tests.kube.programs import Program, Programs
from tests.kube.quotas import quota_object
from tests.waiting import eventually

WEBHOOKS = "admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
QUOTAS = "hugetlb.dev/v1alpha1/hugetlbquotas"
QUICK = ("--certificate-overlap=3",)
"""A rotation takes twice the overlap of 3 s."""
NAME = "hugetlb-quota"
OF = f"--set=image.repository={charts.IMAGE['repository']}"


@pytest.fixture
def plane(assets: Path) -> Iterator[ControlPlane]:
    """A control plane for this test alone."""
    with ControlPlane(assets) as running:
        yield running


@pytest.fixture
def chart(plane: ControlPlane) -> charts.Chart:
    rendered = charts.render(plane.assets / "helm")
    charts.install(plane, rendered, certificates=False)
    return rendered


@pytest.fixture
def programs(plane: ControlPlane, chart: charts.Chart) -> Iterator[Programs]:
    started = Programs(plane, chart)
    yield started
    started.stop()


def start(plane: ControlPlane, chart: charts.Chart, programs: Programs, *extra: str) -> Program:
    """Start admission and the controller; return the controller."""
    admission = programs.start_admission()
    charts.register_webhooks(plane, chart, admission.address, complete=False)
    controller = programs.start_controller(extra=extra)
    admission.wait_ready()
    return controller


def quota(namespace: str) -> Object:
    return quota_object(namespace, "q", {"hard": {"hugepages-2Mi": "4Mi"}})


def pod(namespace: str, amount: str) -> Object:
    limits = {"hugepages-2Mi": amount, "cpu": "1m", "memory": "1Mi"}
    container = {"name": "c", "image": "none", "resources": {"limits": limits}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"p-{uuid.uuid4().hex[:8]}", "namespace": namespace},
        "spec": {"containers": [container], "schedulerName": "nobody"},
    }


def trusted(api: Api) -> Trust:
    """The trust of the webhook configuration."""
    return stored.read_trust(api.get(WEBHOOKS, NAME))


def calls_admission(api: Api) -> bool:
    """Whether the API server calls admission for pods."""
    configuration = api.get(WEBHOOKS, NAME)
    rules = {each["name"]: each.get("rules") for each in configuration["webhooks"]}
    return bool(rules["pods.hugetlb.dev"] and rules["relabelled.pods.hugetlb.dev"])


def refusal(api: Api, body: Object) -> str:
    """The refusal of a pod; "" if the pod is admitted."""
    try:
        api.create("v1/pods", body)
    except ApiError as error:
        return error.message
    return ""


def make_quota(api: Api, namespace: str) -> None:
    """Make a quota, and wait until its condition says that it is in force."""

    def made() -> bool:
        try:
            api.create(QUOTAS, quota(namespace))
        except ApiError as error:
            return error.code == 409
        return True

    eventually(made, timeout=60)
    eventually(lambda: api.get(QUOTAS, "q", namespace=namespace).get("status"), timeout=60)


class Stream:
    """Creates pods without a pause. A quota must refuse each by name; `others`: other answers."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api, self.namespace = api, namespace
        self.answered = 0
        self.others: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            message = refusal(self.api, pod(self.namespace, "1Gi"))
            if "has room for" in message or "has no room" in message:
                self.answered += 1
            else:
                self.others.append(message or "it was let through")


class Passing(Stream):
    """Creates pods without a pause, counts the pods that pass, and measures how long they pass."""

    def __init__(self, api: Api, namespace: str) -> None:
        super().__init__(api, namespace)
        self.passed, self.refused_since = 0, 0
        self._first = self._last = 0.0

    @property
    def seconds(self) -> float:
        """The time from the last refusal before a pod passed to the next refusal."""
        return self._last - self._first if self.passed else 0.0

    def _run(self) -> None:
        while not self._stop.is_set():
            if refusal(self.api, pod(self.namespace, "6Mi")):
                if not self.passed:
                    self._first = time.monotonic()
                elif not self.refused_since:
                    self._last = time.monotonic()
                self.refused_since += 1
            else:
                self.passed, self.refused_since = self.passed + 1, 0


@pytest.mark.timeout(300)
def test_rotations_under_load_fail_no_admission(
    plane: ControlPlane, chart: charts.Chart, programs: Programs
) -> None:
    controller = start(plane, chart, programs, *QUICK)
    plane.create_namespace("load")
    make_quota(plane.api, "load")
    first, seen = trusted(plane.api), list[Trust]()

    def rotate() -> None:
        annotations = {stored.ROTATE: "now"}
        name = f"{NAME}-admission-ca"
        patch: Object = {"metadata": {"annotations": annotations}}
        plane.api.patch("v1/secrets", name, patch, namespace=charts.NAMESPACE)

    def at_rest_with_another() -> bool:
        seen.append(trusted(plane.api))
        return len(seen[-1].bundle) == 1 and seen[-1].bundle != first.bundle

    with Stream(plane.api, "load") as stream:
        rotate()
        eventually(at_rest_with_another, timeout=60)
        first = seen[-1]
        rotate()
        eventually(lambda: len(trusted(plane.api).bundle) == 2)
        # The leader is killed in the middle, and continues after its restart.
        controller.kill9()
        programs.start_controller(identity=controller.identity, extra=QUICK)
        eventually(at_rest_with_another, timeout=120)
    assert stream.others == []
    assert stream.answered > 50
    assert {len(each.bundle) for each in seen} == {1, 2}
    assert len({each.path for each in seen}) == 3


@pytest.mark.timeout(300)
def test_the_webhook_has_rules_after_the_first_quota_and_an_answer_of_admission(
    plane: ControlPlane, chart: charts.Chart, programs: Programs
) -> None:
    api = plane.api
    for name in ("early", "team"):
        plane.create_namespace(name)
    # No program runs, as after a failed pull of the image: pods pass, and quotas do not.
    charts.register_webhooks(plane, chart, "https://127.0.0.1:1", complete=False)
    assert refusal(api, pod("early", "1Gi")) == ""
    with pytest.raises(ApiError, match="failed calling webhook"):
        api.create(QUOTAS, quota("team"))
    controller = start(plane, chart, programs)
    assert not calls_admission(api)
    assert refusal(api, pod("early", "1Gi")) == ""
    make_quota(api, "team")
    # The condition says that the quota is in force: from now on no pod passes.
    assert calls_admission(api)
    assert "has room for" in refusal(api, pod("team", "1Gi"))
    assert refusal(api, pod("team", "2Mi")) == ""
    # Admission ends: pods are refused, and stay refused.
    programs.running[0].stop()
    assert "failed calling webhook" in refusal(api, pod("team", "2Mi"))
    assert calls_admission(api)
    assert "Traceback" not in controller.log()


@pytest.mark.timeout(300)
def test_applying_the_manifests_again_changes_nothing(
    plane: ControlPlane, chart: charts.Chart, programs: Programs
) -> None:
    """GitOps tools apply at each sync: by kubectl apply, or by server-side apply."""
    start(plane, chart, programs)
    plane.create_namespace("load")
    make_quota(plane.api, "load")
    port = programs.running[0].address.rpartition(":")[2]
    (shipped,) = [charts.at_port(each, int(port)) for each in chart.of_kind(charts.WEBHOOKS)]
    secrets = chart.of_kind("Secret")
    manifest = yaml.safe_dump_all([shipped, *secrets])
    before = state(plane.api, secrets)
    ways = (["apply"], ["apply", "--server-side", "--field-manager=gitops", "--force-conflicts"])
    with Stream(plane.api, "load") as stream:
        for way in ways:
            for _ in range(2):
                plane.kubectl(*way, "-f", "-", input=manifest)
                assert state(plane.api, secrets) == before, way
                time.sleep(0.5)
        # If somebody overwrites the fields, the leader restores them.
        plane.kubectl("replace", "-f", "-", input=yaml.safe_dump(shipped))
        eventually(lambda: state(plane.api, secrets) == before)
    wrong = [each for each in stream.others if "let through" not in each]
    assert wrong == []


@pytest.mark.timeout(300)
def test_a_pod_that_passes_while_the_configuration_is_replaced_is_counted(
    plane: ControlPlane, chart: charts.Chart, programs: Programs
) -> None:
    """`kubectl replace` removes the rules; the test prints for how long pods pass."""
    api = plane.api
    controller = start(plane, chart, programs)
    for namespace in ("load", "other"):
        plane.create_namespace(namespace)
    make_quota(api, "load")
    eventually(lambda: "has room for" in refusal(api, pod("load", "6Mi")))
    port = programs.running[0].address.rpartition(":")[2]
    (shipped,) = [charts.at_port(each, int(port)) for each in chart.of_kind(charts.WEBHOOKS)]
    bare = api.get(WEBHOOKS, NAME)["metadata"]["generation"]
    with Passing(api, "load") as passing:
        plane.kubectl("replace", "-f", "-", input=yaml.safe_dump(shipped))
        eventually(
            lambda: (
                api.get(WEBHOOKS, NAME)["metadata"]["generation"] > bare and calls_admission(api)
            )
        )
        eventually(lambda: passing.refused_since >= 20)
    print(f"\n{passing.passed} pods passed by in {passing.seconds * 1000:.0f} ms")

    def used() -> str:
        status = api.get(QUOTAS, "q", namespace="load")["status"]
        return str((status.get("used") or {}).get("hugepages-2Mi", "0"))

    eventually(lambda: quantity.parse(used()) == passing.passed * 6 << 20, timeout=60)
    eventually(lambda: "were put back" in controller.log())
    events = api.list("events.k8s.io/v1/events", namespace="default")
    (event,) = [each for each in events if each["reason"] == "RulesTakenAway"]
    assert event["regarding"]["name"] == NAME
    # The condition of the next new quota becomes True only after the rules are in force again.
    make_quota(api, "other")
    assert "has room for" in refusal(api, pod("other", "1Gi"))


def state(api: Api, secrets: list[Object]) -> object:
    """All fields that the leader has set in the chart's objects."""
    webhooks = api.get(WEBHOOKS, NAME)["webhooks"]
    data = [
        api.get("v1/secrets", each["metadata"]["name"], namespace=charts.NAMESPACE)["data"]
        for each in secrets
    ]
    return [(each["name"], each["clientConfig"], each.get("rules")) for each in webhooks], data


def test_only_the_controller_may_read_the_ca(control_plane: ControlPlane) -> None:
    charts.install(control_plane, charts.render(control_plane.assets / "helm"))

    def may(program: str, verb: str, what: str) -> bool:
        account = f"system:serviceaccount:{charts.NAMESPACE}:{NAME}-{program}"
        answer = control_plane.kubectl(
            "auth", "can-i", verb, what, f"--as={account}", "-n", charts.NAMESPACE, check=False
        )
        return answer.stdout.strip() == "yes"

    eventually(lambda: may("controller", "update", f"secrets/{NAME}-admission-ca"))
    for program in ("admission", "agent"):
        assert not may(program, "get", f"secrets/{NAME}-admission-ca")
        assert not may(program, "update", f"secrets/{NAME}-admission-serving")
    assert not may("controller", "get", "secrets/another")
    assert not may("controller", "update", "validatingwebhookconfigurations/another")


Helm = Callable[..., str]


@pytest.fixture
def helm(plane: ControlPlane) -> Helm:
    return lambda *words: plane.helm(*words, f"--namespace={charts.NAMESPACE}").stdout


def legacy_chart(folder: Path, chart: charts.Chart, ca: authority.Pair) -> Path:
    """Write an old chart that made certificates itself: the manifest has CA, path and rules."""
    (configuration,) = chart.of_kind(charts.WEBHOOKS)
    trust = Trust((ca.certificate,), "old")
    full = with_rules(stored.write_trust(configuration, trust))
    meta = {"namespace": charts.NAMESPACE, "name": f"{NAME}-admission-path"}
    path = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"path": "old"}}
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("{apiVersion: v2, name: hugetlb-quota, version: 0.0.9}")
    (folder / "templates" / "all.yaml").write_text(yaml.safe_dump_all([full, path]))
    return folder


@pytest.mark.timeout(300)
def test_an_upgrade_from_a_chart_that_made_certificates_fails_no_request(
    plane: ControlPlane, chart: charts.Chart, programs: Programs, helm: Helm, tmp_path: Path
) -> None:
    api = plane.api
    ca = authority.make_authority("old", datetime.now(UTC), timedelta(days=3650))
    folder = tmp_path / "legacy"
    helm("install", NAME, str(legacy_chart(folder, chart, ca)), "--take-ownership")
    for _ in range(2):  # the second upgrade is from this chart
        helm("upgrade", NAME, str(charts.CHART), OF, "--take-ownership", "--force-conflicts")
        assert trusted(api) == Trust((ca.certificate,), "old")
        assert calls_admission(api)
    # The Service comes from the chart now, but no program here routes its address.
    charts.install(plane, chart, certificates=False)
    controller = programs.start_controller()
    eventually(lambda: len(trusted(api).bundle) == 2)
    assert ca.certificate in trusted(api).bundle
    assert trusted(api).path == "old"
    assert charts.serving(plane, chart).path == "old"
    # The old certificate serves until every API server has read the new CA.
    assert charts.serving(plane, chart).pair is None
    eventually(lambda: charts.serving(plane, chart).pair is not None, timeout=60)
    assert ca.certificate in trusted(api).bundle
    helm("upgrade", NAME, str(charts.CHART), OF, "--force-conflicts")
    assert len(trusted(api).bundle) == 2
    assert "Traceback" not in controller.log()


def test_helm_does_not_manage_the_leaders_fields(
    plane: ControlPlane, chart: charts.Chart, programs: Programs, helm: Helm
) -> None:
    helm("install", NAME, str(charts.CHART), OF, "--take-ownership", "--force-conflicts")
    charts.install(plane, chart, certificates=False)
    programs.start_controller()
    eventually(lambda: charts.serving(plane, chart).pair is not None, timeout=60)
    before = trusted(plane.api)
    for _ in range(2):
        helm("upgrade", NAME, str(charts.CHART), OF)
        assert trusted(plane.api) == before
    manifest = helm("get", "manifest", NAME)
    assert "caBundle" not in manifest
    assert "PRIVATE" not in manifest
