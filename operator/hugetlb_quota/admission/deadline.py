"""The time there is for one request."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final, Self

#: What the API server waits for a webhook that does not say, in seconds
#: (admissionregistration/v1 defaults, ``timeoutSeconds``); it allows up to 30.
DEFAULT_TIMEOUT: Final = 10.0
LONGEST_TIMEOUT: Final = 30.0
#: Kept back for the way of the answer, in seconds.
MARGIN: Final = 0.5

_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|h|m|s))+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|h|m|s)")
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Deadline:
    """When the answer must be ready, on the event loop's clock; ``seconds`` it had."""

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Self:
        """``seconds`` from now."""
        return cls(asyncio.get_running_loop().time() + seconds, seconds)

    @classmethod
    def of_request(cls, timeout: str | None) -> Self:
        """From the ``timeout`` that the API server adds to the webhook's URL, ``10s``.

        What is no duration of Go's counts as none.
        """
        seconds = DEFAULT_TIMEOUT
        if timeout is not None and _DURATION.fullmatch(timeout):
            seconds = sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(timeout))
        seconds = min(seconds, LONGEST_TIMEOUT)
        return cls.after(max(seconds - MARGIN, seconds / 2))

    def left(self) -> float:
        """Seconds left; 0 when the time is over."""
        return max(0.0, self.at - asyncio.get_running_loop().time())
