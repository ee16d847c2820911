"""Report admission's figures: tables, charts, and the aims that were reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks import report
from benchmarks.pods import Creation
from benchmarks.report import Chart, Line, Spread, each, ratios


@dataclass(frozen=True)
class Figure:
    """One measurement and its subject.

    `turns`: the replicas were called in turn. `watches`: the number of open watches of `nodes`.
    `rest`: the cores that the API server used with these watches before the creation.
    """

    subject: str
    creators: int
    done: Creation
    replicas: int = 0
    turns: bool = False
    nodes: int = 0
    watches: int = 0
    rest: float = 0.0

    @property
    def column(self) -> tuple[str, int, bool]:
        """The column of the table: everything except the number of creators."""
        return self.subject, self.replicas, self.turns


Rounds = Sequence[Sequence[Figure]]
Column = tuple[str, int, bool]
NATIVE: Column = ("native", 0, False)
PLAIN: Column = ("plain, no operator", 0, False)
PLAIN_WITH: Column = ("plain, operator", 0, False)


class _Found:
    """The figures of all rounds, by column and creators."""

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = len(rounds)
        self._by_place: dict[tuple[Column, int], list[Figure]] = {}
        self.watched: dict[int, list[Figure]] = {}
        for figure in (figure for each_round in rounds for figure in each_round):
            if figure.subject == "watched":
                self.watched.setdefault(figure.nodes, []).append(figure)
            else:
                place = figure.column, figure.creators
                self._by_place.setdefault(place, []).append(figure)

    @property
    def columns(self) -> list[Column]:
        """All columns, in the order of their measurement."""
        return list(dict.fromkeys(column for column, _ in self._by_place))

    @property
    def creators(self) -> list[int]:
        return sorted({creators for _, creators in self._by_place})

    def get(self, column: Column, creators: int) -> list[Figure]:
        """The figure of each round; empty if there was no measurement."""
        return self._by_place.get((column, creators), [])

    def ratio(self, column: Column, creators: int, to: Column, to_creators: int = 0) -> Spread:
        """The ratio of pods per second to those of another column in the same round."""
        ours, theirs = self.get(column, creators), self.get(to, to_creators or creators)
        return ratios([one.done.pods_per_second for one in ours],
                      [one.done.pods_per_second for one in theirs])  # fmt: skip


def markdown(rounds: Rounds) -> str:
    """All tables as Markdown."""
    found = _Found(rounds)
    return "\n\n".join(_parts(found))


def charts(rounds: Rounds) -> list[Chart]:
    """The charts of pods per second: one by the length of the chain, one by the replicas."""
    found = _Found(rounds)
    by_chain, by_way = _by_chain(found), _by_way(found)
    first, other = by_chain[1], by_way[1]
    title = f"Pods created per second, {_way(first[1:])}"
    return [
        _chart(found, "admission-chains", title, by_chain),
        _chart(found, "admission-replicas", f"Pods created per second, {other[0]}", by_way),
    ]


def _by_chain(found: _Found) -> list[Column]:
    """The columns native and each chain, in the chart's way or else in the last way."""
    ours = [column for column in found.columns if column[0].startswith("chain")]
    ways = [column[1:] for column in ours]
    way = (2, False) if (2, False) in ways else ways[-1]
    return [NATIVE, *(column for column in ours if column[1:] == way)]


def _by_way(found: _Found) -> list[Column]:
    """The columns native and each way, with a chain of 3 or else the last chain."""
    ours = [column for column in found.columns if column[0].startswith("chain")]
    chains = [column[0] for column in ours]
    chain = "chain of 3" if "chain of 3" in chains else chains[-1]
    return [NATIVE, *(column for column in ours if column[0] == chain)]


def _chart(found: _Found, file: str, title: str, columns: list[Column]) -> Chart:
    lines = tuple(
        Line(
            _short_name(column, columns),
            {
                float(creators): each(figures, lambda one: one.done.pods_per_second)
                for creators in found.creators
                if (figures := found.get(column, creators))
            },
        )
        for column in columns
    )
    return Chart(file, title, "creators at the same time", "pods per second", lines)


def _parts(found: _Found) -> Iterator[str]:
    yield (
        f"Medians of {found.rounds} rounds, with minimum and maximum. Native is a ResourceQuota"
        " on the same pods; the ratio is to native in the same round."
    )
    by_chain, by_way = _by_chain(found), _by_way(found)
    yield f"**Pods created per second, {_way(by_chain[1][1:])}**"
    yield _table(found, by_chain, lambda figures, column: _speed(found, figures, column))
    yield f"**Pods created per second, {by_way[1][0]}**"
    yield _table(found, by_way, lambda figures, column: _speed(found, figures, column))
    values: list[tuple[str, Callable[[Creation], float]]] = [
        ("Milliseconds for one pod, p50", lambda done: done.p50),
        ("Milliseconds for one pod, p99", lambda done: done.p99),
        ("CPU of the API server for one pod, milliseconds", lambda done: done.api_cpu),
    ]
    for title, value in values:
        yield f"**{title}, {_way(by_chain[1][1:])}**"
        yield _table(found, by_chain, lambda figures, _: _milliseconds(figures, value))  # noqa: B023
    yield "**Pods that ask for no huge pages: the API server does not call admission**"
    yield _plain(found)
    if found.watched:
        yield "**An admission while nodes watch like agents** (chain of 3)"
        yield _watched(found)
    yield "**Aims**"
    yield aims(found)
    yield _refusals(found)


