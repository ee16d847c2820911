"""The command ``explain``: reads the pods and the cluster, and asks for a dry run."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Final

from hugetlb_quota.kube import resources
from hugetlb_quota.kube.resources import Resource
from hugetlb_quota.plugin import explain, explain_text, manifest
from hugetlb_quota.plugin.cluster import Cluster, split_name
from hugetlb_quota.plugin.output import screen, show, show_data
from hugetlb_quota.plugin.problem import Exit, Problem

#: The kinds that ``explain`` takes by name: the kind on the command line, and its resource.
WORKLOADS: Final[dict[str, tuple[str, Resource]]] = {
    "pod": ("Pod", resources.PODS),
    "deployment": ("Deployment", resources.DEPLOYMENTS),
    "statefulset": ("StatefulSet", resources.STATEFUL_SETS),
    "daemonset": ("DaemonSet", resources.DAEMON_SETS),
    "replicaset": ("ReplicaSet", resources.REPLICA_SETS),
    "job": ("Job", resources.JOBS),
    "cronjob": ("CronJob", resources.CRON_JOBS),
}


async def run(cluster: Cluster, options: argparse.Namespace) -> Exit:
    """Explain each pod that the command line names.

    :raises Problem: when the pods can't be read.
    """
    candidates = await _candidates(cluster, options)
    world = await cluster.world(pods=True, reports=True)
    explanations = []
    for candidate in candidates:
        # As in kubectl create, the namespace of the command line comes first.
        namespace = options.namespace or candidate.namespace or cluster.namespace
        explanation = explain.evaluate(world, candidate, namespace)
        if explanation.asks or explanation.broken:
            accepted, message = await cluster.try_pod(candidate.pod, namespace)
            explanation = explain.with_dry_run(explanation, accepted, message)
        explanations.append(explanation)
    if not show_data(options, {"items": [explain_text.document(each) for each in explanations]}):
        show("\n\n\n".join(explain_text.picture(each, screen()) for each in explanations))
    return Exit.REFUSED if any(each.refused for each in explanations) else Exit.DONE


async def _candidates(cluster: Cluster, options: argparse.Namespace) -> list[manifest.Candidate]:
    if options.filename:
        return await _candidates_of_file(options.filename)
    kind, resource = WORKLOADS[options.kind]
    namespace, name = split_name(options.name, cluster.namespace)
    raw = await cluster.workload(resource, kind, name, namespace)
    return [manifest.candidate(raw, kind)]


async def _candidates_of_file(filename: str) -> list[manifest.Candidate]:
    import yaml

    read = sys.stdin.read if filename == "-" else Path(filename).read_text
    try:
        return manifest.candidates(yaml.safe_load_all(await asyncio.to_thread(read)))
    except (OSError, UnicodeError, yaml.YAMLError, manifest.NoPods) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        on_one_line = " ".join(str(reason).split())
        sentence = f"The manifest {filename} can't be used: {on_one_line}."
        raise Problem(Exit.USAGE, sentence) from error
