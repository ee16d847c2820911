"""The model enforces the CRD's rules, with sentences as errors."""

from typing import Any

import pytest
from pydantic import ValidationError

from hugetlb_quota.api.quota import HugeTLBQuotaSpec


def test_a_users_spec_is_read() -> None:
    spec = HugeTLBQuotaSpec.model_validate(
        {
            "hard": {"hugepages-2Mi": "4Gi", "hugepages-1Gi": 0},
            "parentRef": {"namespace": "acme", "name": "tenant"},
            "podSelector": {"matchLabels": {"app": "db"}},
            "childNamespaces": {},
        }
    )
    assert spec.hard == {"hugepages-2Mi": "4Gi", "hugepages-1Gi": "0"}
    assert spec.child_namespaces is not None


@pytest.mark.parametrize(
    ("hard", "sentence"),
    [
        ({"hugepages-3Mi": "3Mi"}, "'hugepages-3Mi' is not a huge page size"),
        ({"hugepages-2Mi": "3Mi"}, "not a multiple of 2Mi; use 2Mi or 4Mi"),
        ({"hugepages-2Mi": "-2Mi"}, "must not be negative"),
        ({"hugepages-2Mi": "lots"}, "'lots' is not a quantity of bytes"),
        ({"hugepages-2Mi": 2**63}, "beyond 2\\^63 - 1"),
        ("4Gi", "valid dictionary"),
    ],
)
def test_a_malformed_limit_is_refused_with_the_remedy(hard: Any, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        HugeTLBQuotaSpec.model_validate({"hard": hard})


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        HugeTLBQuotaSpec.model_validate({"hard": {}, "hardPerNode": {}})
