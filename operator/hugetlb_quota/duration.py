"""Parse and print the durations of specs: ``10m``, ``1h30m``, ``45s``."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

#: The regular expression of a duration; the API server checks it too.
PATTERN: Final = r"^(\d{1,6}(h|m|s))+$"
_PART: Final = re.compile(r"(\d{1,6})(h|m|s)")
#: The largest number of one part.
_MOST: Final = 999_999
_UNITS: Final = {"h": "hours", "m": "minutes", "s": "seconds"}


class MalformedDuration(ValueError):
    """The text is not a duration."""

    def __init__(self, text: str) -> None:
        super().__init__(f'{text!r} is not a duration; write hours, minutes, seconds, as "1h30m".')


def parse(text: str) -> timedelta:
    """The duration that ``text`` stands for.

    >>> parse("1h30m")
    datetime.timedelta(seconds=5400)

    :raises MalformedDuration: if ``text`` is not a duration.
    """
    if not re.fullmatch(PATTERN, text):
        raise MalformedDuration(text)
    parts = ((_UNITS[unit], int(number)) for number, unit in _PART.findall(text))
    return sum((timedelta(**{unit: number}) for unit, number in parts), timedelta())


def render(length: timedelta) -> str:
    """``length`` in whole seconds, in the form that :func:`parse` reads.

    >>> render(timedelta(seconds=5400))
    '1h30m'
    """
    left, seconds = divmod(int(length.total_seconds()), 60)
    hours, minutes = divmod(left, 60)
    times, hours = divmod(hours, _MOST)
    parts = [*[(_MOST, "h")] * times, (hours, "h"), (minutes, "m"), (seconds, "s")]
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"
