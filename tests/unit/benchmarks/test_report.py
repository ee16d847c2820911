"""The report of the benchmarks: medians, tables, charts and sections."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from benchmarks import admission_tables, svg
from benchmarks.__main__ import put_section
from benchmarks.admission_tables import Figure
from benchmarks.pods import Creation
from benchmarks.report import Chart, Line, Spread, markdown, ratios

SVG = "{http://www.w3.org/2000/svg}"


def chart() -> Chart:
    lines = (
        Line("native", {1.0: Spread(200, 180, 240), 128.0: Spread(1000, 900, 1100)}),
        Line("chain of 3 & more", {1.0: Spread(60, 50, 80), 128.0: Spread(410, 400, 500)}),
        Line("chain of 6", {1.0: Spread(30, 20, 40), 128.0: Spread(400, 390, 410)}),
    )
    return Chart("some", "Pods per second", "creators", "pods a second", lines)


def figure(
    subject: str, rate: float, creators: int = 8, replicas: int = 0, refused: int = 0
) -> Figure:
    done = Creation(rate, p50=10.0, p99=20.0, api_cpu=2.0, refused=refused, why="no room")
    return Figure(subject, creators, done, replicas)


def test_a_spread_has_median_minimum_and_maximum() -> None:
    assert str(Spread.of([3.0, 1.0, 400.4])) == "3 (1-400)"


def test_a_ratio_compares_values_of_the_same_round() -> None:
    # The machine was twice as fast in the second round.
    assert ratios([40.0, 80.0], [100.0, 200.0]) == Spread(0.4, 0.4, 0.4)


def test_a_table_is_markdown() -> None:
    assert markdown(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_a_chart_survives_json() -> None:
    assert Chart.from_json(json.loads(json.dumps(chart().to_json()))) == chart()


def test_an_svg_has_lines_whiskers_and_names() -> None:
    root = ElementTree.fromstring(svg.draw(chart()))
    assert len(root.findall(f"{SVG}polyline")) == 3
    assert len([each for each in root.findall(f"{SVG}line") if each.get("class") != "g"]) == 6
    written = [each.text for each in root.findall(f"{SVG}text")]
    assert {"Pods per second", "chain of 3 & more", "creators", "128"} <= set(written)


def test_names_of_near_lines_do_not_overlap() -> None:
    root = ElementTree.fromstring(svg.draw(chart()))
    named = [each for each in root.findall(f"{SVG}text") if each.get("class", "").startswith("n")]
    heights = sorted(float(each.get("y", "")) for each in named)
    assert all(below - above >= 16 for above, below in pairwise(heights))


def test_an_svg_is_the_same_for_the_same_figures() -> None:
    assert svg.draw(chart()) == svg.draw(chart())


@pytest.mark.parametrize(("background", "colours"), [("#ffffff", svg.LIGHT), ("#0d1117", svg.DARK)])
def test_text_is_readable_in_light_and_dark_mode(background: str, colours: tuple[str, ...]) -> None:
    drawn = svg.draw(chart())
    light, _, dark = drawn.partition("@media(prefers-color-scheme:dark)")
    text = light if colours is svg.LIGHT else dark
    (plain,) = re.findall(r"[{;]fill:(#\w{6})}", text.split("fill:none")[0])[:1]
    for colour in (plain, *colours):
        assert colour in text
        assert contrast(colour, background) >= 4.5


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_each_figure_has_a_ratio_to_native() -> None:
    rounds = [
        [figure("native", 100), figure("chain of 3", 50, replicas=2)],
        [figure("native", 200), figure("chain of 3", 80, replicas=2)],
    ]
    text = admission_tables.markdown(rounds)
    assert "| 8 | 150 (100-200) | 65 (50-80); 0.45 |" in text
    assert "| chain of 3, 2 replicas, 8 creators, of native | 0.4 | 0.45 | yes |" in text
    assert "No pod was refused." in text


def test_refused_pods_are_counted_with_a_reason() -> None:
    rounds = [[figure("native", 100), figure("chain of 3", 30, replicas=2, refused=7)]]
    text = admission_tables.markdown(rounds)
    assert "30 (30-30); 0.30; 7 refused" in text
    assert "7 pods were refused; the first: `no room`" in text
    assert "| 0.4 | 0.3 | no |" in text


def test_a_section_replaces_the_old_section() -> None:
    page = put_section("# Performance\n\nBy hand.\n", "admission", "first")
    page = put_section(page, "agent", "other")
    page = put_section(page, "admission", "second, with \\1")
    assert "first" not in page
    assert page.index("By hand.") < page.index("second, with \\1") < page.index("other")
