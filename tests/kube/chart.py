"""The shipped chart, rendered by the real helm and installed in a control plane without kubelets.

This module does not apply workloads and the objects about their pods, because nothing would run
these; `programs` starts the same commands as processes. It applies all other objects as shipped,
except that admission's Service points to a process on this host.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import yaml

from hugetlb_quota.controller.certificates import authority, stored
from hugetlb_quota.controller.certificates.state import Authorities, Serving, Trust
from hugetlb_quota.controller.webhooks.rules import with_rules
from tests.kube.api import ApiError, Object, Objects
from tests.kube.build import kubernetes_version
from tests.kube.control_plane import ControlPlane
from tests.kube.process import ProgramError

CHART: Final = Path(__file__).resolve().parents[2] / "charts" / "hugetlb-quota"
RELEASE: Final = "hugetlb-quota"
NAMESPACE: Final = "hugetlb-system"

WEBHOOKS: Final = "ValidatingWebhookConfiguration"
IMAGE: Final = {"repository": "registry.test/hugetlb-quota"}
SECRETS: Final = "v1/secrets"
CRD: Final = "CustomResourceDefinition"
NEEDS_KUBELET: Final = frozenset(
    {"Deployment", "DaemonSet", "Job", "Service", "PodDisruptionBudget", "NetworkPolicy"}
)


@dataclass(frozen=True)
class Container:
    """The container of one program, as in the chart."""

    program: str
    service_account: str
    command: tuple[str, ...]
    """Command and arguments; kubelet replaces `$(NAME)` by an environment variable."""
    fields: Mapping[str, str]
    """The field of the pod, such as "spec.nodeName", of each environment variable."""
    capabilities: frozenset[str]
    """The capabilities added after `drop: [ALL]`, without the prefix CAP_."""
    user: int
    group: int
    volumes: Mapping[str, Object]
    """The volume's source and `readOnly` by mount path, parents before children."""


@dataclass(frozen=True)
class Chart:
    """All objects of one rendering."""

    namespace: str
    objects: Objects

    def of_kind(self, kind: str) -> Objects:
        """All objects of a kind."""
        return [found for found in self.objects if found["kind"] == kind]

    @property
    def fullname(self) -> str:
        """The prefix of the objects' names, and the name of the webhook configuration."""
        (configuration,) = self.of_kind(WEBHOOKS)
        return str(configuration["metadata"]["name"])

    def container(self, program: str) -> Container:
        """Find the container of "admission", "controller", "agent" or "uninstall"."""
        kinds = ("Deployment", "DaemonSet", "Job")
        for workload in [found for kind in kinds for found in self.of_kind(kind)]:
            pod = workload["spec"]["template"]["spec"]
            for container in pod["containers"]:
                if container["name"] == program:
                    return _container(pod, container)
        raise LookupError(f"the chart has no container named {program}")


def render(
    helm: Path,
    *,
    namespace: str = NAMESPACE,
    release: str = RELEASE,
    values: Mapping[str, Any] | None = None,
    chart: Path = CHART,
) -> Chart:
    """Run `helm template` with `values`; a test image is the default.

    Raises ProgramError with helm's message if helm refuses the values.
    """
    command = [str(helm), "template", release, str(chart), f"--namespace={namespace}"]
    command += [f"--kube-version={kubernetes_version()}", "--values=-"]
    done = subprocess.run(
        command,
        input=json.dumps({"image": IMAGE, **(values or {})}),
        capture_output=True,
        text=True,
        timeout=60,
        # Do not use the user's helm plugins, repositories and cluster.
        env={"PATH": os.environ.get("PATH", ""), "HOME": "/nonexistent"},
    )
    if done.returncode:
        raise ProgramError(f"helm template: {done.stderr.strip()}")
    objects = [found for found in yaml.safe_load_all(done.stdout) if found]
    return Chart(namespace, objects)


def install(control_plane: ControlPlane, chart: Chart, *, certificates: bool = True) -> None:
    """Apply the namespace and all objects but the webhooks; wait until they are in force.

    `certificates`: fill the Secrets as the leading controller does; False if a controller runs.
    """
    api = control_plane.api
    if not api.list("v1/namespaces", fields=f"metadata.name={chart.namespace}"):
        control_plane.create_namespace(chart.namespace)
    for crd in chart.of_kind(CRD):
        api.apply(crd, manager="helm")
    for crd in chart.of_kind(CRD):
        _wait_served(control_plane, crd)
    for found in chart.objects:
        if found["kind"] not in NEEDS_KUBELET | {CRD, WEBHOOKS}:
            api.apply(found, manager="helm")
    api.apply(_service(control_plane, chart), manager="helm")
    if certificates:
        _make_certificates(control_plane, chart)
    for program in ("admission", "controller", "agent"):
        _wait_allowed(control_plane, chart, program)
    _wait_policies(control_plane, chart.namespace)


