"""The arithmetic of bars: the number of cells for each amount."""

from __future__ import annotations

from collections.abc import Sequence


def cells(width: int, limit: int, amounts: Sequence[int]) -> tuple[int, ...]:
    """The number of cells for each of ``amounts``, in a bar of ``width`` cells for ``limit``.

    Amounts and limit have the same unit. Every amount above 0 gets a cell while there are cells.
    One cell stays free while the sum is below the limit. Apart from that, each amount gets its
    share, by the largest remainder. A sum above the limit fills the bar.
    """
    used = sum(amounts)
    present = sum(1 for amount in amounts if amount)
    if width <= 0 or not used:
        return (0,) * len(amounts)
    filled = width if used >= limit else min(width - 1, round(width * used / limit))
    filled = min(width, max(filled, present))
    # First one cell for each amount above 0, then by the largest remainder.
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
    """The use in whole percent of the limit; None if the limit is 0.

    The result is rounded down, so 100 means that nothing is left. A use above 0 is at least 1.
    """
    if not limit:
        return None
    return max(used * 100 // limit, 1 if used else 0)
