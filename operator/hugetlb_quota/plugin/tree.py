"""``tree``: the forest of quotas, each quota with a bar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.page_size import PageSize
from hugetlb_quota.plugin.bars import percent
from hugetlb_quota.plugin.table import (
    BOLD,
    RED,
    Cell,
    Content,
    Screen,
    bar,
    legend,
    nearness,
    number,
    table,
)
from hugetlb_quota.plugin.world import World, words
from hugetlb_quota.quantity import render

#: The number of cells of a bar, at least and at most. More cells would add nothing.
_SHORTEST: Final = 8
_LONGEST: Final = 40


@dataclass(frozen=True, slots=True)
class Branch:
    """A quota and the quotas below. ``hidden``: the parent, if the user may not see it."""

    key: QuotaKey
    children: tuple[Branch, ...]
    hidden: str = ""


def branches(
    world: World, top: QuotaKey | None = None, namespace: str | None = None
) -> list[Branch]:
    """The trees of the forest.

    :param top: only this quota and the quotas below.
    :param namespace: only quotas of this namespace, and the quotas above and below them.
    """
    drawn: set[QuotaKey] = set()
    if top is not None:
        return [_branch(world, top, drawn, None)]
    trees = [_branch(world, key, drawn, namespace) for key in _roots(world)]
    # A cycle has no root: begin at any quota of the cycle.
    trees.extend(
        _branch(world, key, drawn, namespace) for key in sorted(world.quotas) if key not in drawn
    )
    if namespace is None:
        return trees
    return [tree for tree in trees if _touches(tree, namespace)]


def document(world: World, trees: Iterable[Branch]) -> list[dict[str, Any]]:
    """The trees as plain data, each quota with its children."""
    return [_node(world, tree) for tree in trees]


def picture(world: World, trees: Iterable[Branch], screen: Screen, *, wide: bool = False) -> str:
    """The trees for a terminal."""
    lines = [line for tree in trees for line in _lines(world, tree, screen)]
    if not lines:
        return ""
    headers = ["QUOTA", "SIZE", "USE", "", "USED", "HARD"]
    if wide:
        headers += ["PODS", "RETAINED", "RESERVED", "FREE"]
    headers.append("STATE" if any(line.state for line in lines) else "")
    bare = Screen(plain=screen.plain)  # without colours, because they have no width
    fixed = table(headers, [line.row(_SHORTEST, bare, wide=wide) for line in lines], bare)
    spare = screen.width - max(map(len, fixed.splitlines()))
    width = max(_SHORTEST, min(_LONGEST, _SHORTEST + spare))
    rows = [line.row(width, screen, wide=wide) for line in lines]
    return f"{table(headers, rows, screen)}\n\n{legend(screen)}"


def _roots(world: World) -> list[QuotaKey]:
    return sorted(key for key in world.quotas if len(world.forest.attached(key)) == 1)


def _branch(world: World, key: QuotaKey, drawn: set[QuotaKey], namespace: str | None) -> Branch:
    drawn.add(key)
    below = sorted(quota.key for quota in world.forest.children(key) if quota.key not in drawn)
    children = tuple(_branch(world, each, drawn, namespace) for each in below)
    if namespace is not None and key.namespace != namespace:
        children = tuple(each for each in children if _touches(each, namespace))
    parent = world.quotas[key].quota.parent
    hidden = str(parent) if parent is not None and parent not in world.quotas else ""
    return Branch(key, children, hidden)


def _touches(branch: Branch, namespace: str) -> bool:
    return branch.key.namespace == namespace or any(
        _touches(each, namespace) for each in branch.children
    )


def _node(world: World, branch: Branch) -> dict[str, Any]:
    quota = world.quotas[branch.key]
    counter, parent = quota.counter, quota.quota.parent
    used = counter.used
    return {
        "namespace": branch.key.namespace,
        "name": branch.key.name,
        "parent": None if parent is None else {"namespace": parent.namespace, "name": parent.name},
        "hard": counter.hard.to_resources(),
        "used": used.to_resources(),
        "pods": counter.pods.named(used).to_resources(),
        "retained": counter.retained.named(used).to_resources(),
        "reserved": counter.reserved.named(used).to_resources(),
        "state": list(words(quota)),
        "conditions": [each.to_json() for each in quota.conditions],
        "children": [_node(world, each) for each in branch.children],
    }


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the picture: a quota and a page size; None if the quota has no page size."""

    name: str
    size: PageSize | None
    parts: tuple[int, int, int]
    hard: int | None
    state: str

    def row(self, width: int, screen: Screen, *, wide: bool) -> list[Content]:
        used = sum(self.parts)
        left: list[Content] = [
            Cell(self.name, (BOLD,)),
            "" if self.size is None else str(self.size),
        ]
        if self.size is None:
            left += ["", number(""), number(""), number("")]
        elif self.hard is None:
            left += ["", number(""), number(render(used)), number("unlimited")]
        else:
            part = percent(used, self.hard)
            left += [
                bar(self.parts, self.hard, width, screen),
                number("-" if part is None else f"{part}%", nearness(part)),
                number(render(used)),
                number(render(self.hard)),
            ]
        if wide:
            left += [number("" if self.size is None else render(part)) for part in self.parts]
            free = "" if self.hard is None else render(max(0, self.hard - used))
            left.append(number(free))
        return [*left, Cell(self.state, (RED,))]


def _lines(
    world: World, branch: Branch, screen: Screen, first: str = "", below: str = ""
) -> Iterator[_Line]:
    quota = world.quotas[branch.key]
    counter = quota.counter
    child, last, under_child, under_last = screen.branches
    state = list(words(quota))
    if branch.hidden and "ParentNotFound" not in state:
        state.append(f"below {branch.hidden}")
    sizes: list[PageSize | None] = [*counter.used] or [None]
    trunk = below + (under_child if branch.children else under_last) if len(sizes) > 1 else ""
    for i, size in enumerate(sizes):
        yield _Line(
            name=f"{first}{branch.key}" if not i else trunk.rstrip(),
            size=size,
            parts=(0, 0, 0)
            if size is None
            else (counter.pods.of(size), counter.retained.of(size), counter.reserved.of(size)),
            hard=None if size is None or size not in counter.hard else counter.hard[size],
            state=", ".join(state) if not i else "",
        )
    for each in branch.children:
        is_last = each is branch.children[-1]
        yield from _lines(
            world,
            each,
            screen,
            below + (last if is_last else child),
            below + (under_last if is_last else under_child),
        )
