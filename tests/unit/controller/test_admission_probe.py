"""The probe of admission against a real TLS server on loopback."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import AsyncIterator

import pytest
import trustme
from aiohttp import web

from hugetlb_quota.controller.webhooks.admission_probe import why_not_ready
from hugetlb_quota.kube.resources import SERVICES
from tests.unit.controller.fake_objects import FakeObjects, Json, configuration

HOST = "admission.system.svc"


class Admission:
    """A server that answers /readyz, its Service, and the webhook configuration."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.status = 200
        self.api = FakeObjects()
        self.configuration = configuration()
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        assert request.path == "/readyz"
        return web.Response(status=self.status, text="the certificate is missing")

    def set_service(self, **spec: object) -> None:
        raw = {"metadata": {"name": "admission", "namespace": "system"}, "spec": spec}
        self.api.put(SERVICES, raw)

    @property
    def client(self) -> Json:
        found: Json = self.configuration["webhooks"][0]["clientConfig"]
        return found

    async def probe(self) -> str:
        return await why_not_ready(self.api, self.configuration)


@pytest.fixture
async def admission() -> AsyncIterator[Admission]:
    admission = Admission()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    admission.ca.issue_cert(HOST).configure_cert(context)
    application = web.Application()
    application.router.add_get("/{path:.*}", admission.answer)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    admission.port = runner.addresses[0][1]
    admission.client["caBundle"] = b64encode(admission.ca.cert_pem.bytes()).decode()
    admission.client["service"]["port"] = admission.port
    admission.set_service(clusterIP="127.0.0.1")
    yield admission
    await runner.cleanup()


async def test_admission_that_answers_is_ready(admission: Admission) -> None:
    assert await admission.probe() == ""


async def test_a_service_with_an_external_name_is_probed_there(admission: Admission) -> None:
    admission.set_service(type="ExternalName", externalName="localhost")
    assert await admission.probe() == ""


async def test_a_bad_answer_is_quoted(admission: Admission) -> None:
    admission.status = 500
    assert await admission.probe() == "admission answers 500: the certificate is missing"


async def test_a_certificate_of_another_ca_is_refused(admission: Admission) -> None:
    admission.client["caBundle"] = b64encode(trustme.CA().cert_pem.bytes()).decode()
    why = await admission.probe()
    assert why.startswith("admission does not answer: ")
    assert "certificate verify failed" in why


@pytest.mark.parametrize("missing", ["caBundle", "service"])
async def test_nothing_is_sent_without_a_ca_or_a_service(
    admission: Admission, missing: str
) -> None:
    del admission.client[missing]
    assert await admission.probe() == "the webhook configuration names no CA yet."


@pytest.mark.parametrize("spec", [{}, {"clusterIP": "None"}, {"type": "ExternalName"}])
async def test_a_service_without_an_address_is_named(admission: Admission, spec: Json) -> None:
    admission.set_service(**spec)
    assert "Service system/admission has no address" in await admission.probe()


async def test_a_missing_service_is_named(admission: Admission) -> None:
    admission.api.objects.clear()
    why = await admission.probe()
    assert why == "the Service of admission can't be read: no such object"