def register_webhooks(
    control_plane: ControlPlane, chart: Chart, address: str, *, complete: bool = True
) -> None:
    """Apply the webhook configuration, and wait until it is in force.

    `address`: scheme, host and port of admission, "https://127.0.0.1:8443"; another call can
    change it. `complete`: complete the configuration as the leading controller does; False if a
    controller runs.
    """
    api = control_plane.api
    for shipped in chart.of_kind(WEBHOOKS):
        api.apply(at_port(shipped, int(address.rpartition(":")[2])), manager="helm")
    if complete:
        complete_webhooks(control_plane, chart)
    _wait_webhooks(control_plane, chart.namespace)


def unregister_webhooks(control_plane: ControlPlane, chart: Chart) -> None:
    """Remove the webhook configuration, and wait until the API server calls no webhook of it."""
    for shipped in chart.of_kind(WEBHOOKS):
        control_plane.api.remove(shipped)
    _wait_webhooks(control_plane, chart.namespace)


def complete(control_plane: ControlPlane, chart: Chart) -> None:
    """Fill the Secrets and complete the webhooks of an installed chart, as the controller does."""
    _make_certificates(control_plane, chart)
    complete_webhooks(control_plane, chart)


def at_port(shipped: Object, port: int) -> Object:
    """Copy a webhook configuration, with another port of the Service."""
    changed: Object = json.loads(json.dumps(shipped))
    for webhook in changed["webhooks"]:
        webhook["clientConfig"]["service"]["port"] = port
    return changed


def complete_webhooks(control_plane: ControlPlane, chart: Chart) -> None:
    """Complete the webhook configuration (CA, paths and rules) with the controller's code."""
    api = control_plane.api
    resource = "admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    while True:
        raw = api.get(resource, chart.fullname)
        trust = Trust(
            (_authority(control_plane, chart).certificate,), serving(control_plane, chart).path
        )
        try:
            api.replace(resource, with_rules(stored.write_trust(raw, trust)))
            return
        except ApiError as error:
            if error.code != 409:  # Conflict: a controller wrote first
                raise


def serving(control_plane: ControlPlane, chart: Chart) -> Serving:
    """Admission's certificate, key and path, from its Secret."""
    name = f"{chart.fullname}-admission-serving"
    return stored.read_serving(control_plane.api.get(SECRETS, name, namespace=chart.namespace))


def _authority(control_plane: ControlPlane, chart: Chart) -> authority.Pair:
    name = f"{chart.fullname}-admission-ca"
    raw = control_plane.api.get(SECRETS, name, namespace=chart.namespace)
    pair = stored.read_authorities(raw).current
    assert pair is not None
    return pair


def _service(control_plane: ControlPlane, chart: Chart) -> Object:
    """Admission's Service with this host as external name, because no kube-proxy runs."""
    host = control_plane.address
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": chart.namespace, "name": f"{chart.fullname}-admission"},
        # An external name can't be an IPv6 address.
        "spec": {"type": "ExternalName", "externalName": "localhost" if ":" in host else host},
    }


def _make_certificates(control_plane: ControlPlane, chart: Chart) -> None:
    """Fill the Secrets as the controller does at first, unless they are filled."""
    api, now = control_plane.api, datetime.now(UTC)
    raw = {
        name: api.get(SECRETS, f"{chart.fullname}-admission-{name}", namespace=chart.namespace)
        for name in ("ca", "serving")
    }
    if stored.read_serving(raw["serving"]).pair is not None:
        return
    ca = authority.make_authority("tests", now, timedelta(days=365))
    host = f"{chart.fullname}-admission.{chart.namespace}.svc"
    pair = authority.issue(ca, [host], now, timedelta(days=90))
    kept = Authorities(current=ca, trusted_since=now)
    api.replace(SECRETS, stored.write_authorities(raw["ca"], kept))
    serving = Serving(pair=pair, path=uuid.uuid4().hex)
    api.replace(SECRETS, stored.write_serving(raw["serving"], serving))


