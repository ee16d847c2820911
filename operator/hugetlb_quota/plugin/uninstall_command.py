"""The command ``uninstall``: asks the user, then removes the finalizer from quotas."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Final

from hugetlb_quota.plugin import facts_reader, uninstall
from hugetlb_quota.plugin.cluster import Cluster
from hugetlb_quota.plugin.output import screen, show, show_data, wants_data
from hugetlb_quota.plugin.problem import Exit, Problem
from hugetlb_quota.plural import number_of

#: Seconds between two looks at the Lease: a leading controller renews it twice in this time.
LOOK: Final = 5.0
#: After this many rounds with finalizers left, some program must be adding finalizers.
_ROUNDS: Final = 10


async def run(cluster: Cluster, options: argparse.Namespace) -> Exit:
    """Remove the finalizer from all quotas, and say what is left in the cluster.

    :raises Problem: when the operator is installed, or no terminal is there to answer.
    """
    # Also without finalizers and in a dry run: the list of what is left has commands that would
    # harm an operator that works.
    await _check_operator_is_gone(cluster)
    left = await facts_reader.read_left(cluster, options.namespace)
    if not wants_data(options):
        show(uninstall.plan(left, screen()))
    freed: list[str] = []
    if left.guarded and not options.dry_run:
        if not options.yes and not await ask(f"Remove the finalizer on {cluster.server}?"):
            return Exit.REFUSED
        freed, left = await _remove_finalizers(cluster, options.namespace)
    if not show_data(options, uninstall.document(left, freed)):
        if freed:
            show(f"Removed the operator's finalizer from {number_of(len(freed), 'quota')}.")
        show(f"\n{uninstall.rest(left)}")
    return Exit.DONE


async def ask(question: str) -> bool:
    """Ask the user a yes-or-no question.

    :raises Problem: when standard input is not a terminal.
    """
    if not sys.stdin.isatty():
        raise Problem(Exit.USAGE, "There is no terminal to ask on; add --yes or --dry-run.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = await asyncio.to_thread(sys.stdin.readline)
    return answer.strip().lower() in ("y", "yes")


async def _check_operator_is_gone(cluster: Cluster) -> None:
    """Check that no program of the operator is installed, and that no controller leads.

    A controller would add the finalizers again.

    :raises Problem: when the operator is installed.
    """
    if sentence := uninstall.installed(await facts_reader.programs(cluster)):
        raise Problem(Exit.REFUSED, sentence)
    if not (before := await facts_reader.leases(cluster)):
        return
    print(f"Watching for {LOOK:g} s whether a controller leads.", file=sys.stderr)
    await asyncio.sleep(LOOK)
    if sentence := uninstall.led(before, await facts_reader.leases(cluster)):
        raise Problem(Exit.REFUSED, sentence)


async def _remove_finalizers(
    cluster: Cluster, namespace: str | None
) -> tuple[list[str], uninstall.Left]:
    """Remove the finalizers; return the names of these quotas, and what is left.

    :raises Problem: when quotas get the finalizer again and again.
    """
    freed: dict[str, None] = {}
    for _ in range(_ROUNDS):
        left = await facts_reader.read_left(cluster, namespace)
        if not left.guarded:
            return list(freed), left
        for quota in left.guarded:
            if await cluster.remove_finalizer(quota):
                freed["{namespace}/{name}".format_map(quota["metadata"])] = None
    raise Problem(
        Exit.REFUSED,
        "The finalizers come back, or the quotas change all the time: see whether a controller runs"
        " (kubectl get pods -A -l app.kubernetes.io/component=controller), and stop it.",
    )
