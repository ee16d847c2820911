"""Text for a terminal: tables, colours, bars, amounts and ages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hugetlb_quota.plugin import bars
from hugetlb_quota.quantity import render

#: The percentages of a limit from which a use is near, and very near.
NEAR: Final = 75
VERY_NEAR: Final = 90

GREEN: Final = "32"
YELLOW: Final = "33"
RED: Final = "31"
BOLD: Final = "1"
FAINT: Final = "2"

_GAP: Final = "  "
_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


@dataclass(frozen=True, slots=True)
class Screen:
    """The properties of the output.

    ``width``: in columns. ``colour``: escape codes may be used. ``plain``: only ASCII may be used.
    """

    width: int = 80
    colour: bool = False
    plain: bool = False

    def paint(self, text: str, *codes: str) -> str:
        """``text`` in a colour, if the screen has colours."""
        if not self.colour or not codes or not text:
            return text
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m"

    @property
    def marks(self) -> str:
        """The marks of a bar: pods, retained, reserved, free."""
        return "#=-." if self.plain else "█▓▒░"

    @property
    def branches(self) -> tuple[str, str, str, str]:
        """The lines of a tree: a child, the last child, and the trunk below each of the two."""
        return ("|- ", "`- ", "|  ", "   ") if self.plain else ("├─ ", "└─ ", "│  ", "   ")


@dataclass(frozen=True, slots=True)
class Cell:
    """Text of a table, with colour codes that take no width."""

    text: str
    codes: tuple[str, ...] = ()
    right: bool = False


@dataclass(frozen=True, slots=True)
class Painted:
    """Text that contains escape codes and is ``width`` columns wide."""

    text: str
    width: int


Content = str | Cell | Painted


def table(headers: Sequence[str], rows: Sequence[Sequence[Content]], screen: Screen) -> str:
    """A table. Each column is as wide as its widest cell; the last column is not padded."""
    heads = [Cell(head, (BOLD,), right=_is_right(rows, i)) for i, head in enumerate(headers)]
    lines: list[Sequence[Content]] = [heads, *rows]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(headers))]
    return "\n".join(
        _GAP.join(
            _filled(cell, widths[i], screen, last=i == len(line) - 1) for i, cell in enumerate(line)
        ).rstrip()
        for line in lines
    )


def number(text: str, *codes: str) -> Cell:
    """A cell that is aligned to the right."""
    return Cell(text, codes, right=True)


def bar(amounts: Sequence[int], limit: int, width: int, screen: Screen) -> Painted:
    """A bar of pods, retained and reserved. The colour says how near the limit is."""
    marks, counts = screen.marks, bars.cells(width, limit, amounts)
    filled = "".join(mark * count for mark, count in zip(marks, counts, strict=False))
    rest = marks[3] * (width - len(filled))
    colour = nearness(bars.percent(sum(amounts), limit))
    return Painted(screen.paint(filled, colour) + screen.paint(rest, FAINT), width)


def nearness(percent: int | None) -> str:
    """The colour for a use of ``percent`` of a limit; None, a limit of 0, is red."""
    if percent is None or percent >= VERY_NEAR:
        return RED
    return YELLOW if percent >= NEAR else GREEN


def legend(screen: Screen) -> str:
    """The meaning of the marks of a bar."""
    words = ("pods", "retained", "reserved", "free")
    return "  ".join(f"{mark} {word}" for mark, word in zip(screen.marks, words, strict=True))


def amounts(charge: Mapping[str, str]) -> str:
    """A resource list in words: ``64Mi of hugepages-2Mi and 1Gi of hugepages-1Gi``."""
    return " and ".join(f"{amount} of {name}" for name, amount in charge.items()) or "nothing"


def size_name(resource: str) -> str:
    """The short name of a resource: ``2Mi``."""
    return resource.removeprefix("hugepages-")


def age(since: datetime | None, now: datetime) -> str:
    """The time since then, in one or two units as in kubectl: ``45s``, ``5m12s``, ``3h``."""
    if since is None:
        return "-"
    seconds = max(0, int((now - since).total_seconds()))
    for i, (length, unit) in enumerate(_UNITS):
        if seconds >= length or unit == "s":
            whole, rest = divmod(seconds, length)
            if whole < 10 and i + 1 < len(_UNITS):
                smaller, name = _UNITS[i + 1]
                if rest >= smaller:
                    return f"{whole}{unit}{rest // smaller}{name}"
            return f"{whole}{unit}"
    raise AssertionError("seconds are the last unit")


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first ``most`` names, and the number of the others."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def room(amount: int) -> str:
    """The room for more; an amount below 0 is no room."""
    return render(max(amount, 0))


def _is_right(rows: Sequence[Sequence[Content]], column: int) -> bool:
    return any(isinstance(row[column], Cell) and row[column].right for row in rows)  # type: ignore[union-attr]


def _width(cell: Content) -> int:
    if isinstance(cell, Painted):
        return cell.width
    return len(cell.text if isinstance(cell, Cell) else cell)


def _filled(cell: Content, width: int, screen: Screen, *, last: bool) -> str:
    space = " " * (width - _width(cell))
    if isinstance(cell, Painted):
        return cell.text + ("" if last else space)
    if isinstance(cell, str):
        return cell + ("" if last else space)
    text = screen.paint(cell.text, *cell.codes)
    return space + text if cell.right else text + ("" if last else space)
