"""From an HTTPS request to its answer: decisions, HTTP errors, metrics and Events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hugetlb_quota.admission.connections import Connections
from hugetlb_quota.admission.metrics import AdmissionMetrics
from hugetlb_quota.admission.webhooks import BODY_LIMIT
from tests.unit.admission.fake_api import FakeApi, namespace, pod, quota
from tests.unit.admission.https import (
    PODS,
    Server,
    SlowApi,
    api_with_leaf,
    review,
    serving,
    small,
    until,
)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server with db/leaf of 128Mi."""
    async with serving(tmp_path, api_with_leaf()) as server:
        yield server


async def test_refusals_make_an_event_and_dry_runs_do_not(tmp_path: Path) -> None:
    api = FakeApi()
    api.put(namespace("db"))
    api.put(quota("db/leaf", {"hugepages-2Mi": "2Mi"}))
    async with serving(tmp_path, api) as server:
        for fields in ({}, {}, {"dryRun": True}):
            assert not (await server.review(PODS, review(pod(), **fields)))["allowed"]
    assert api.event_counts == [("db/leaf", 2)]


async def test_metrics_count_decisions_by_cause_and_show_the_certificate(
    tmp_path: Path,
) -> None:
    api, metrics = api_with_leaf(), AdmissionMetrics()
    api.put(quota("db/leaf", {"hugepages-2Mi": "64Mi"}))
    async with serving(tmp_path, api, metrics=metrics) as server:
        await server.review(PODS, review(pod()))
        await server.review(PODS, review(pod("two", {"hugepages-2Mi": "1Gi"})))
        api.broken = True
        await server.review(PODS, review(pod("three")))
        rendered = metrics.render().decode()
    for cause in ("none", "rule", "bug"):
        row = f'hugetlb_quota_admission_decisions_total{{cause="{cause}",kind="pod"}} 1.0\n'
        assert row in rendered
    assert 'hugetlb_quota_admission_batch_size_bucket{le="1.0"}' in rendered
    assert "hugetlb_quota_admission_writes_total 1.0\n" in rendered
    assert server.certificate.ends is not None
    assert server.certificate.ends > 1.7e9
    assert "hugetlb_quota_certificate_expiry_timestamp_seconds" in rendered


async def test_a_decision_has_the_uid_of_its_request(server: Server) -> None:
    assert await server.review(PODS, review(pod())) == {"uid": "request-1", "allowed": True}
    refused = await server.review(PODS, review(pod("two", {"hugepages-2Mi": "1Gi"})))
    assert (refused["uid"], refused["allowed"], refused["status"]["code"]) == (
        "request-1",
        False,
        403,
    )


async def test_quotas_have_their_own_path(server: Server) -> None:
    resource = {"group": "hugetlb.dev", "version": "v1alpha1", "resource": "hugetlbquotas"}
    bad = quota("db/bad", {"hugepages-2Mi": "3Mi"})
    answer = await server.review("/secret/validate-quotas", review(bad, resource=resource))
    assert "use 2Mi or 4Mi" in answer["status"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"no json", "Invalid JSON"),
        ({"kind": "AdmissionReview"}, "apiVersion is not admission.k8s.io/v1"),
        (review(pod(), object=None), "request.object is missing"),
        (review(pod(), resource={"group": "apps", "resource": "deployments"}), "deployments.apps"),
        (review(pod(), subResource="binding"), "it is about pods/binding, and this path"),
    ],
)
async def test_a_malformed_review_is_a_bad_request(server: Server, body: Any, message: str) -> None:
    status, text = await server.post(PODS, body)
    assert status == 400
    assert message in text
    assert "Nothing was changed" in text
    assert server.api.writes == []


async def test_an_update_of_a_pods_status_is_answered(server: Server) -> None:
    before, after = pod(labels={"class": "none"}), pod(labels={"class": "gold"})
    update = review(after, oldObject=before, operation="UPDATE", subResource="status")
    assert (await server.review(PODS, update))["allowed"]


async def test_a_body_above_the_limit_is_refused(server: Server) -> None:
    status, text = await server.post(PODS, b" " * (BODY_LIMIT + 1))
    assert status == 413
    assert f"larger than {BODY_LIMIT} bytes" in text


async def test_a_body_with_two_large_objects_is_read(server: Server) -> None:
    raw = pod(annotations={"padding": "x" * (BODY_LIMIT - 4096)})
    assert (await server.review(PODS, review(raw)))["allowed"]


async def test_a_slow_decision_is_refused_before_the_api_servers_timeout(server: Server) -> None:
    assert isinstance(server.api, SlowApi)
    server.api.delay = 5.0
    async with asyncio.timeout(5):
        answer = await server.review("/secret/validate-pods?timeout=1s", review(pod()))
    assert "within 0.5 s" in answer["status"]["message"]


async def test_an_unexpected_error_is_a_refusal(server: Server) -> None:
    assert isinstance(server.api, SlowApi)
    server.api.broken = True
    answer = await server.review(PODS, review(pod()))
    assert not answer["allowed"]
    assert "RuntimeError" in answer["status"]["message"]


@pytest.mark.parametrize(
    "path", ["/validate-pods", "/guess/validate-pods", "/s%C3%A9/validate-pods"]
)
async def test_a_request_without_the_path_secret_gets_404(
    server: Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    status, text = await server.post(path, review(pod()))
    assert (status, text) == (404, "404: Not Found")
    assert server.api.writes == []
    assert "guess" not in caplog.text


async def test_a_request_above_the_limit_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hugetlb_quota.admission.webhooks.MOST_REQUESTS", 2)
    bounds = Connections(drain=0)
    api = api_with_leaf()
    async with serving(tmp_path, api, bounds) as server, asyncio.timeout(30):
        api.delay = 0.5
        reviews = [
            asyncio.create_task(server.review(PODS, review(small(f"p{number}"))))
            for number in range(2)
        ]
        await until(lambda: sum(each.busy for each in bounds._open.values()) == 2)
        refused = (await server.review(PODS, review(small("one-more"))))["status"]
        assert not any(task.done() for task in reviews)
        assert refused["code"] == 429
        assert refused["details"] == {"retryAfterSeconds": 1}
        assert "is deciding 2 other requests" in refused["message"]
        assert [(await task)["allowed"] for task in reviews] == [True, True]
        assert (await server.review(PODS, review(small("later"))))["allowed"]
