"""The command line of ``kubectl hugetlb``."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from hugetlb_quota.plugin.completion import COMMANDS, command_of, complete, script
from hugetlb_quota.plugin.problem import Exit, Problem
from hugetlb_quota.plugin.words import FORMATS, KINDS, SHELLS

PROGRAM: Final = "kubectl hugetlb"

_EXITS: Final = """exit codes:
  0  done; all is well
  1  explain: the pod would be refused; check: something is broken;
     uninstall: the operator is installed, or the answer was no
  2  the command line or the manifest is wrong
  3  no such quota, pod or workload
  4  no cluster is configured, or the cluster can't be reached
  5  a right is missing: nothing can be shown, or check could not check everything
  6  hugetlb-quota is not installed in the cluster
  7  check: there is a warning

A QUOTA is NAME or NAMESPACE/NAME. Without -n, commands show all namespaces, and look up a bare
NAME in the namespace of the context."""


class _Command(argparse.ArgumentParser):
    """The parser of one command. Options may stand between its arguments, as in kubectl."""

    _is_intermixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse the words after the command.

        :raises SystemExit: when argparse refuses the words; the usage is that of the command.
        """
        if self._is_intermixing:
            result: tuple[Any, list[str]] = super().parse_known_args(args, namespace)
            return result
        # parse_known_intermixed_args calls this method: for the options, then for the arguments.
        self._is_intermixing = True
        try:
            parsed, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed, []


def parser() -> argparse.ArgumentParser:
    """The parser. The common options may stand before or after the command."""
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Shows huge page quotas, the pods and files that fill them, and faults.",
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_common()],
    )
    top.add_argument("--version", action="store_true", help="print the version, and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Command)

    def command(name: str, summary: str, *, common: bool = True) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary,
            allow_abbrev=False,
            parents=[_common()] if common else [],
        )

    tree = command("tree", "Show the forest of quotas, with a bar for the use of each.")
    tree.add_argument(
        "quota", nargs="?", metavar="QUOTA", help="show only this quota and all quotas below"
    )
    tree.add_argument("-w", "--watch", action="store_true", help="draw again at every change")
    what = command("top", "Show pods or nodes, and the huge pages that they use.")
    what.add_argument(
        "what", nargs="?", choices=("pods", "nodes"), default="pods", help="what to show"
    )
    files = command("files", "Show the files in which gone pods left huge pages.")
    files.add_argument(
        "--all", action="store_true", help="also show files of living pods and of the system"
    )
    who = command("who", "Show the pods, files and reservations that fill a quota.")
    who.add_argument("quota", metavar="QUOTA", help="the name of the quota")
    explain = command(
        "explain", "Explain whether a pod would be admitted, and what would make it fit."
    )
    explain.add_argument("kind", nargs="?", metavar="KIND", help="pod, deployment, job, ...")
    explain.add_argument("name", nargs="?", metavar="NAME", help="the name of the object")
    explain.add_argument("-f", "--filename", metavar="FILE", help="a manifest; - is standard input")
    command("check", "Check that all parts of hugetlb-quota are installed and work.")
    uninstall = command(
        "uninstall", "Remove the operator's finalizer from all quotas, after the operator is gone."
    )
    uninstall.add_argument("-y", "--yes", action="store_true", help="do not ask")
    uninstall.add_argument(
        "--dry-run", action="store_true", help="change nothing, only show the plan"
    )
    completion = command("completion", "Print the completion script of a shell.", common=False)
    completion.add_argument("shell", choices=SHELLS, help="the shell")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["__complete"]:
        return complete(words[1:])
    try:
        return _run(parse(words))
    except Problem as problem:
        print(problem, file=sys.stderr)
        return problem.code
    except BrokenPipeError:
        # The reader of the output is gone. Python would report that again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except KeyboardInterrupt:
        return Exit.DONE


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the options in ``words``, and set defaults for common options.

    :raises Problem: when there is no such command, or options contradict each other.
    :raises SystemExit: when argparse refuses the words.
    """
    command = command_of(words)
    if command and command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS)
        hint = f"did you mean {' or '.join(near)}?" if near else f"use {', '.join(COMMANDS)}."
        raise Problem(Exit.USAGE, f"There is no command {command}; {hint}")
    options = parser().parse_args(words)
    given = vars(options)
    for name, default in (
        *(("namespace", None), ("all_namespaces", False), ("context", None)),
        *(("kubeconfig", None), ("output", "table")),
    ):
        given.setdefault(name, default)
    if options.all_namespaces and options.namespace:
        raise Problem(Exit.USAGE, "-n and -A contradict each other; remove one of them.")
    if options.command == "explain":
        _complete_explain(options)
    return options


def _run(options: argparse.Namespace) -> int:
    if options.version:
        from importlib.metadata import version

        print(f"kubectl-hugetlb {version('hugetlb-quota')}")
        return Exit.DONE
    if options.command is None:
        parser().print_help()
        return Exit.USAGE
    if options.command == "completion":
        print(script(options.shell), end="")
        return Exit.DONE
    # From here on, imports take time.
    import asyncio
    import logging

    from hugetlb_quota.plugin import commands

    # The plugin says errors in sentences. Libraries must not log the same errors.
    logging.getLogger().addHandler(logging.NullHandler())
    return asyncio.run(commands.run(options))


def _complete_explain(options: argparse.Namespace) -> None:
    """Check the arguments of ``explain``, and set ``kind`` to its long, singular name."""
    if options.filename:
        if options.kind:
            raise Problem(Exit.USAGE, "Name either a pod or -f FILE, not both.")
        return
    if options.kind and not options.name:
        kind, slash, name = options.kind.partition("/")
        options.kind, options.name = (kind, name) if slash else (options.kind, None)
    if not options.kind or not options.name:
        raise Problem(Exit.USAGE, "Name what to explain: `explain pod NAME`, or `explain -f FILE`.")
    options.kind = KINDS.get(options.kind.lower(), options.kind.lower())
    if options.kind not in KINDS.values():
        kinds = ", ".join(dict.fromkeys(KINDS.values()))
        raise Problem(Exit.USAGE, f"{options.kind} is not a kind that makes pods ({kinds}).")


def _common() -> _Command:
    """The common options. An option that is not given sets no attribute."""
    common = _Command(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    group = common.add_argument_group("common options")
    group.add_argument(
        *("-n", "--namespace"),
        metavar="NAMESPACE",
        help="show only this namespace; tree shows also the quotas above and below",
    )
    group.add_argument(
        "-A", "--all-namespaces", action="store_true", help="show all namespaces; the default"
    )
    group.add_argument("--context", metavar="NAME", help="a context of the kubeconfig")
    group.add_argument("--kubeconfig", metavar="FILE", help="use this file instead of $KUBECONFIG")
    group.add_argument(
        *("-o", "--output"),
        choices=FORMATS,
        metavar="FORMAT",
        help="table (the default), wide, json or yaml",
    )
    return common
