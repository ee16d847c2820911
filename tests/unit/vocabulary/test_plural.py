"""Numbers with their nouns."""

import pytest

from hugetlb_quota.plural import number_of


@pytest.mark.parametrize(("number", "text"), [(0, "0 pods"), (1, "1 pod"), (2, "2 pods")])
def test_one_thing_has_a_singular(number: int, text: str) -> None:
    assert number_of(number, "pod") == text
