"""The commands: each reads, works out, and gives what is to be shown."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.kube import resources
from hugetlb_quota.kube.resources import Resource
from hugetlb_quota.plugin import check, explain, facts, files, manifest, top, tree, uninstall, who
from hugetlb_quota.plugin.cluster import Cluster
from hugetlb_quota.plugin.problem import Exit, Problem, not_found
from hugetlb_quota.plugin.table import Screen
from hugetlb_quota.plugin.world import World

#: What ``explain`` takes by name: the kind, by its singular and its short name.
WORKLOADS: Final[dict[str, tuple[str, Resource]]] = {
    "pod": ("Pod", resources.PODS),
    "deployment": ("Deployment", resources.DEPLOYMENTS),
    "statefulset": ("StatefulSet", resources.STATEFUL_SETS),
    "daemonset": ("DaemonSet", resources.DAEMON_SETS),
    "replicaset": ("ReplicaSet", resources.REPLICA_SETS),
    "job": ("Job", resources.JOBS),
    "cronjob": ("CronJob", resources.CRON_JOBS),
}
#: Seconds in which a controller that leads renews its Lease twice.
LOOK: Final = 5.0
#: So often quotas are looked through before somebody else is taken to put finalizers on.
_ROUNDS: Final = 10
_CLEAR: Final = "\x1b[H\x1b[2J\x1b[3J"


async def run(options: argparse.Namespace) -> Exit:
    """Do what the command line asks for.

    :raises Problem: when that is not possible.
    """
    async with Cluster.open(options.kubeconfig, options.context, options.namespace) as cluster:
        code = await _COMMANDS[options.command](cluster, options)
        for each in cluster.unseen if options.command != "check" else ():
            print(f"Not seen: {each}.", file=sys.stderr)
        return code


async def _tree(cluster: Cluster, options: argparse.Namespace) -> Exit:
    if options.watch and options.output in ("json", "yaml"):
        raise Problem(Exit.USAGE, "--watch draws for people; leave -o json or yaml out.")
    if not options.watch:
        _show_tree(await cluster.world(), cluster, options)
        return Exit.DONE
    async with contextlib.aclosing(cluster.pictures()) as pictures:
        async for world in pictures:
            print(_CLEAR if sys.stdout.isatty() else f"{_now():%H:%M:%S}")
            _show_tree(world, cluster, options)
            if cluster.trouble:
                print(f"Not up to date: {cluster.trouble}")
            sys.stdout.flush()
    return Exit.DONE


def _show_tree(world: World, cluster: Cluster, options: argparse.Namespace) -> None:
    key = _key(options.quota, world, cluster) if options.quota else None
    namespace = None if key else options.namespace
    found = tree.branches(world, key, namespace)
    wide = options.output == "wide"
    if not _show_data(options, {"items": tree.document(world, found)}):
        where = f" in namespace {namespace}" if namespace else ""
        _show(
            tree.picture(world, found, screen(), wide=wide)
            or f"There is no HugeTLBQuota{where}; docs/quotas.md tells how to make one."
        )


async def _top(cluster: Cluster, options: argparse.Namespace) -> Exit:
    wide = options.output == "wide"
    if options.what == "pods":
        world = await cluster.world(pods=True, reports=True)
        found = top.pods(world, options.namespace)
        if not _show_data(options, {"items": top.pods_document(found)}):
            table = top.pods_table(found, screen(), wide=wide)
            seen = " that you may see" if cluster.unseen else ""
            _show(table if found else f"No pod{seen}{_where(options)} asks for huge pages.")
        return Exit.DONE
    reports = await cluster.reports()
    if reports is None:
        raise Problem(Exit.FORBIDDEN, f"Nothing can be shown: {cluster.unseen.pop()}.")
    if not _show_data(options, {"items": top.nodes_document(reports)}):
        table = top.nodes_table(reports, _now(), screen(), wide=wide)
        _show(table if reports else "No node reports; see kubectl hugetlb check.")
    return Exit.DONE


async def _files(cluster: Cluster, options: argparse.Namespace) -> Exit:
    world = await cluster.world(pods=True, reports=True)
    if world.reports is None:
        raise Problem(Exit.FORBIDDEN, f"Nothing can be shown: {cluster.unseen[0]}.")
    found = files.held_files(world, options.namespace, every=options.all)
    if not _show_data(options, {"items": files.document(found)}):
        wide = options.output == "wide"
        none = f"No file{_where(options)} holds huge pages of a pod that is gone."
        _show(files.files_table(found, _now(), screen(), wide=wide) if found else none)
    return Exit.DONE


async def _who(cluster: Cluster, options: argparse.Namespace) -> Exit:
    world = await cluster.world(pods=True, reports=True)
    quota = world.quotas[_key(options.quota, world, cluster)]
    found = who.holders(world, quota)
    if not _show_data(options, who.document(quota, found)):
        _show(who.picture(quota, found, _now(), screen(), wide=options.output == "wide"))
    return Exit.DONE


async def _explain(cluster: Cluster, options: argparse.Namespace) -> Exit:
    found = await _candidates(cluster, options)
    world = await cluster.world(pods=True, reports=True)
    told = []
    for each in found:
        # As kubectl create does it, a namespace of the command line is the manifest's too.
        namespace = options.namespace or each.namespace or cluster.namespace
        explanation = explain.evaluate(world, each, namespace)
        if explanation.asks or explanation.broken:
            accepted, words = await cluster.try_pod(each.pod, namespace)
            explanation = explain.tried(explanation, accepted, words)
        told.append(explanation)
    if not _show_data(options, {"items": [explain.document(each) for each in told]}):
        _show("\n\n\n".join(explain.picture(each, screen()) for each in told))
    return Exit.REFUSED if any(each.refused for each in told) else Exit.DONE


async def _candidates(cluster: Cluster, options: argparse.Namespace) -> list[manifest.Candidate]:
    if options.filename:
        import yaml

        try:
            text = (
                await asyncio.to_thread(sys.stdin.read)
                if options.filename == "-"
                else await asyncio.to_thread(Path(options.filename).read_text)
            )
            return manifest.candidates(yaml.safe_load_all(text))
        except (OSError, UnicodeError, yaml.YAMLError, manifest.NoPods) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            told = " ".join(str(reason).split())
            raise Problem(
                Exit.USAGE, f"The manifest {options.filename} can't be used: {told}."
            ) from error
    kind, resource = WORKLOADS[options.kind]
    namespace, name = _split(options.name, cluster.namespace)
    raw = await cluster.workload(resource, kind, name, namespace)
    return [manifest.candidate(raw, kind)]


async def _check(cluster: Cluster, options: argparse.Namespace) -> Exit:
    found = check.findings(await facts.read(cluster))
    if not _show_data(options, check.document(found)):
        _show(check.picture(found, screen()))
    return check.exit_code(found)


async def _uninstall(cluster: Cluster, options: argparse.Namespace) -> Exit:
    told = options.output in ("json", "yaml")
    left = await facts.read_left(cluster, options.namespace)
    if not told:
        _show(uninstall.plan(left, screen()))
    let_go: list[str] = []
    if left.guarded and not options.dry_run:
        await _check_nobody_leads(cluster)
        if not options.yes and not await _agrees(f"Take it off {cluster.server}?"):
            return Exit.REFUSED
        let_go, left = await _let_go(cluster, options.namespace)
    if not _show_data(options, uninstall.document(left, let_go)):
        if let_go:
            quotas = "1 quota has" if len(let_go) == 1 else f"{len(let_go)} quotas have"
            _show(f"{quotas} no finalizer of the operator's any more.")
        _show(f"\n{uninstall.rest(left)}")
    return Exit.DONE


async def _check_nobody_leads(cluster: Cluster) -> None:
    """See that no controller runs, who would put the finalizers back.

    :raises Problem: when one does.
    """
    before = await facts.leases(cluster)
    if any(each["spec"].get("holderIdentity") for each in before):
        print(f"Looking for {LOOK:g} s whether a controller leads.", file=sys.stderr)
        await asyncio.sleep(LOOK)
        if leader := uninstall.leader(before, await facts.leases(cluster)):
            raise Problem(
                Exit.REFUSED,
                f"{leader} leads: hugetlb-quota is installed, and would put the finalizers back;"
                " use helm uninstall, which takes them off itself, or end the controllers first.",
            )


async def _let_go(cluster: Cluster, namespace: str | None) -> tuple[list[str], uninstall.Left]:
    """Take the finalizers off; of which quotas, and what is left."""
    let_go: dict[str, None] = {}
    for _ in range(_ROUNDS):
        left = await facts.read_left(cluster, namespace)
        if not left.guarded:
            return list(let_go), left
        for each in left.guarded:
            if await cluster.let_go(each):
                let_go["{namespace}/{name}".format_map(each["metadata"])] = None
    raise Problem(
        Exit.REFUSED,
        "Finalizers come back, or quotas change all the time: see whether a controller runs"
        " (kubectl get pods -A -l app.kubernetes.io/component=controller), and end it.",
    )


async def _agrees(question: str) -> bool:
    """Ask the user.

    :raises Problem: when there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise Problem(Exit.USAGE, "There is no terminal to ask at; say --yes, or --dry-run.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = await asyncio.to_thread(sys.stdin.readline)
    return answer.strip().lower() in ("y", "yes")


_COMMANDS: Final[dict[str, Callable[[Cluster, argparse.Namespace], Awaitable[Exit]]]] = {
    "tree": _tree,
    "top": _top,
    "files": _files,
    "who": _who,
    "explain": _explain,
    "check": _check,
    "uninstall": _uninstall,
}


def screen() -> Screen:
    """What standard output is: a terminal with its width and colours, or neither."""
    is_terminal = sys.stdout.isatty()
    colour = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    width = shutil.get_terminal_size((80, 24)).columns
    return Screen(width=width, colour=colour, plain=not encoding.startswith("utf"))


def _show(text: str) -> None:
    print(text)


def _show_data(options: argparse.Namespace, data: dict[str, Any]) -> bool:
    """Print ``data`` if the command line asks for data; whether it did."""
    if options.output == "json":
        print(json.dumps(data, indent=2))
    elif options.output == "yaml":
        import yaml

        print(yaml.safe_dump(data, sort_keys=False), end="")
    else:
        return False
    return True


def _key(text: str, world: World, cluster: Cluster) -> QuotaKey:
    """The quota that the command line names, as NAME or NAMESPACE/NAME.

    :raises Problem: when there is none of that name.
    """
    key = QuotaKey(*_split(text, cluster.namespace))
    if key not in world.quotas:
        raise not_found("HugeTLBQuota", str(key), map(str, world.quotas))
    return key


def _split(text: str, namespace: str) -> tuple[str, str]:
    before, slash, name = text.partition("/")
    return (before, name) if slash else (namespace, text)


def _where(options: argparse.Namespace) -> str:
    return f" of namespace {options.namespace}" if options.namespace else ""


def _now() -> datetime:
    return datetime.now(UTC)


def quota_names(world: World, namespace: str) -> Iterable[str]:
    """The quotas as the command line may name them, for completion."""
    for key in sorted(world.quotas):
        yield str(key)
        if key.namespace == namespace:
            yield key.name