def _table(
    found: _Found, columns: list[Column], cell: Callable[[list[Figure], Column], str]
) -> str:
    titles = ["creators", *(_short_name(column, columns) for column in columns)]
    rows = [
        [creators, *(cell(found.get(column, creators), column) for column in columns)]
        for creators in found.creators
    ]
    return report.markdown(titles, rows)


def _speed(found: _Found, figures: list[Figure], column: Column) -> str:
    text = str(each(figures, lambda one: one.done.pods_per_second))
    if column != NATIVE:
        text += f"; {found.ratio(column, figures[0].creators, NATIVE).median:.2f}"
    refused = sum(one.done.refused for one in figures)
    return f"{text}; {refused} refused" if refused else text


def _milliseconds(figures: list[Figure], value: Callable[[Creation], float]) -> str:
    return str(each(figures, lambda one: value(one.done)))


def _plain(found: _Found) -> str:
    rows = []
    for creators in found.creators:
        without, with_it = found.get(PLAIN, creators), found.get(PLAIN_WITH, creators)
        if without and with_it:
            rows.append(
                (
                    creators,
                    each(without, lambda one: one.done.pods_per_second),
                    each(with_it, lambda one: one.done.pods_per_second),
                    found.ratio(PLAIN_WITH, creators, PLAIN),
                )
            )
    return report.markdown(("creators", "without operator", "with operator", "ratio"), rows)


def _watched(found: _Found) -> str:
    first = next(iter(found.watched.values()))
    rows = [
        (
            nodes,
            figures[0].watches,
            f"{figures[0].rest:.1%}",
            each(figures, lambda one: one.done.pods_per_second),
            each(figures, lambda one: one.done.api_cpu),
            f"{_middle(figures) / _middle(first):.2f}",
        )
        for nodes, figures in found.watched.items()
    ]
    titles = (
        *("nodes", "watches open", "API server at rest, of a core"),
        *(f"pods per second, {first[0].creators} creators", "CPU ms per pod", "ratio"),
    )
    return report.markdown(titles, rows)


def _middle(figures: list[Figure]) -> float:
    return each(figures, lambda one: one.done.api_cpu).median


def aims(found: _Found) -> str:
    """The aims for which there is a measurement, and whether they were reached."""
    three, six = ("chain of 3", 2, False), ("chain of 6", 2, False)
    rows: list[tuple[object, ...]] = []

    def row(what: str, aim: str, value: float, reached: bool) -> None:
        rows.append((what, aim, f"{value:.3g}", "yes" if reached else "no"))

    for creators in (8, 32, 128):
        if found.get(three, creators):
            ratio = found.ratio(three, creators, NATIVE).median
            row(f"chain of 3, 2 replicas, {creators} creators, of native", "0.4", ratio,
                ratio >= 0.4)  # fmt: skip
        if found.get(three, creators) and found.get(six, creators):
            ratio = found.ratio(six, creators, three).median
            row(f"chain of 6 of a chain of 3, {creators} creators", "0.7", ratio, ratio >= 0.7)
        more = ("chain of 3", 3, False)
        if found.get(more, creators) and found.get(("chain of 3", 1, False), creators):
            ratio = found.ratio(more, creators, ("chain of 3", 1, False)).median
            row(f"3 replicas of 1, {creators} creators", "1", ratio, ratio >= 0.95)
    if found.get(three, 1):
        pairs = list(zip(found.get(three, 1), found.get(NATIVE, 1), strict=True))
        p50 = Spread.of(ours.done.p50 - base.done.p50 for ours, base in pairs).median
        p99 = Spread.of(ours.done.p99 - base.done.p99 for ours, base in pairs).median
        row("added ms at one creator, chain of 3, p50", "< 6", p50, p50 < 6)
        row("added ms at one creator, chain of 3, p99", "< 40", p99, p99 < 40)
    for creators in (128, 512):
        if figures := found.get(three, creators):
            refused = sum(one.done.refused for one in figures)
            row(f"refused, chain of 3, {creators} creators", "0", refused, refused == 0)
    return report.markdown(("what", "aim", "median", "reached"), rows)


def _refusals(found: _Found) -> str:
    figures = [one for column in found.columns for n in found.creators
               for one in found.get(column, n)]  # fmt: skip
    refused = [one for one in figures if one.done.refused]
    if not refused:
        return "No pod was refused."
    total = sum(one.done.refused for one in refused)
    return f"{total} pods were refused; the first: `{refused[0].done.why[:300]}`"


def _way(way: tuple[int, bool]) -> str:
    replicas, turns = way
    return f"{replicas} replica{'s' * (replicas > 1)}{', called in turn' if turns else ''}"


def _short_name(column: Column, among: list[Column]) -> str:
    """The parts of the column's name that differ from the other columns."""
    subject, replicas, turns = column
    others = [each for each in among if each[1]]
    if not replicas:
        return subject
    if len({each[0] for each in others}) == 1 and len(others) > 1:
        return _way((replicas, turns))
    if len({each[1:] for each in others}) == 1:
        return subject
    return f"{subject}, {_way((replicas, turns))}"
