"""How the plugin ends: its exit codes, and the sentence when it can't do what was asked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """The exit codes; docs/kubectl-hugetlb.md tells them to users."""

    DONE = 0
    #: ``explain``: the pod would be refused. ``check``: something is broken. ``uninstall``: a
    #: controller leads still, or the answer was no.
    REFUSED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    FORBIDDEN = 5
    NOT_INSTALLED = 6
    #: ``check``: something deserves a look, and nothing is broken.
    WARNING = 7


class Problem(Exception):
    """Why nothing can be shown: one sentence with the remedy, and how to exit."""

    def __init__(self, code: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def not_found(
    what: str, name: str, known: Iterable[str], where: str = "", code: Exit = Exit.NOT_FOUND
) -> Problem:
    """There is no ``what`` called ``name``; the sentence says which names are near.

    :param where: the ``known`` ones are from, as " in namespace x".
    """
    names = sorted(known)
    # The last part too: who names a quota of another namespace knows its name well.
    ends = {each.rpartition("/")[2]: each for each in reversed(names)}
    near = difflib.get_close_matches(name, names, n=3)
    last = name.rpartition("/")[2]
    near += [ends[each] for each in difflib.get_close_matches(last, ends, n=3, cutoff=0.7)]
    near = list(dict.fromkeys(near))[:3]
    if near:
        hint = f"; did you mean {' or '.join(near)}?"
    elif names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        hint = f"; there are {shown}."
    else:
        hint = f"; there is no {what} at all{where}."
    return Problem(code, f"There is no {what} {name}{hint}")
