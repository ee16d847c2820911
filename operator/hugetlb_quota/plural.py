"""Numbers with their nouns, for messages."""

from __future__ import annotations


def number_of(number: int, noun: str) -> str:
    """``1 pod``, ``2 pods``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
