"""The command line of ``kubectl hugetlb``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from hugetlb_quota.plugin.problem import Exit, Problem

PROGRAM: Final = "kubectl hugetlb"
FORMATS: Final = ("table", "wide", "json", "yaml")
KINDS: Final = {
    "po": "pod",
    "pods": "pod",
    "deploy": "deployment",
    "deployments": "deployment",
    "sts": "statefulset",
    "statefulsets": "statefulset",
    "ds": "daemonset",
    "daemonsets": "daemonset",
    "rs": "replicaset",
    "replicasets": "replicaset",
    "jobs": "job",
    "cj": "cronjob",
    "cronjobs": "cronjob",
}
SHELLS: Final = ("bash", "zsh", "fish")

_EXITS: Final = """exit codes:
  0  done; all is well
  1  explain: the pod would be refused; check: something is broken;
     uninstall: a controller leads still, or the answer was no
  2  the command line or the manifest is wrong
  3  no such quota, pod or workload
  4  no cluster, or it can't be reached
  5  a right is missing: nothing can be shown, or check could not look at everything
  6  hugetlb-quota is not installed in the cluster
  7  check: something deserves a look

A QUOTA is NAME or NAMESPACE/NAME. Without -n, all namespaces are shown, and a name without a
namespace is looked for in the namespace of the context."""


def parser() -> argparse.ArgumentParser:
    """The parser; each command takes the common options after it too."""
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Shows huge page quotas, who fills them, and whether all is well.",
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_common()],
    )
    top.add_argument("--version", action="store_true", help="print the version, and end")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, summary: str, *, common: bool = True) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary,
            allow_abbrev=False,
            parents=[_common()] if common else [],
        )

    tree = command("tree", "Show the forest of quotas, with a bar for what fills each.")
    tree.add_argument("quota", nargs="?", metavar="QUOTA", help="only this one, and all below it")
    tree.add_argument("-w", "--watch", action="store_true", help="draw anew at every change")
    what = command("top", "Show pods or nodes by the huge pages they use.")
    what.add_argument("what", nargs="?", choices=("pods", "nodes"), default="pods", help="of what")
    files = command("files", "Show the files in which pods that are gone left huge pages.")
    files.add_argument("--all", action="store_true", help="files of living pods and the system too")
    who = command("who", "Show the pods, files and reservations that fill a quota.")
    who.add_argument("quota", metavar="QUOTA", help="its name")
    explain = command(
        "explain", "Tell whether a pod would be admitted, and what would make it fit."
    )
    explain.add_argument("kind", nargs="?", metavar="KIND", help="pod, deployment, job, ...")
    explain.add_argument("name", nargs="?", metavar="NAME", help="its name")
    explain.add_argument("-f", "--filename", metavar="FILE", help="a manifest; - is standard input")
    command("check", "Look whether all of hugetlb-quota is there and works.")
    uninstall = command(
        "uninstall", "Take the operator's finalizer off all quotas, where the operator is gone."
    )
    uninstall.add_argument("-y", "--yes", action="store_true", help="do not ask")
    uninstall.add_argument("--dry-run", action="store_true", help="only say what would be done")
    completion = command("completion", "Print the completion script of a shell.", common=False)
    completion.add_argument("shell", choices=SHELLS, help="whose")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["__complete"]:
        from hugetlb_quota.plugin.completion import complete

        return complete(words[1:])
    try:
        return _run(parse(words))
    except Problem as problem:
        print(problem, file=sys.stderr)
        return problem.code
    except BrokenPipeError:
        # Who read it has read enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.DONE
    except KeyboardInterrupt:
        return Exit.DONE


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options in ``words``, with the common ones filled in.

    :raises Problem: when they contradict each other; SystemExit is argparse's.
    """
    options = parser().parse_args(words)
    given = vars(options)
    for name, default in (
        *(("namespace", None), ("all_namespaces", False), ("context", None)),
        *(("kubeconfig", None), ("output", "table")),
    ):
        given.setdefault(name, default)
    if options.all_namespaces and options.namespace:
        raise Problem(Exit.USAGE, "-n and -A contradict each other; leave one of them out.")
    if options.command == "explain":
        _settle_explain(options)
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
        from hugetlb_quota.plugin.completion import script

        print(script(options.shell), end="")
        return Exit.DONE
    # Here begins what takes time.
    import asyncio
    import logging

    from hugetlb_quota.plugin import commands

    # What matters is told in a sentence; a library's log would stand beside it.
    logging.getLogger().addHandler(logging.NullHandler())
    return asyncio.run(commands.run(options))


def _settle_explain(options: argparse.Namespace) -> None:
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
        known = ", ".join(dict.fromkeys(KINDS.values()))
        raise Problem(Exit.USAGE, f"{options.kind} is no kind that makes pods; known are {known}.")


def _common() -> argparse.ArgumentParser:
    """The options that stand before and after the command; not given is not set."""
    common = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    group = common.add_argument_group("common options")
    group.add_argument("-n", "--namespace", metavar="NAMESPACE", help="only of this namespace")
    group.add_argument("-A", "--all-namespaces", action="store_true", help="of all; the default")
    group.add_argument("--context", metavar="NAME", help="a context of the kubeconfig")
    group.add_argument("--kubeconfig", metavar="FILE", help="in the place of $KUBECONFIG")
    group.add_argument(
        *("-o", "--output"),
        choices=FORMATS,
        metavar="FORMAT",
        help="table (the default), wide, json or yaml",
    )
    return common
