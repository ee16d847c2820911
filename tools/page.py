"""Markdown: tables, and generated parts of pages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table. Cells escape "|", and "<" outside code; line breaks become spaces."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(_cell, cells))} |"

    return "\n".join([line(headers), f"|{'---|' * len(headers)}", *map(line, rows)])


def _cell(text: str) -> str:
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    parts[::2] = [part.replace("<", "\\<") for part in parts[::2]]
    return "`".join(parts)


def put(page: str, part: str, text: str) -> str:
    """Put ``text`` between the two marks of ``part`` on ``page``.

    :raises ValueError: when the page lacks the marks.
    """
    begin, end = f"<!-- begin {part} -->", f"<!-- end {part} -->"
    marked = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not marked.search(page):
        raise ValueError(f"the page has no part between {begin} and {end}.")
    return marked.sub(lambda _: f"{begin}\n{text}\n{end}", page)
