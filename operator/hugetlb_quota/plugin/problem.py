"""The exit codes of the plugin, and the error that ends a command."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """The exit codes; docs/kubectl-hugetlb.md lists them for users."""

    DONE = 0
    #: ``explain``: the pod would be refused. ``check``: something is broken. ``uninstall``: the
    #: operator is installed, or the answer was no.
    REFUSED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    FORBIDDEN = 5
    NOT_INSTALLED = 6
    #: ``check``: there is a warning, and nothing is broken.
    WARNING = 7


class Problem(Exception):
    """A command is not possible: one sentence with the reason and the remedy, and an exit code."""

    def __init__(self, code: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def not_found(
    what: str,
    name: str,
    existing: Iterable[str],
    where: str = "",
    code: Exit = Exit.NOT_FOUND,
    *,
    have: str = "",
) -> Problem:
    """The problem that there is no ``what`` called ``name``; it suggests similar names.

    :param existing: the names that exist.
    :param where: the place of the existing names, such as " in namespace x".
    :param have: the words before the list of the existing names, such as "the kubeconfig has: ".
    """
    names = sorted(existing)
    # Compare the last part too: the name may be right, and only the namespace is wrong.
    ends = {each.rpartition("/")[2]: each for each in reversed(names)}
    near = difflib.get_close_matches(name, names, n=3)
    last = name.rpartition("/")[2]
    near += [ends[each] for each in difflib.get_close_matches(last, ends, n=3, cutoff=0.7)]
    near = list(dict.fromkeys(near))[:3]
    if near:
        hint = f"; did you mean {' or '.join(near)}?"
    elif names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        have = have or ("there is " if len(names) == 1 else "there are ")
        hint = f"; {have}{shown}."
    else:
        hint = f"; there is no {what} at all{where}."
    return Problem(code, f"There is no {what} {name}{hint}")