def _container(pod: Object, container: Object) -> Container:
    variables = container.get("env", [])
    security = {**pod.get("securityContext", {}), **container["securityContext"]}
    sources = {each["name"]: each for each in pod.get("volumes", [])}
    mounts: Objects = container.get("volumeMounts", [])
    capabilities = container["securityContext"]["capabilities"]
    if capabilities["drop"] != ["ALL"]:
        raise LookupError(f"the container {container['name']} does not drop all capabilities")
    return Container(
        program=container["name"],
        service_account=pod["serviceAccountName"],
        command=(*container["command"], *container["args"]),
        fields={each["name"]: each["valueFrom"]["fieldRef"]["fieldPath"] for each in variables},
        capabilities=frozenset(capabilities.get("add", [])),
        user=security["runAsUser"],
        group=security["runAsGroup"],
        volumes={
            mount["mountPath"]: {**sources[mount["name"]], "readOnly": mount.get("readOnly", False)}
            for mount in sorted(mounts, key=lambda each: str(each["mountPath"]).count("/"))
        },
    )


def _wait_served(control_plane: ControlPlane, crd: Object) -> None:
    name, spec = crd["metadata"]["name"], crd["spec"]

    def established(seen: Object | None) -> bool:
        # The conditions are null for a moment after the creation.
        conditions = (seen or {}).get("status", {}).get("conditions") or []
        return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)

    control_plane.api.wait_for(
        f"apiextensions.k8s.io/v1/{CRD.lower()}s", name, established, what="Established"
    )
    resource = f"{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
    _retry(lambda: control_plane.api.list(resource) is not None, f"{resource} served")


def _wait_allowed(control_plane: ControlPlane, chart: Chart, program: str) -> None:
    """Wait until the authorizer, which watches, has seen the role bindings."""
    account = chart.container(program).service_account
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{chart.namespace}:{account}",
            "resourceAttributes": {
                "group": "hugetlb.dev",
                "resource": "hugetlbnodes" if program == "agent" else "hugetlbquotas",
                "verb": "list",
            },
        },
    }

    def allowed() -> bool:
        resource = "authorization.k8s.io/v1/subjectaccessreviews"
        return bool(control_plane.api.create(resource, review)["status"]["allowed"])

    _retry(allowed, f"the rights of the ServiceAccount {account}")


def _wait_webhooks(control_plane: ControlPlane, namespace: str) -> None:
    """Wait until the API server calls a webhook added now; it sees all changes in order."""
    probe = f"probe-{uuid.uuid4().hex[:8]}"
    webhook = {
        "name": f"{probe}.hugetlb.test",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "clientConfig": {"url": "https://127.0.0.1:1/"},  # nobody listens, so a call fails
        "rules": [_probe_rule()],
        "matchConditions": [{"name": "probe", "expression": f"object.metadata.name == '{probe}'"}],
    }
    configuration = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": WEBHOOKS,
        "metadata": {"name": probe},
        "webhooks": [webhook],
    }
    _wait_refused(control_plane, namespace, probe, [configuration])


def _wait_policies(control_plane: ControlPlane, namespace: str) -> None:
    """Wait until a later policy refuses; see `_wait_webhooks`."""
    probe = f"probe-{uuid.uuid4().hex[:8]}"
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": probe},
        "spec": {
            "matchConstraints": {"resourceRules": [_probe_rule()]},
            "validations": [
                {"expression": f"object.metadata.name != '{probe}'", "message": probe},
            ],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": probe},
        "spec": {"policyName": probe, "validationActions": ["Deny"]},
    }
    _wait_refused(control_plane, namespace, probe, [policy, binding])


def _probe_rule() -> Object:
    return {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "resources": ["configmaps"],
        "operations": ["CREATE"],
    }


def _wait_refused(
    control_plane: ControlPlane, namespace: str, probe: str, objects: Objects
) -> None:
    api = control_plane.api
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": probe}}

    def refused() -> bool:
        try:
            api.create("v1/configmaps", config_map, namespace=namespace, dry_run=True)
        except ApiError as error:
            return probe in error.message
        return False

    for found in objects:
        api.apply(found)
    try:
        _retry(refused, f"{objects[0]['kind']} in force")
    finally:
        for found in objects:
            api.remove(found)


def _retry(done: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            if done():
                return
        except ApiError as error:
            # 404: not served yet. 429: the storage is not initialized yet.
            if error.code not in {404, 429}:
                raise
        if time.monotonic() >= deadline:
            raise TimeoutError(f"waited {timeout:.0f} s for: {what}")
        time.sleep(0.05)
