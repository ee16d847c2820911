"""The lines of a quota's ``status.reservations``."""

from __future__ import annotations

from typing import Any


def pending(status: dict[str, Any]) -> list[str]:
    """Those that reserve: one with a seventh word only says who a counted pod is."""
    return [line for line in status.get("reservations") or () if len(line.split()) < 7]
