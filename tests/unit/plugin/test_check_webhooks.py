"""``check`` looks at the webhooks' CA, rules, failure policy and endpoints."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import timedelta

import pytest
import trustme

from hugetlb_quota.controller.certificates.authority import make_authority
from hugetlb_quota.plugin.check_webhooks import check, end_of
from hugetlb_quota.plugin.findings import Level
from tests.unit.plugin.check_facts import WELL, Json, webhooks
from tests.unit.plugin.worlds import NOW


def test_webhooks_in_order_are_one_finding() -> None:
    (found,) = check(WELL)
    assert (found.level, found.message) == (Level.OK, "3 webhooks configured, with their CA.")


def test_webhooks_of_other_programs_are_not_counted() -> None:
    others: list[Json] = [{"webhooks": [{"name": "other.example.com"}]}, {"webhooks": None}]
    assert list(check(replace(WELL, webhooks=[*webhooks(), *others]))) == list(check(WELL))


def test_missing_webhooks_are_named_with_the_effect() -> None:
    hooks = webhooks()
    removed = hooks[0]["webhooks"].pop()
    (found,) = check(replace(WELL, webhooks=hooks))
    assert removed["name"] == "quotas.hugetlb.dev"
    assert found.message.endswith("has quotas.hugetlb.dev, so the API server does not call them.")
    del hooks[0]["webhooks"][0]
    (found,) = check(replace(WELL, webhooks=hooks))
    assert found.message.endswith("so quotas refuse nothing.")


@pytest.mark.parametrize(
    ("days_left", "level"), [(-1, Level.ERROR), (1, Level.WARNING), (400, Level.OK)]
)
def test_an_ended_or_ending_ca_is_a_finding(days_left: int, level: Level) -> None:
    ca = trustme.CA()
    bundle = base64.b64encode(ca.cert_pem.bytes()).decode()
    ends = end_of(bundle)
    assert ends is not None
    now = ends - timedelta(days=days_left)
    (found,) = check(replace(WELL, now=now, webhooks=webhooks(bundle)))
    assert found.level == level


def test_the_earliest_end_in_a_bundle_decides() -> None:
    lifetimes = [timedelta(days=days) for days in (20, 10, 30)]
    cas = [make_authority("ca", NOW, lifetime).certificate for lifetime in lifetimes]
    assert end_of(base64.b64encode("".join(cas).encode()).decode()) == NOW + timedelta(days=10)


@pytest.mark.parametrize("bundle", ["bm8=", "not base64", ""])
def test_a_bundle_without_a_certificate_has_no_end(bundle: str) -> None:
    assert end_of(bundle) is None


def test_a_failure_policy_of_other_webhooks_is_no_finding() -> None:
    hooks = webhooks()
    hooks[0]["webhooks"][2]["failurePolicy"] = "Ignore"
    assert [each.level for each in check(replace(WELL, webhooks=hooks))] == [Level.OK]


def test_each_service_without_an_endpoint_is_a_finding_unless_nobody_may_look() -> None:
    (found,) = check(replace(WELL, endpoints={"hugetlb-system/admission": 0}))
    assert found.message.startswith("Service hugetlb-system/admission has no ready endpoint")
    assert found.remedy == "See kubectl -n hugetlb-system get pods."
    assert [each.level for each in check(replace(WELL, endpoints=None))] == [Level.OK]


def test_webhooks_without_rules_are_an_error_if_there_is_a_quota() -> None:
    silent = webhooks()
    del silent[0]["webhooks"][0]["rules"]
    (found,) = check(replace(WELL, webhooks=silent))
    assert found.level == Level.ERROR
    assert "pods.hugetlb.dev has no rules, so the API server does not call" in found.message
    (found,) = check(replace(WELL, webhooks=silent, quotas=()))
    assert found.level == Level.OK
    assert "Without a quota, admission decides about no pod." in found.message
