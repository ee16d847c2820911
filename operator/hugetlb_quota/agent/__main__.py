"""``python -m hugetlb_quota.agent``: reads the command line and wires the parts.

Exit codes: 0 ended by SIGTERM; 1 unforeseen; 2 wrong command line; 5 no host below
--host-root; 7 no API server configured; 8 the probes' port is taken; 9 the state directory
can't be used; and of --check alone, which else looks again and again (unusable.py): 3 no
cgroup2 on the host; 4 no hugetlb controller in it; 6 no inotify instance to be had. 3 to 9
come with a sentence that says what to do.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.agent.enforce import Enforcer
from hugetlb_quota.agent.governance import Governance, project_governor
from hugetlb_quota.agent.ledger import Ledger
from hugetlb_quota.agent.memory import Memory, NoMemory
from hugetlb_quota.agent.metrics import AgentMetrics
from hugetlb_quota.agent.observe import Observer
from hugetlb_quota.agent.reclaim import Reclaimer
from hugetlb_quota.agent.report import Reporter
from hugetlb_quota.agent.track import Tracker
from hugetlb_quota.agent.track_files import FileTracker
from hugetlb_quota.agent.unusable import UnusableNode, check
from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.quota import KIND as QUOTA
from hugetlb_quota.kube import events
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.informer import Informer
from hugetlb_quota.kube.listening import EVERYWHERE
from hugetlb_quota.kube.pods import project_pod
from hugetlb_quota.kube.probes import NoProbePort, serve_probes
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS, PODS
from hugetlb_quota.node import cgroup_namespace, kubepods
from hugetlb_quota.node.file_changes import FileChanges
from hugetlb_quota.node.host import (
    HostRoot,
    HostUnreadable,
    NoCgroup2,
    NoHugetlbController,
    UnusableHost,
)
from hugetlb_quota.node.pools import page_sizes
from hugetlb_quota.node.watcher import KubepodsWatcher, NoInotify

EXIT_CODES: Final[dict[type[Exception], int]] = {
    NoCgroup2: 3,
    NoHugetlbController: 4,
    HostUnreadable: 5,
    NoInotify: 6,
    NotConfigured: 7,
    NoProbePort: 8,
    NoMemory: 9,
}

#: From a pod's being moved to a look at what it has, in seconds.
TURN: Final = 0.02

logger = logging.getLogger("hugetlb_quota.agent")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="hugetlb-quota-agent",
        description="Hold this node's pods to their huge page quotas, and report what they use.",
    )
    parser.add_argument("--node-name", required=True, help="name of the Node this runs on")
    parser.add_argument(
        "--host-root", type=Path, default=Path("/"), help="where the host's / is (default: /)"
    )
    parser.add_argument(
        "--cgroup-root",
        metavar="PATH",
        help="kubelet's --cgroup-root: below the cgroup2 mount, what kubepods is in"
        " (default: looked for)",
    )
    parser.add_argument(
        "--state-dir",
        default="/var/lib/hugetlb-quota",
        metavar="PATH",
        help="directory of the host for what must not be forgotten (default: %(default)s)",
    )
    parser.add_argument(
        "--no-mirror-ungoverned",
        dest="mirror_ungoverned",
        action="store_false",
        help="leave pods that no quota governs as kubelet set them up; they meet their limit"
        " at the touch (SIGBUS), not in mmap (ENOMEM)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="say whether pods can be limited on this host, and end: with 0, or with the code of"
        " what is lacking",
    )
    parser.add_argument(
        "--bind",
        default=EVERYWHERE,
        help="address of the probes (default: %(default)s, all of IPv4 and IPv6)",
    )
    parser.add_argument("--health-port", type=int, default=8082, help="port of the probes")
    return parser.parse_args(arguments)


async def run(options: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT; while the host lacks what it takes, say so and wait.

    :raises HostUnreadable: when there is no host.
    :raises NotConfigured: when no API server is configured.
    :raises NoProbePort: when the probes' port is taken.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host = HostRoot(options.host_root)
    host.boot_id()  # where there is no host, no API server needs to be told
    # Before any thread and any process of ours: those follow.
    outside = cgroup_namespace.enter_hosts(host)
    if outside:
        logger.warning("%s", outside)
    async with Connection.open("hugetlb-quota-agent") as connection:
        unusable = UnusableNode(
            connection, options.node_name, host, options.bind, options.health_port
        )
        if await unusable.wait(stop):
            await _work(options, host, connection, stop, outside)


async def _work(
    options: argparse.Namespace,
    host: HostRoot,
    connection: Connection,
    stop: asyncio.Event,
    outside: str,
) -> None:
    """Do what the agent is for, until ``stop`` is set.

    :param outside: why this is not the host's cgroup namespace; "" when it is.
    """
    cgroup2, boot_id, sizes = host.cgroup2(), host.boot_id(), page_sizes(host)
    parents = kubepods.parents(cgroup2, options.cgroup_root)
    logger.info("cgroup2 is at %s, kubepods is looked for in %s", cgroup2, list(map(str, parents)))

    governance = Governance()
    first_pass, synced, moved = asyncio.Event(), asyncio.Event(), asyncio.Event()
    pods = Informer(
        connection, PODS, project_pod, field_selector=f"spec.nodeName={options.node_name}"
    )
    quotas = Informer(connection, HUGETLB_QUOTAS, partial(project_governor, node=options.node_name))
    with (
        KubepodsWatcher(parents) as watcher,
        FileChanges() as changes,
        closing(Memory.open(host.at(options.state_dir), boot_id)) as memory,
    ):
        files = FileTracker(host, cgroup2, parents, memory)
        tracker = Tracker(parents, sizes, Ledger(memory), files)
        enforcer = Enforcer(watcher, sizes, governance.allowance, mirror=options.mirror_ungoverned)

        def not_enforced() -> tuple[str, ...]:
            return (*enforcer.failures, *enforcer.above)

        async def tell_reclaimed(charged: tuple[str, ...], note: str) -> None:
            for key in map(QuotaKey.parse, charged):
                await events.publish(
                    connection,
                    events.Regarding(API_VERSION, QUOTA, key.namespace, key.name),
                    kind="Normal",
                    reason="Reclaimed",
                    note=note,
                    program="agent",
                    instance=options.node_name,
                )

        reclaimer = Reclaimer(options.node_name, governance, tracker.ledger, files, tell_reclaimed)
        observer = Observer(
            host,
            cgroup2,
            tracker,
            governance,
            seen_since=lambda: pods.listed_at,
            seen_up_to=lambda: pods.resource_version,
            problems=lambda: (*not_enforced(), *reclaimer.failures),
            notes=lambda: (*enforcer.by_pod_alone, outside) if enforcer.by_pod_alone else (),
        )
        metrics = AgentMetrics(tracker, sizes, not_enforced)
        reporter = Reporter(connection, options.node_name, boot_id, observer)

        def pod_known(cgroup_uid: str) -> None:
            if tracker.ledger.governed_anew(governance.known_as(cgroup_uid)):
                moved.set()
            enforcer.pod_changed(cgroup_uid)
            reporter.nudge()

        def governed_otherwise() -> None:
            moved.set()
            enforcer.due()
            reporter.nudge()

        governance.on_pod = pod_known
        governance.on_quotas = governed_otherwise
        enforcer.on_removed = reporter.nudge
        enforcer.on_populated = tracker.populated
        files.book.on_release = files.on_looked = reporter.nudge
        pods.on_change(governance.pod_changed)
        quotas.on_change(governance.quota_changed)

        async def govern_anew() -> None:
            # What is told before all is, is told in part: the first look sees to it then.
            await synced.wait()
            while True:
                await moved.wait()
                moved.clear()
                # Who opened a file before is told already, and needs a turn to be taken in.
                await asyncio.sleep(TURN)
                await tracker.catch_up()
                with suppress(OSError):  # the next look does it
                    tracker.govern(governance.known())

        async def enforce_all() -> None:
            # Before the API has answered: kubelet's own limits are mirrored at once.
            await enforcer.full_pass()
            await asyncio.gather(pods.synced.wait(), quotas.synced.wait())
            await files.looked.wait()
            synced.set()
            await enforcer.pass_now_and_then(first_pass)

        def waiting_for() -> str:
            missing = {
                "the pods of this node": pods.synced,
                "the quotas": quotas.synced,
                "the files on hugetlbfs": files.looked,
                "the first pass over all cgroups": first_pass,
            }
            return ", ".join(what for what, event in missing.items() if not event.is_set())

        async with (
            serve_probes(options.bind, options.health_port, waiting_for, metrics.render),
            asyncio.TaskGroup() as group,
        ):
            running = [
                group.create_task(part)
                for part in (
                    enforcer.follow(),
                    enforce_all(),
                    enforcer.retry(),
                    govern_anew(),
                    pods.run(),
                    quotas.run(),
                    reporter.run(synced),
                    files.run(changes),
                    reclaimer.run(),
                )
            ]
            await stop.wait()
            for task in running:
                task.cancel()


def main() -> None:
    """Run the agent; see this module for the exit codes."""
    options = parse()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        if options.check:
            check(HostRoot(options.host_root))
            print("Pods can be limited on this host.")  # noqa: T201
        else:
            asyncio.run(run(options))
    except (UnusableHost, NotConfigured, NoProbePort) as error:
        print(f"hugetlb-quota-agent: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_CODES[type(error)])


if __name__ == "__main__":
    main()
