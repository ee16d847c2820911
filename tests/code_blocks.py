"""The command blocks of a page of docs/, with the expected output."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

#: The first line of a block that no test runs.
REAL_CLUSTER: Final = "# Needs a real cluster"
_BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """A block of shell commands: the line number in the page, the text, the expected output."""

    line: int
    commands: str
    printed: str
    """Empty if the page shows no output."""

    @property
    def needs_real_cluster(self) -> bool:
        return self.commands.startswith(REAL_CLUSTER)


def steps(page: str) -> list[Step]:
    """Each ``sh`` block, with the ``text`` block that follows it."""
    found: list[Step] = []
    for match in _BLOCK.finditer(page):
        kind, text = match.groups()
        line = page.count("\n", 0, match.start()) + 1
        if kind == "sh":
            found.append(Step(line, text, ""))
        elif kind == "text" and found:
            found[-1] = Step(found[-1].line, found[-1].commands, text)
    return found


def words(text: str) -> str:
    """``text`` without line breaks, because a page wraps long lines and a terminal does not."""
    return " ".join(text.split())
