from __future__ import annotations

import json
from typing import Any

import pytest

from hugetlb_quota.admission.review import ALLOW, MalformedReview, allow, deny, parse

REQUEST: dict[str, Any] = {
    "uid": "705ab4f5",
    "kind": {"group": "", "version": "v1", "kind": "Pod"},
    "resource": {"group": "", "version": "v1", "resource": "pods"},
    "name": "pg-0",
    "namespace": "acme-db",
    "operation": "CREATE",
    "userInfo": {"username": "u", "groups": ["system:nodes"], "extra": {"a": ["b"]}},
    "object": {"metadata": {"name": "pg-0"}},
    "oldObject": None,
    "dryRun": False,
}
REVIEW: dict[str, Any] = {
    "apiVersion": "admission.k8s.io/v1",
    "kind": "AdmissionReview",
    "request": REQUEST,
}


def test_parses_a_review() -> None:
    request = parse(json.dumps(REVIEW).encode())
    assert (request.uid, request.operation, request.namespace) == ("705ab4f5", "CREATE", "acme-db")
    assert request.user_info.groups == ("system:nodes",)
    assert request.new == {"metadata": {"name": "pg-0"}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Invalid JSON"),
        (b"{", "AdmissionReview: Invalid JSON"),
        (b"[]", "AdmissionReview"),
        (b"\xff\xfe", "Invalid JSON"),
        (json.dumps({**REVIEW, "apiVersion": "admission.k8s.io/v1beta1"}), "apiVersion"),
        (json.dumps({**REVIEW, "kind": "Pod"}), "kind"),
        (json.dumps({**REVIEW, "request": None}), "request"),
        (json.dumps({**REVIEW, "request": {**REQUEST, "uid": ""}}), "request.uid"),
        (json.dumps({**REVIEW, "request": {**REQUEST, "operation": "EAT"}}), "request.operation"),
        (json.dumps({**REVIEW, "request": {**REQUEST, "object": "pod"}}), "request.object"),
    ],
)
def test_a_malformed_review_raises_and_names_the_field(body: bytes | str, message: str) -> None:
    with pytest.raises(MalformedReview, match="Nothing was changed") as refused:
        parse(body.encode() if isinstance(body, str) else body)
    assert message in str(refused.value)


def test_a_create_without_an_object_is_malformed() -> None:
    request = parse(json.dumps({**REVIEW, "request": {**REQUEST, "object": None}}).encode())
    with pytest.raises(MalformedReview, match=r"request\.object is missing in a CREATE"):
        _ = request.new


def test_the_answer_has_the_uid_of_the_request() -> None:
    assert ALLOW.review("u")["response"] == {"uid": "u", "allowed": True}
    assert allow("careful").review("u")["response"] == {
        "uid": "u",
        "allowed": True,
        "warnings": ["careful"],
    }
    assert deny("no room").review("u") == {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {
            "uid": "u",
            "allowed": False,
            "status": {
                "status": "Failure",
                "code": 403,
                "reason": "Forbidden",
                "message": "no room",
            },
        },
    }
