"""Read the lines of a quota's ``status.reservations``."""

from __future__ import annotations

from typing import Any


def pending(status: dict[str, Any]) -> list[str]:
    """The lines that reserve; a line with a seventh word is an identity."""
    return [line for line in status.get("reservations") or () if len(line.split()) < 7]
