"""Quantities are parsed as in apimachinery."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hugetlb_quota.quantity import LARGEST, MalformedQuantity, parse, render


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0", 0),
        (0, 0),
        ("64Mi", 64 * 1024**2),
        ("1.5Gi", 1536 * 1024**2),
        ("2e3", 2000),
        ("2E3", 2000),
        ("1E", 10**18),
        ("1m", 1),
        ("1001m", 2),
        (".5Ki", 512),
        ("5.", 5),
        ("+2k", 2000),
        ("-2Mi", -2 * 1024**2),
        (str(LARGEST), LARGEST),
    ],
)
def test_quantities_are_parsed(text: str | int, amount: int) -> None:
    assert parse(text) == amount


@pytest.mark.parametrize(
    "text",
    ["", "lots", "1 Gi", "1gi", "0x10", "1__0", "--1", "1e9999", "9" * 65, str(LARGEST + 1), True],
)
def test_malformed_quantities_are_refused(text: str | bool) -> None:
    with pytest.raises(MalformedQuantity, match="is not a quantity of bytes"):
        parse(text)


@given(st.integers(min_value=0, max_value=LARGEST))
def test_a_quantity_survives_a_round_trip(amount: int) -> None:
    assert parse(render(amount)) == amount
