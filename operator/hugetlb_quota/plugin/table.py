"""Text for a terminal: tables, colours, bars, amounts and ages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hugetlb_quota.plugin import bars
from hugetlb_quota.quantity import render

#: From how many percent of a limit on it is near, and very near.
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
    """What text is written for.

    ``width``: in columns. ``colour``: whether escape codes may be used. ``plain``: ASCII alone.
    """

    width: int = 80
    colour: bool = False
    plain: bool = False

    def paint(self, text: str, *codes: str) -> str:
        """``text`` in a colour, where there are colours."""
        if not self.colour or not codes or not text:
            return text
        return f"\x1b[{';'.join(codes)}m{text}\x1b[0m"

    @property
    def marks(self) -> str:
        """Of a bar: pods, retained, reserved, free."""
        return "#=-." if self.plain else "█▓▒░"

    @property
    def branches(self) -> tuple[str, str, str, str]:
        """Of a tree: a child, the last child, and what stands below each of the two."""
        return ("|- ", "`- ", "|  ", "   ") if self.plain else ("├─ ", "└─ ", "│  ", "   ")


@dataclass(frozen=True, slots=True)
class Cell:
    """Text of a table with its colours; they take no width."""

    text: str
    codes: tuple[str, ...] = ()
    right: bool = False


@dataclass(frozen=True, slots=True)
class Painted:
    """Text that has its colours in it already, ``width`` columns wide."""

    text: str
    width: int


Content = str | Cell | Painted


def table(headers: Sequence[str], rows: Sequence[Sequence[Content]], screen: Screen) -> str:
    """Columns as wide as their widest cell; the last one is not filled up."""
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
    """Pods, retained and reserved out of the limit, coloured by how near it is."""
    marks, counts = screen.marks, bars.cells(width, limit, amounts)
    filled = "".join(mark * count for mark, count in zip(marks, counts, strict=False))
    rest = marks[3] * (width - len(filled))
    colour = nearness(bars.percent(sum(amounts), limit))
    return Painted(screen.paint(filled, colour) + screen.paint(rest, FAINT), width)


def nearness(percent: int | None) -> str:
    """The colour of a use of ``percent`` of a limit; of none at all the last one."""
    if percent is None or percent >= VERY_NEAR:
        return RED
    return YELLOW if percent >= NEAR else GREEN


def legend(screen: Screen) -> str:
    """What the marks of a bar stand for."""
    words = ("pods", "retained", "reserved", "free")
    return "  ".join(f"{mark} {word}" for mark, word in zip(screen.marks, words, strict=True))


def amounts(charge: Mapping[str, str]) -> str:
    """A resource list in words: ``64Mi of hugepages-2Mi and 1Gi of hugepages-1Gi``."""
    return " and ".join(f"{amount} of {name}" for name, amount in charge.items()) or "nothing"


def size_name(resource: str) -> str:
    """A resource as a column shows it: ``2Mi``."""
    return resource.removeprefix("hugepages-")


def age(since: datetime | None, now: datetime) -> str:
    """How long ago, in one or two units as kubectl has it: ``45s``, ``5m12s``, ``3h``, ``2d``."""
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


def count(number_of: int, what: str) -> str:
    """``1 pod``, ``2 pods``."""
    return f"{number_of} {what}" if number_of == 1 else f"{number_of} {what}s"


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more


def room(amount: int) -> str:
    """An amount that may be below 0, which nobody has room for."""
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
