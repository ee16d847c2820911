"""Parse and print Kubernetes quantities of bytes.

The rules are those of apimachinery's ``resource.Quantity`` (quantity.go): a decimal number with a
binary (``Ki``), decimal (``k``, ``m``) or exponent (``e3``) suffix. A fraction of a byte is
rounded up.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Final

#: The largest amount that Kubernetes' int64 arithmetic holds, in bytes.
LARGEST: Final = 2**63 - 1

_FORM: Final = re.compile(
    r"(?P<sign>[+-]?)(?P<number>\d+\.?\d*|\.\d+)(?P<suffix>[KMGTPE]i|[numkMGTPE]|[eE][+-]?\d{1,3}|)"
)
_MAX_LENGTH: Final = 64
_WRITE: Final = 'write digits and a suffix, such as "64Mi" or "8Gi"'
_SCALE: Final[dict[str, Fraction]] = {
    "": Fraction(1),
    **{f"{prefix}i": Fraction(1024**i) for i, prefix in enumerate("KMGTPE", 1)},
    **{
        suffix: Fraction(10) ** power
        for suffix, power in {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9}.items()
    },
    **{suffix: Fraction(10) ** power for suffix, power in {"T": 12, "P": 15, "E": 18}.items()},
}


class MalformedQuantity(ValueError):
    """The text is not a quantity of bytes, or Kubernetes can't hold the quantity."""

    def __init__(self, text: object, why: str) -> None:
        super().__init__(f"{text!r} is not a quantity of bytes: {why}.")
        self.text = text


def parse(text: str | int | float) -> int:
    """The number of bytes that ``text`` stands for, rounded up.

    >>> parse("64Mi"), parse("1.5Gi"), parse("2e3"), parse("1m")
    (67108864, 1610612736, 2000, 1)

    ``text`` may be a JSON number, as in the API server.

    :raises MalformedQuantity: if ``text`` is not a quantity or is beyond ±(2^63 - 1).
    """
    amount = parse_sum(text)
    if abs(amount) > LARGEST:
        raise MalformedQuantity(text, "it is beyond 2^63 - 1")
    return amount


def parse_sum(text: str | int | float) -> int:
    """Like :func:`parse`, but without a bound, for sums of quantities.

    :raises MalformedQuantity: if ``text`` is not a quantity.
    """
    if isinstance(text, str):
        return _parse_text(text)
    if isinstance(text, bool) or not isinstance(text, (int, float)):
        raise MalformedQuantity(str(text)[:_MAX_LENGTH], _WRITE)
    return _parse_text(str(text))


@lru_cache(maxsize=4096)
def _parse_text(written: str) -> int:
    match = _FORM.fullmatch(written) if len(written) <= _MAX_LENGTH else None
    if match is None:
        raise MalformedQuantity(written[:_MAX_LENGTH], _WRITE)
    suffix = match["suffix"]
    exponent = suffix not in _SCALE
    scale = Fraction(10) ** int(suffix[1:]) if exponent else _SCALE[suffix]
    exact = Fraction(match["number"]) * scale
    amount = -(-exact.numerator // exact.denominator)
    return -amount if match["sign"] == "-" else amount


def render(amount: int) -> str:
    """The shortest exact binary form of ``amount`` bytes.

    >>> render(67108864), render(1610612736), render(1000), render(0)
    ('64Mi', '1536Mi', '1000', '0')
    """
    for power, prefix in ((6, "E"), (5, "P"), (4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if amount and amount % 1024**power == 0:
            return f"{amount // 1024**power}{prefix}i"
    return str(amount)
