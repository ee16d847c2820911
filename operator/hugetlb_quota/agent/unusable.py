"""A host that no pod can be limited on: said in its HugeTLBNode, and looked at now and then.

The DaemonSet runs on every node. On one without cgroup2 or without the hugetlb controller
the agent can't do its work and must not crash-loop over it either: the condition Ready says
what is lacking and what to do, the probes are answered, and the agent begins when the host
has what it takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from hugetlb_quota.agent.conditions import unusable_condition
from hugetlb_quota.agent.metrics import PoolMetrics
from hugetlb_quota.agent.node_object import NodeApi, NodeObject
from hugetlb_quota.agent.reconcile import adopt
from hugetlb_quota.agent.report import pool_status, summary
from hugetlb_quota.agent.waiting import wait_at_most
from hugetlb_quota.backoff import Backoff
from hugetlb_quota.kube.errors import ApiError
from hugetlb_quota.kube.probes import serve_probes
from hugetlb_quota.node.host import HostRoot, HostUnreadable, UnusableHost
from hugetlb_quota.node.kubepods import Parents
from hugetlb_quota.node.pools import pools
from hugetlb_quota.node.watcher import KubepodsWatcher
from hugetlb_quota.program import about

#: Between two looks at the host, in seconds; each is a heartbeat of the report too.
PERIOD: Final = 60.0
#: The wait after the report could not be written, in seconds, doubled up to PERIOD.
FIRST_BACKOFF: Final = 0.5

Json = dict[str, Any]

logger = logging.getLogger(__name__)


def check(host: HostRoot) -> None:
    """See that pods can be limited on ``host``.

    :raises UnusableHost: what is lacking, and what to do.
    """
    host.boot_id()
    host.cgroup2()
    with KubepodsWatcher(Parents(tuple)):  # an inotify instance
        pass


class UnusableNode:
    """Tells of a host that can't be worked on, until it can.

    :param node: the name of the node.
    :param bind: where to serve the probes, as :func:`serve_probes` takes it; ``port`` too.
    """

    def __init__(self, connection: NodeApi, node: str, host: HostRoot, bind: str, port: int):
        self._object = NodeObject(connection, node)
        self._node = node
        self._host = host
        self._bind = bind
        self._port = port
        self._told = ""

    async def wait(
        self,
        stop: asyncio.Event,
        check: Callable[[HostRoot], None] = check,
        period: float = PERIOD,
    ) -> bool:
        """Wait until ``check`` passes; False when ``stop`` was set before.

        :raises HostUnreadable: when there is no host to look at: that is no node's fault.
        :raises NoProbePort: when the probes' port is taken.
        """
        if self._lacking(check) is None:
            return True
        metrics = PoolMetrics(lambda: pools(self._host))
        async with serve_probes(self._bind, self._port, self._waiting_for, metrics.render):
            backoff = Backoff(FIRST_BACKOFF, period)
            while not stop.is_set() and (lacking := self._lacking(check)) is not None:
                if str(lacking) != self._told:
                    logger.error(
                        "No pod of this node can be limited: %s",
                        lacking,
                        extra=about(node=self._node),
                    )
                try:
                    await self._tell(lacking)
                    self._told = str(lacking)
                    backoff.reset()
                    pause = period
                except ApiError as error:
                    logger.warning(
                        "HugeTLBNode %s is not up to date: %s",
                        *(self._node, error),
                        extra=about(node=self._node),
                    )
                    pause = backoff.next()
                await wait_at_most(stop, pause)
        if not stop.is_set():
            logger.info("The host has what it lacked; beginning.")
        return not stop.is_set()

    def _waiting_for(self) -> str:
        # Ready once it has told: it does all that can be done here, and a rollout that waited
        # for this node would wait for ever.
        return "" if self._told else "the report that this node's pods can't be limited"

    def _lacking(self, check: Callable[[HostRoot], None]) -> UnusableHost | None:
        try:
            check(self._host)
        except HostUnreadable:
            raise
        except UnusableHost as error:
            return error
        return None

    async def _tell(self, lacking: UnusableHost) -> None:
        last = await self._object.last_status() or {}
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        before: Mapping[str, Any] = next(
            (each for each in last.get("conditions") or () if each["type"] == "Ready"), {}
        )
        condition = unusable_condition(type(lacking).__name__, str(lacking), before, now)
        status = {
            **self._still_true(last),
            "summary": summary(there := pools(self._host)),
            "pools": [pool_status(pool) for pool in there],
            "conditions": [condition],
            "reportedAt": now,
        }
        await self._object.write(status)

    def _still_true(self, last: Mapping[str, Any]) -> Json:
        """What an agent that could see this boot's cgroups has reported: it stays charged.

        Else names alone, for the agent of a later boot: pods are started anew under their UIDs,
        and one of them may be deleted before it begins. And no boot ID: to the controller that
        is a node without an agent, whose pods are charged until they end.
        """
        boot_id = self._host.boot_id()
        if last.get("bootID") == boot_id:
            return dict(last)
        entries = adopt(last, boot_id).entries.values()
        return {"pods": [each.to_status().to_json() for each in entries if each.namespace]}
