"""The commands: each reads the cluster, calls pure functions, and shows the result."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.plugin import (
    check,
    explain_command,
    facts_reader,
    files,
    findings,
    top,
    tree,
    uninstall_command,
    who,
)
from hugetlb_quota.plugin.cluster import Cluster, split_name
from hugetlb_quota.plugin.output import screen, show, show_data, wants_data
from hugetlb_quota.plugin.problem import Exit, Problem, not_found
from hugetlb_quota.plugin.world import World

_CLEAR: Final = "\x1b[H\x1b[2J\x1b[3J"


async def run(options: argparse.Namespace) -> Exit:
    """Run the command that the command line names.

    :raises Problem: when the command is not possible.
    """
    async with Cluster.open(options.kubeconfig, options.context, options.namespace) as cluster:
        code = await _COMMANDS[options.command](cluster, options)
        # `check` shows in its findings what it could not read.
        for what in cluster.unseen if options.command != "check" else ():
            print(f"Not seen: {what}.", file=sys.stderr)
        return code


async def _tree(cluster: Cluster, options: argparse.Namespace) -> Exit:
    if options.watch and wants_data(options):
        raise Problem(Exit.USAGE, "--watch draws for people; remove -o json or -o yaml.")
    if not options.watch:
        _show_tree(await cluster.world(), cluster, options)
        return Exit.DONE
    async with contextlib.aclosing(cluster.watch()) as worlds:
        async for world in worlds:
            print(_CLEAR if sys.stdout.isatty() else f"{_now():%H:%M:%S}")
            _show_tree(world, cluster, options)
            if cluster.trouble:
                print(f"Not up to date: {cluster.trouble}")
            sys.stdout.flush()
    return Exit.DONE


def _show_tree(world: World, cluster: Cluster, options: argparse.Namespace) -> None:
    key = _key(options.quota, world, cluster) if options.quota else None
    namespace = None if key else options.namespace
    branches = tree.branches(world, key, namespace)
    wide = options.output == "wide"
    if not show_data(options, {"items": tree.document(world, branches)}):
        where = f" in namespace {namespace}" if namespace else ""
        show(
            tree.picture(world, branches, screen(), wide=wide)
            or f"There is no HugeTLBQuota{where}; kubectl explain htq.spec says how to make one."
        )


async def _top(cluster: Cluster, options: argparse.Namespace) -> Exit:
    return await (_top_pods if options.what == "pods" else _top_nodes)(cluster, options)


async def _top_pods(cluster: Cluster, options: argparse.Namespace) -> Exit:
    world = await cluster.world(pods=True, reports=True)
    pods = top.pods(world, options.namespace)
    if not show_data(options, {"items": top.pods_document(pods)}):
        table = top.pods_table(pods, screen(), wide=options.output == "wide")
        seen = " that you may see" if cluster.unseen else ""
        show(table if pods else f"No pod{seen}{_where(options)} asks for huge pages.")
    return Exit.DONE


async def _top_nodes(cluster: Cluster, options: argparse.Namespace) -> Exit:
    reports = await cluster.reports()
    if reports is None:
        raise Problem(Exit.FORBIDDEN, f"Nothing can be shown: {cluster.unseen.pop()}.")
    if not show_data(options, {"items": top.nodes_document(reports)}):
        table = top.nodes_table(reports, _now(), screen(), wide=options.output == "wide")
        show(table if reports else "No node reports; see kubectl hugetlb check.")
    return Exit.DONE


async def _files(cluster: Cluster, options: argparse.Namespace) -> Exit:
    world = await cluster.world(pods=True, reports=True)
    if world.reports is None:
        raise Problem(Exit.FORBIDDEN, f"Nothing can be shown: {cluster.unseen[0]}.")
    held = files.held_files(world, options.namespace, every=options.all)
    if not show_data(options, {"items": files.document(held)}):
        of = "" if options.all else " of a pod that is gone"
        none = f"No file{_where(options)} holds huge pages{of}."
        wide = options.output == "wide"
        show(files.files_table(held, _now(), screen(), wide=wide) if held else none)
    return Exit.DONE


async def _who(cluster: Cluster, options: argparse.Namespace) -> Exit:
    world = await cluster.world(pods=True, reports=True)
    quota = world.quotas[_key(options.quota, world, cluster)]
    holders = who.holders(world, quota)
    if not show_data(options, who.document(quota, holders)):
        show(who.picture(quota, holders, _now(), screen(), wide=options.output == "wide"))
    return Exit.DONE


async def _check(cluster: Cluster, options: argparse.Namespace) -> Exit:
    found = check.check(await facts_reader.read(cluster))
    if not show_data(options, findings.document(found)):
        show(findings.picture(found, screen()))
    return findings.exit_code(found)


_COMMANDS: Final[dict[str, Callable[[Cluster, argparse.Namespace], Awaitable[Exit]]]] = {
    "tree": _tree,
    "top": _top,
    "files": _files,
    "who": _who,
    "explain": explain_command.run,
    "check": _check,
    "uninstall": uninstall_command.run,
}


def _key(text: str, world: World, cluster: Cluster) -> QuotaKey:
    """The quota that the command line names, as NAME or NAMESPACE/NAME.

    :raises Problem: when there is no quota of that name.
    """
    key = QuotaKey(*split_name(text, cluster.namespace))
    if key not in world.quotas:
        raise not_found("HugeTLBQuota", str(key), map(str, world.quotas))
    return key


def _where(options: argparse.Namespace) -> str:
    return f" of namespace {options.namespace}" if options.namespace else ""


def _now() -> datetime:
    return datetime.now(UTC)
