"""Draws a chart as SVG. The same figures give the same bytes.

There is no plotting library, because a library is a hundred times larger than this module, and its
colours fit only one background. The colours here are CSS, and follow the reader's dark mode.
"""

from __future__ import annotations

import math
from html import escape

from benchmarks.report import Chart, Line, Spread

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 48, 52
#: Colours for white and for near-black, with a contrast of at least 4.5 to 1.
LIGHT = ("#57606a", "#0550ae", "#a8480a", "#6f2da8", "#116329", "#a40e26")
DARK = ("#9ba3ad", "#79b8ff", "#ffa657", "#d2a8ff", "#7ee787", "#ff9492")
_STYLE = """text{{font:13px system-ui,sans-serif;fill:#1f2328}}.t{{font-weight:600;font-size:15px}}
.g{{stroke:#d0d7de}}{light}
@media(prefers-color-scheme:dark){{text{{fill:#e6edf3}}.g{{stroke:#3d444d}}{dark}}}"""


def draw(chart: Chart) -> str:
    """The SVG. The x axis is logarithmic; the y axis begins at 0."""
    places = sorted({x for line in chart.lines for x in line.points})
    most = max(spread.high for line in chart.lines for spread in line.points.values())
    step = _step(most)
    top = step * math.ceil(most / step)

    def across(x: float) -> float:
        low, high = math.log(places[0]), math.log(places[-1])
        part = (math.log(x) - low) / (high - low) if high > low else 0.5
        return LEFT + part * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [_text(LEFT, 24, chart.title, "t"), _text(LEFT, HEIGHT - 10, chart.x)]
    parts.append(_text(LEFT, TOP - 8, chart.y))
    for number in range(round(top / step) + 1):
        y = up(number * step)
        parts.append(
            f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_text(LEFT - 8, y + 4, f"{number * step:g}", anchor="end"))
    parts += [_text(across(x), HEIGHT - BOTTOM + 20, f"{x:g}", anchor="middle") for x in places]
    labels = _apart([up(_last(line).median) for line in chart.lines])
    for place, (line, label) in enumerate(zip(chart.lines, labels, strict=True)):
        points = [(across(x), line.points[x]) for x in sorted(line.points)]
        path = " ".join(f"{x:.1f},{up(spread.median):.1f}" for x, spread in points)
        parts.append(f'<polyline class="c{place % len(LIGHT)}" fill="none" points="{path}"/>')
        parts += [_whisker(place, x, up(each.low), up(each.high)) for x, each in points]
        parts.append(_text(WIDTH - RIGHT + 10, label, line.name, f"n{place % len(LIGHT)}"))
    style = _STYLE.format(light=_colours(LIGHT), dark=_colours(DARK))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' role="img" aria-label="{escape(chart.title)}">\n<style>{style}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _colours(colours: tuple[str, ...]) -> str:
    return "".join(
        f".c{place}{{stroke:{colour};stroke-width:2}}.n{place}{{fill:{colour}}}"
        for place, colour in enumerate(colours)
    )


def _whisker(place: int, x: float, low: float, high: float) -> str:
    return (
        f'<line class="c{place % len(LIGHT)}" x1="{x:.1f}" x2="{x:.1f}"'
        f' y1="{low:.1f}" y2="{high:.1f}"/>'
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    kinds = f' class="{kind}"' if kind else ""
    return f'<text{kinds} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _last(line: Line) -> Spread:
    return line.points[max(line.points)]


def _step(most: float) -> float:
    """The distance of about five grid lines, as a round number."""
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def _apart(places: list[float], distance: float = 16.0) -> list[float]:
    """The places for the names, moved down so that names do not overlap; the order stays."""
    found = [0.0] * len(places)
    before = -math.inf
    for index in sorted(range(len(places)), key=lambda each: places[each]):
        before = found[index] = max(places[index] + 4, before + distance)
    return found
