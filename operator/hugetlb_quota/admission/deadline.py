"""The time limit of one admission request."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

#: The time that the API server waits for a webhook without ``timeoutSeconds``, and the longest
#: that it allows, in seconds (admissionregistration/v1).
DEFAULT_TIMEOUT: Final = 10.0
LONGEST_TIMEOUT: Final = 30.0
#: The time that the answer needs to reach the API server, in seconds.
MARGIN: Final = 0.5

_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|h|m|s))+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|h|m|s)")
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Deadline:
    """``at``: when the answer must be ready, on the event loop's clock.

    ``seconds``: the time between the request's arrival and ``at``.
    """

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Self:
        """A deadline ``seconds`` from now."""
        return cls(asyncio.get_running_loop().time() + seconds, seconds)

    @classmethod
    def of_request(cls, timeout: str | None) -> Self:
        """The deadline for the ``timeout`` that the API server adds to the URL, such as ``10s``.

        A ``timeout`` that is not a Go duration is ignored.
        """
        seconds = DEFAULT_TIMEOUT
        if timeout is not None and _DURATION.fullmatch(timeout):
            seconds = sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(timeout))
        seconds = min(seconds, LONGEST_TIMEOUT)
        return cls.after(max(seconds - MARGIN, seconds / 2))

    def left(self) -> float:
        """The seconds left; 0 when the time is over."""
        return max(0.0, self.at - asyncio.get_running_loop().time())

    def timeout(self) -> float:
        """The seconds left, as the timeout of a request to the API server; never 0."""
        return max(self.left(), 0.001)

    def request_ends(self, now: datetime, lifetime: timedelta) -> datetime:
        """The time at which the API request that waits for this answer has ended for sure.

        The answer may go out as late as the deadline.

        :param now: the present time.
        :param lifetime: how long the API request may run after admission's answer.
        """
        return now + timedelta(seconds=self.left()) + lifetime
