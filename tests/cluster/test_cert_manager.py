"""cert-manager makes the webhooks' certificates (`admission.tls.certManager.enabled`).

Optional: this test runs only if CERT_MANAGER names a directory with the programs `controller` and
`cainjector` of cert-manager, and with its CRDs in `crds/`. docs/compatibility.md says how the
directory was made. No kubelet runs, so the test writes the Secret to admission's files itself.
"""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.chaos.faults import port_of
from tests.cluster.test_certificates import (
    WEBHOOKS,
    Stream,
    make_quota,
    pod,
    refusal,
)
from tests.kube import chart as charts
from tests.kube.api import Api, ApiError, Object
from tests.kube.control_plane import ControlPlane
from tests.kube.process import Child
from tests.kube.programs import Programs
from tests.waiting import eventually

CERTIFICATES = "cert-manager.io/v1/certificates"
SERVICE = f"{charts.RELEASE}-admission"
"""Also the name of the Certificate of admission."""
SECRET = f"{SERVICE}-cert-manager"
CA, CA_SECRET = f"{SERVICE}-ca", f"{SERVICE}-cert-manager-ca"
TIMEOUT = 120.0
"""The timeout of each step of cert-manager, in seconds."""


@pytest.fixture(params=["true", "false"], ids=["merging", "replacing"])
def plane(assets: Path, request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """A control plane of the test's own, with cert-manager's CRDs, controller and cainjector.

    A new CA joins the old CA in the configuration, or replaces the old CA as in earlier versions.
    """
    if not os.environ.get("CERT_MANAGER"):
        pytest.skip("CERT_MANAGER names no directory with cert-manager's programs")
    folder = Path(os.environ["CERT_MANAGER"])
    with ControlPlane(assets) as running:
        running.kubectl("apply", "--server-side", "-f", str(folder / "crds"))
        running.create_namespace("cert-manager")
        merging = f"--feature-gates=CAInjectorMerging={request.param}"
        children = [
            # The controller reads --kubeconfig, and cainjector KUBECONFIG.
            start(
                running,
                folder / "controller",
                "--internal-healthz-listen-address=127.0.0.1:0",
                f"--kubeconfig={running.admin_kubeconfig}",
            ),
            start(running, folder / "cainjector", merging),
        ]
        yield running
        for child in children:
            print(f"{child.name}:\n{child.tail()}")
            child.stop()


def start(plane: ControlPlane, program: Path, *flags: str) -> Child:
    """Start a program of cert-manager as the administrator."""
    common = ("--leader-elect=false", "--metrics-listen-address=127.0.0.1:0")
    return Child(
        f"cert-manager's {program.name}",
        [str(program), *common, *flags],
        plane.logs / f"cert-manager-{program.name}.log",
        {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(plane.directory),
            "KUBECONFIG": str(plane.admin_kubeconfig),
        },
    )


class Volume:
    """The files of a Secret. As in kubelet, a symbolic link changes all files at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def write(self, secret: Object) -> None:
        """Write the files of `secret`."""
        self._count += 1
        fresh = self.folder / f"..{self._count}"
        fresh.mkdir(parents=True)
        for name, value in secret["data"].items():
            (fresh / name).write_bytes(base64.b64decode(value))
            if self._count == 1:
                (self.folder / name).symlink_to(f"..data/{name}")
        (self.folder / "..next").symlink_to(fresh.name)
        (self.folder / "..next").replace(self.folder / "..data")


class Issued:
    """The Secrets of the two Certificates, which cert-manager makes."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def secret(self, name: str) -> Object:
        """Read a Secret; the result has no data before the Secret exists."""
        try:
            return self._api.get("v1/secrets", name, namespace=charts.NAMESPACE)
        except ApiError as error:
            if error.code != 404:
                raise
            return {"data": {}}

    def wait_for_another(self, name: str, before: Object) -> Object:
        """Wait until the Secret has another certificate than in `before`."""

        def another() -> bool:
            now = self.secret(name)["data"]
            return bool(now.get("tls.crt")) and now["tls.crt"] != before["data"].get("tls.crt")

        eventually(another, timeout=TIMEOUT)
        return self.secret(name)

    def renew(self, certificate: str) -> None:
        """Request a new certificate now, as `cmctl renew` does."""
        raw = self._api.get(CERTIFICATES, certificate, namespace=charts.NAMESPACE)
        issuing = {
            "type": "Issuing",
            "status": "True",
            "reason": "ManuallyTriggered",
            "message": "A test requests the renewal.",
            "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        conditions = [each for each in raw["status"]["conditions"] if each["type"] != "Issuing"]
        raw["status"]["conditions"] = [*conditions, issuing]
        self._api.replace(CERTIFICATES, raw, subresource="status")


def trusts(api: Api, secret: Object) -> bool:
    """Whether the API server trusts the CA of a Secret, for each webhook."""
    ca = base64.b64decode(secret["data"]["ca.crt"]).strip()
    webhooks = api.get(WEBHOOKS, charts.RELEASE)["webhooks"]
    bundles = [base64.b64decode(each["clientConfig"].get("caBundle", "")) for each in webhooks]
    return all(ca in bundle for bundle in bundles)


def wait_for_more(stream: Stream) -> None:
    """Wait until 20 more pods were refused."""
    until = stream.answered + 20
    eventually(lambda: stream.answered >= until or stream.others)
    assert stream.others == []


@pytest.mark.timeout(900)
def test_cert_manager_makes_and_renews_admissions_certificate(
    plane: ControlPlane, tmp_path: Path
) -> None:
    api, issued, volume = plane.api, Issued(plane.api), Volume(tmp_path / "tls")
    chart = charts.render(
        plane.assets / "helm", values={"admission": {"tls": {"certManager": {"enabled": True}}}}
    )
    charts.install(plane, chart, certificates=False)
    first = issued.wait_for_another(SECRET, {"data": {}})
    volume.write(first)
    programs = Programs(plane, chart)
    try:
        admission = programs.start_admission(tls=volume.folder)
        charts.register_webhooks(plane, chart, admission.address, complete=False)
        controller = programs.start_controller()
        admission.wait_ready()
        eventually(lambda: trusts(api, first), timeout=TIMEOUT)
        plane.create_namespace("load")
        make_quota(api, "load")
        assert refusal(api, pod("load", "2Mi")) == ""
        assert "has room for" in refusal(api, pod("load", "1Gi"))

        def wait_served(secret: Object) -> None:
            served = ssl.PEM_cert_to_DER_cert(
                base64.b64decode(secret["data"]["tls.crt"]).decode().split("-----END")[0]
                + "-----END CERTIFICATE-----"
            )
            address = ("127.0.0.1", port_of(admission))
            eventually(
                lambda: ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(address)) == served
            )

        with Stream(api, "load") as stream:
            # A renewed certificate, of the same CA.
            issued.renew(SERVICE)
            second = issued.wait_for_another(SECRET, first)
            assert second["data"]["ca.crt"] == first["data"]["ca.crt"]
            volume.write(second)
            wait_served(second)
            wait_for_more(stream)
            # A renewed CA, and then a certificate of that CA.
            before = issued.secret(CA_SECRET)
            issued.renew(CA)
            ca = issued.wait_for_another(CA_SECRET, before)
            wait_for_more(stream)
            issued.renew(SERVICE)
            third = issued.wait_for_another(SECRET, second)
            assert third["data"]["ca.crt"] == ca["data"]["tls.crt"]
            eventually(lambda: trusts(api, third), timeout=TIMEOUT)
            # kubelet changes the files up to a minute later: admission serves the old certificate.
            wait_for_more(stream)
            volume.write(third)
            wait_served(third)
            wait_for_more(stream)
        assert stream.others == []
        for program in (admission, controller):
            assert "Traceback" not in program.log()
    finally:
        programs.stop()
