"""The parts of a report: medians with a spread, Markdown tables, charts, the machine."""

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
    """The median, minimum and maximum of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of ``values``, one value for each round."""
        every = list(values)
        return cls(statistics.median(every), min(every), max(every))

    def __str__(self) -> str:
        """``402 (350-447)``, with three digits: noisy machines give no more."""
        return f"{_short(self.median)} ({_short(self.low)}-{_short(self.high)})"


@dataclass(frozen=True)
class Line:
    """One line of a chart: the name, and the spread at each place of the x axis."""

    name: str
    points: dict[float, Spread]


@dataclass(frozen=True)
class Chart:
    """Lines over a logarithmic x axis; `file`: the name of the SVG file without suffix."""

    file: str
    title: str
    x: str
    y: str
    lines: tuple[Line, ...]

    def to_json(self) -> dict[str, Any]:
        """The chart for a suite's JSON. The points of a line are x, median, minimum, maximum."""
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
        """Read a chart from a suite's JSON."""
        lines = tuple(
            Line(line["name"], {x: Spread(*values) for x, *values in line["points"]})
            for line in raw["lines"]
        )
        return cls(raw["file"], raw["title"], raw["x"], raw["y"], lines)


@dataclass(frozen=True)
class Machine:
    """The machine of a run, and its versions."""

    processor: str
    cores: int
    memory_gib: int
    kernel: str
    python: str

    @classmethod
    def this(cls) -> Machine:
        """The machine of this process."""
        return cls(
            processor=_field("/proc/cpuinfo", "model name") or platform.machine(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(int(_field("/proc/meminfo", "MemTotal").split()[0]) / 2**20),
            kernel=platform.release(),
            python=platform.python_version(),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON."""
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
    """The ratio of each round's value to the baseline of the same round."""
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
