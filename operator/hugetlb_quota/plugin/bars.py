"""The arithmetic of bars: how many cells of a bar each amount gets."""

from __future__ import annotations

from collections.abc import Sequence


def cells(width: int, limit: int, amounts: Sequence[int]) -> tuple[int, ...]:
    """How many of ``width`` cells stand for each of ``amounts``, out of ``limit``.

    What is there is seen: an amount above 0 has a cell, as far as there are cells. What is
    not full does not look full: a cell stays free as long as the amounts are below the limit.
    Beyond that each amount has its share, by the largest remainder. All in the same unit;
    more than the limit fills the bar.
    """
    used = sum(amounts)
    present = sum(1 for amount in amounts if amount)
    if width <= 0 or not used:
        return (0,) * len(amounts)
    filled = width if used >= limit else min(width - 1, round(width * used / limit))
    filled = min(width, max(filled, present))
    # One for each that is there, then the largest remainders.
    counts = [0] * len(amounts)
    by_size = sorted(range(len(amounts)), key=lambda i: -amounts[i])
    for i in by_size[: min(present, filled)]:
        counts[i] = 1
    while sum(counts) < filled:
        most_owed = max(
            (i for i in range(len(amounts)) if amounts[i]),
            key=lambda i: filled * amounts[i] - used * counts[i],
        )
        counts[most_owed] += 1
    return tuple(counts)


def percent(used: int, limit: int) -> int | None:
    """Use in whole percent of the limit, None where the limit is 0.

    Rounded down, so that 100 means that nothing is left; but something is never 0.
    """
    if not limit:
        return None
    return max(used * 100 // limit, 1 if used else 0)
