"""Waits on a host where no pod can be limited, and says so in the HugeTLBNode.

The DaemonSet runs on every node. Without cgroup2 or its hugetlb controller the agent can't work,
but it must not crash and restart again and again. So the condition Ready says what the host lacks
and what to do, the probes answer, and the agent starts its work when the host can limit pods.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from hugetlb_quota.agent.conditions import unusable_condition
from hugetlb_quota.agent.last_report import adopt
from hugetlb_quota.agent.metrics import PoolMetrics
from hugetlb_quota.agent.node_object import NodeApi, NodeObject
from hugetlb_quota.agent.status import pool_status, summary, timestamp
from hugetlb_quota.agent.waiting import wait_at_most
from hugetlb_quota.backoff import Backoff
from hugetlb_quota.kube.errors import ApiError
from hugetlb_quota.kube.probes import serve_probes
from hugetlb_quota.node.host import HostRoot, HostUnreadable, UnusableHost
from hugetlb_quota.node.kubepods import Parents
from hugetlb_quota.node.pools import pools
from hugetlb_quota.node.watcher import KubepodsWatcher
from hugetlb_quota.program import about

#: The pause between two checks of the host, in seconds. After each check a report is written.
PERIOD: Final = 60.0
#: The pause after a failed write, in seconds. The pause doubles up to PERIOD.
FIRST_BACKOFF: Final = 0.5

Json = dict[str, Any]

logger = logging.getLogger(__name__)


def check(host: HostRoot) -> None:
    """Check that pods can be limited on ``host``.

    :raises UnusableHost: the host lacks something; the sentence says what to do.
    """
    host.boot_id()
    host.cgroup2()
    with KubepodsWatcher(Parents(tuple)):  # takes an inotify instance
        pass


class UnusableNode:
    """Reports what the host lacks, until pods can be limited.

    :param node: the name of the node.
    :param bind: the address of the probes; see :func:`serve_probes`.
    :param port: the port of the probes.
    """

    def __init__(self, connection: NodeApi, node: str, host: HostRoot, bind: str, port: int):
        self._object = NodeObject(connection, node)
        self._node = node
        self._host = host
        self._bind = bind
        self._port = port
        self._reported = ""

    async def wait(
        self,
        stop: asyncio.Event,
        check: Callable[[HostRoot], None] = check,
        period: float = PERIOD,
    ) -> bool:
        """Wait until ``check`` passes; return False if ``stop`` is set before.

        :raises HostUnreadable: --host-root is not the root of a host. No report is written.
        :raises NoProbePort: another program has the port of the probes.
        """
        if self._lacking(check) is None:
            return True
        metrics = PoolMetrics(lambda: pools(self._host))
        async with serve_probes(self._bind, self._port, self._waiting_for, metrics.render):
            backoff = Backoff(FIRST_BACKOFF, period)
            while not stop.is_set() and (lacking := self._lacking(check)) is not None:
                if str(lacking) != self._reported:
                    logger.error(
                        "No pod of this node can be limited: %s",
                        lacking,
                        extra=about(node=self._node),
                    )
                try:
                    await self._report(lacking)
                    self._reported = str(lacking)
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
            logger.info("Pods can be limited on this host now; the agent starts its work.")
        return not stop.is_set()

    def _waiting_for(self) -> str:
        # Ready after the first report: the agent can do no more here, and the rollout of the
        # DaemonSet must not wait for this node forever.
        return "" if self._reported else "the report that this node's pods can't be limited"

    def _lacking(self, check: Callable[[HostRoot], None]) -> UnusableHost | None:
        try:
            check(self._host)
        except HostUnreadable:
            raise
        except UnusableHost as error:
            return error
        return None

    async def _report(self, lacking: UnusableHost) -> None:
        last = await self._object.last_status() or {}
        now = timestamp(datetime.now(UTC))
        before: Mapping[str, Any] = next(
            (each for each in last.get("conditions") or () if each["type"] == "Ready"), {}
        )
        condition = unusable_condition(type(lacking).__name__, str(lacking), before, now)
        status = {
            **self._still_true(last),
            "summary": summary(found := pools(self._host)),
            "pools": [pool_status(pool) for pool in found],
            "conditions": [condition],
            "reportedAt": now,
        }
        await self._object.write(status)

    def _still_true(self, last: Mapping[str, Any]) -> Json:
        """Return the part of the last report that still holds.

        A report of this boot holds as a whole: its charges stay. From a report of another boot
        only the names of pods stay, for the agent of a later boot: kubelet starts the pods again
        under their UIDs, and a pod may be deleted before that agent starts. Such a report has no
        boot ID. The controller then treats the node as a node without an agent, and charges its
        pods until they end.
        """
        boot_id = self._host.boot_id()
        if last.get("bootID") == boot_id:
            return dict(last)
        entries = adopt(last, boot_id).entries.values()
        return {"pods": [each.to_status().to_json() for each in entries if each.namespace]}
