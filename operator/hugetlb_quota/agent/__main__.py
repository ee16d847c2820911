"""``python -m hugetlb_quota.agent``: reads the command line and connects the parts.

Exit codes:

- 0: SIGTERM or SIGINT; with --check: pods can be limited
- 1: an unexpected error
- 2: wrong command line
- 5: --host-root is not the root of a host
- 7: no API server is configured
- 8: another program has the port of the probes

Only with --check; otherwise the agent waits until the host changes (unusable.py):

- 3: the host has no cgroup2
- 4: cgroup2 has no hugetlb controller
- 6: the kernel gives no inotify instance

The codes 3 to 8 come with a sentence that says what to do.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from hugetlb_quota.agent.enforce import Enforcer
from hugetlb_quota.agent.metrics import AgentMetrics
from hugetlb_quota.agent.pods import NodePods
from hugetlb_quota.agent.poll import Poll
from hugetlb_quota.agent.read import HostReader
from hugetlb_quota.agent.reclaim import Reclaimer, project_waits
from hugetlb_quota.agent.reporter import Latest, Reporter
from hugetlb_quota.agent.shortage import Shortage
from hugetlb_quota.agent.unusable import UnusableNode, check
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.informer import Informer, ObjectKey
from hugetlb_quota.kube.listening import EVERYWHERE
from hugetlb_quota.kube.pods import Pod, project_pod
from hugetlb_quota.kube.probes import NoProbePort, serve_probes
from hugetlb_quota.kube.resources import HUGETLB_NODES, PODS
from hugetlb_quota.node import kubepods
from hugetlb_quota.node.charge_reader import ChargeReader, Reads
from hugetlb_quota.node.host import (
    HostRoot,
    HostUnreadable,
    NoCgroup2,
    NoHugetlbController,
    UnusableHost,
)
from hugetlb_quota.node.kubepods import Parents
from hugetlb_quota.node.pools import page_sizes
from hugetlb_quota.node.watcher import KubepodsWatcher, NoInotify
from hugetlb_quota.process import allow_open_files, collect_garbage_rarely
from hugetlb_quota.program import add_options, start_log

EXIT_CODES: Final[dict[type[Exception], int]] = {
    NoCgroup2: 3,
    NoHugetlbController: 4,
    HostUnreadable: 5,
    NoInotify: 6,
    NotConfigured: 7,
    NoProbePort: 8,
}

#: The time after which a thread that computes lets another thread run, in seconds. Each write of a
#: limit may have to wait so long, so this is shorter than Python's default of 5 ms.
SWITCH: Final = 0.0001
#: The most open files. The agent keeps one open for each pod's cgroup and page size.
DESCRIPTORS: Final = 65_536

logger = logging.getLogger("hugetlb_quota.agent")


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="hugetlb-quota-agent",
        description="Limit this node's pods to the huge pages they ask for, and report their use.",
    )
    parser.add_argument("--node-name", required=True, help="the name of this host's Node")
    parser.add_argument(
        "--host-root",
        type=Path,
        default=Path("/"),
        help="the directory where the host's / is mounted (default: /)",
    )
    parser.add_argument(
        "--cgroup-root",
        metavar="PATH",
        help="kubelet's --cgroup-root: the cgroup that holds kubepods, as a path below the cgroup2"
        " mount (default: the agent searches)",
    )
    parser.add_argument(
        "--charge-list",
        choices=("kernel", "totals"),
        default="kernel",
        help="how to find what gone pods left: kernel reads the kernel's charge list (default);"
        " totals uses the cgroups' counters, and may find too much",
    )
    parser.add_argument(
        "--no-mirror-unknown",
        dest="mirror_unknown",
        action="store_false",
        help="do not limit pods before the API has shown them: they have only kubelet's limit,"
        " which works when a program touches a page (SIGBUS), not at mmap (ENOMEM)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="check that pods can be limited on this host, and exit: with 0, or with the code of"
        " what the host lacks",
    )
    parser.add_argument(
        "--bind",
        default=EVERYWHERE,
        help="address of the probes (default: %(default)s, all of IPv4 and IPv6)",
    )
    parser.add_argument("--health-port", type=int, default=8082, help="port of the probes")
    add_options(parser)
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return command_line().parse_args(arguments)


async def run(options: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT; wait first while pods can't be limited on the host.

    :raises HostUnreadable: --host-root is not the root of a host.
    :raises NotConfigured: no API server is configured.
    :raises NoProbePort: another program has the port of the probes.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host = HostRoot(options.host_root)
    host.boot_id()  # fail before connecting if --host-root is not the root of a host
    async with Connection.open("hugetlb-quota-agent") as connection:
        unusable = UnusableNode(
            connection, options.node_name, host, options.bind, options.health_port
        )
        if await unusable.wait(stop):
            await Agent(options, host, connection).run(stop)


class Agent:
    """Connects the parts: each part sets the event "due", and the reporter then makes a pass.

    :raises UnusableHost: pods can't be limited on the host.
    """

    def __init__(self, options: argparse.Namespace, host: HostRoot, connection: Connection) -> None:
        node, cgroup2, sizes = options.node_name, host.cgroup2(), page_sizes(host)
        parents = Parents(lambda: kubepods.parents(cgroup2, options.cgroup_root))
        logger.info(
            "cgroup2 is at %s; searching for kubepods in %s", cgroup2, list(map(str, parents))
        )
        self._options = options
        self._due = due = asyncio.Event()
        self._listed, self._synced, self._first_pass = (asyncio.Event() for _ in range(3))
        self._pods = NodePods()
        self._informer: Informer[Pod] = Informer(
            connection, PODS, project_pod, field_selector=f"spec.nodeName={node}"
        )
        self._wishes: Informer[Mapping[str, timedelta]] = Informer(
            connection, HUGETLB_NODES, project_waits, field_selector=f"metadata.name={node}"
        )
        self._watcher = KubepodsWatcher(parents)
        self._enforcer = Enforcer(
            self._watcher,
            sizes,
            self._pods.allowance,
            due.set,
            mirror=options.mirror_unknown,
        )
        reader = ChargeReader() if options.charge_list == "kernel" else None
        self._host = HostReader(host, cgroup2, parents, sizes, reader)
        self._poll = Poll(host, parents, sizes, lambda: self._watcher.pods, due)
        latest = Latest()
        self._reclaimer = Reclaimer(
            connection, node, self._host, lambda: latest.report, lambda: self._waits(node)
        )
        self._shortage = Shortage(
            connection,
            node,
            lambda: self._watcher.pods,
            lambda: self._watcher.roots,
            sizes,
            self._pods.seen,
        )
        self._reporter = self._make_reporter(connection, host.boot_id(), latest)
        self._metrics = AgentMetrics(
            latest,
            sizes,
            self._not_enforced,
            lambda: Reads() if reader is None else reader.reads,
            lambda: self._shortage.refused,
        )
        self._informer.on_change(self._pod_changed)
        self._wishes.on_change(self._wishes_changed)

    def _make_reporter(self, connection: Connection, boot_id: str, latest: Latest) -> Reporter:
        return Reporter(
            connection,
            self._options.node_name,
            boot_id,
            self._host,
            self._pods,
            latest,
            position=lambda: self._informer.resource_version,
            problems=lambda: (*self._not_enforced(), *self._reclaimer.failures),
            notes=lambda: self._enforcer.by_pod_alone,
            before_read=self._poll.compare_with_now,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Run all parts until ``stop`` is set."""
        bind, port = self._options.bind, self._options.health_port
        with self._watcher:
            try:
                async with (
                    serve_probes(bind, port, self._waiting_for, self._metrics.render),
                    asyncio.TaskGroup() as group,
                ):
                    running = [group.create_task(part) for part in self._parts()]
                    await stop.wait()
                    for task in running:
                        task.cancel()
            finally:
                self._poll.close()
                await self._host.close()

    def _parts(self) -> tuple[Coroutine[Any, Any, None], ...]:
        return (
            self._enforcer.follow(),
            self._enforce_all(),
            self._enforcer.retry(),
            self._informer.run(),
            self._wishes.run(),
            self._poll.run(),
            self._reporter.run(self._synced, self._due),
            self._reclaimer.run(self._due),
            self._shortage.run(self._listed),
        )

    async def _enforce_all(self) -> None:
        # Before the API answers, this pass copies kubelet's limits.
        await self._enforcer.full_pass()
        self._listed.set()
        await self._informer.synced.wait()
        self._synced.set()
        await self._enforcer.pass_now_and_then(self._first_pass)

    def _pod_changed(self, old: Pod | None, new: Pod | None, at: int) -> None:
        self._pods.changed(old, new)
        for pod in (old, new):
            if pod is not None:
                self._enforcer.pod_changed(pod.uid)
                if pod.static_hash is not None:
                    self._enforcer.pod_changed(pod.static_hash)
        self._due.set()

    def _wishes_changed(self, old: object, new: object, at: int) -> None:
        if new is None:
            # The controller would treat a node without a report as a node without an agent.
            self._reporter.write_anew()
        self._due.set()

    def _waits(self, node: str) -> Mapping[str, timedelta]:
        return self._wishes.store.get(ObjectKey("", node), {})

    def _not_enforced(self) -> tuple[str, ...]:
        return (*self._enforcer.failures, *self._enforcer.above)

    def _waiting_for(self) -> str:
        missing = {
            "the pods of this node": self._informer.synced,
            "the first pass over all cgroups": self._first_pass,
        }
        return ", ".join(what for what, event in missing.items() if not event.is_set())


def main() -> None:
    """Run the agent; the module's docstring lists the exit codes."""
    options = parse()
    start_log(options)
    allow_open_files(DESCRIPTORS)
    sys.setswitchinterval(SWITCH)
    collect_garbage_rarely()
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
