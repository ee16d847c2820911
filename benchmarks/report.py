"""The forms that figures take: medians with their spread, Markdown tables, charts, the machine."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Spread:
    """What several rounds measured: the median, and the least and the most."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of one value a round."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))

    def __str__(self) -> str:
        """``402 (350-447)``: three digits, as many as noisy machines give."""
        return f"{_short(self.median)} ({_short(self.low)}-{_short(self.high)})"


@dataclass(frozen=True)
class Line:
    """One line of a chart: its name, and a spread by the place on the x axis."""

    name: str
    points: dict[float, Spread]


@dataclass(frozen=True)
class Chart:
    """Lines over one logarithmic x axis; `file` is what its SVG is called, without the suffix."""

    file: str
    title: str
    x: str
    y: str
    lines: tuple[Line, ...]

    def to_json(self) -> dict[str, Any]:
        """As it stands in a suite's JSON: each line's points are x, median, least and most."""
        lines = [
            {
                "name": line.name,
                "points": [[x, s.median, s.low, s.high] for x, s in line.points.items()],
            }
            for line in self.lines
        ]
        return {"file": self.file, "title": self.title, "x": self.x, "y": self.y, "lines": lines}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Chart:
        """From a suite's JSON."""
        lines = tuple(
            Line(line["name"], {x: Spread(*values) for x, *values in line["points"]})
            for line in raw["lines"]
        )
        return cls(raw["file"], raw["title"], raw["x"], raw["y"], lines)


@dataclass(frozen=True)
class Machine:
    """On what, and with which versions."""

    processor: str
    cores: int
    memory_gib: int
    kernel: str
    python: str

    @classmethod
    def this(cls) -> Machine:
        """The one that this runs on."""
        return cls(
            processor=_field("/proc/cpuinfo", "model name") or platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 2**20),
            kernel=platform.release(),
            python=platform.python_version(),
        )

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.cores} cores of {self.processor}, {self.memory_gib} GiB,"
            f" Linux {self.kernel}, Python {self.python}"
        )


def markdown(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def ratios(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Each round's value to the baseline of the same round."""
    return Spread.of(value / base for value, base in zip(values, baseline, strict=True))


def each(rounds: Iterable[Any], value: Callable[[Any], float]) -> Spread:
    """The spread of one value of each round."""
    return Spread.of(value(one) for one in rounds)


def _short(number: float) -> str:
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.3g}"


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
