"""``python -m hugetlb_quota.controller``: wires the controller together."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from datetime import timedelta

import kopf

from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME
from hugetlb_quota.controller import deletion
from hugetlb_quota.controller.metrics import ControllerMetrics
from hugetlb_quota.controller.recounter import Recounter
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.lease import LeadershipLost, lead, term
from hugetlb_quota.kube.listening import EVERYWHERE
from hugetlb_quota.kube.probes import NoProbePort, serve_probes
from hugetlb_quota.program import add_options, start_log

LEASE = "hugetlb-quota-controller"

logger = logging.getLogger("hugetlb_quota.controller")


def main() -> None:
    """Run until a signal, or until the Lease is lost; then Kubernetes starts it anew."""
    arguments = _arguments()
    start_log(arguments)
    try:
        asyncio.run(_main(arguments))
    except (NotConfigured, NoProbePort, LeadershipLost) as error:
        sys.exit(str(error))
    except BaseExceptionGroup as group:  # of the tasks that a leader runs
        if lost := group.subgroup(LeadershipLost):
            sys.exit(str(_first(lost)))
        raise


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _main(arguments: argparse.Namespace) -> None:
    program = asyncio.current_task()
    assert program is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, program.cancel)
    async with Connection.open("hugetlb-quota-controller") as connection:
        lease = (connection, arguments.lease_namespace, LEASE, arguments.identity)
        recounter = Recounter(
            connection,
            arguments.identity,
            lambda: term(*lease),
            lifetime=timedelta(seconds=arguments.request_timeout),
        )

        async def handle_deletions() -> None:
            await kopf.operator(
                registry=deletion.registry(connection),
                clusterwide=True,
                standalone=True,
                # Without one, kopf asks for the user's name, and a container's user has none.
                identity=arguments.identity,
            )
            # kopf takes the signals for itself, and returns when one comes.
            program.cancel()

        metrics = ControllerMetrics(recounter)

        async def work() -> None:
            metrics.leads = True
            async with asyncio.TaskGroup() as group:
                group.create_task(recounter.run())
                group.create_task(handle_deletions())

        # A controller that waits for the Lease is ready to take over, so it is ready.
        async with serve_probes(arguments.bind, arguments.health_port, lambda: "", metrics.render):
            try:
                await lead(*lease, work)
            except asyncio.CancelledError:
                logger.info("Ended by a signal.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hugetlb-quota-controller", description=__doc__)
    parser.add_argument("--lease-namespace", required=True, help="where the Lease is")
    parser.add_argument(
        "--identity",
        # Two on one host must not take each other for themselves; in a container the
        # number is always the same, so one that is started anew leads on at once.
        default=os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
        help="what this controller calls itself in the Lease, unlike all others"
        " (default: $POD_NAME, or host name and process ID)",
    )
    parser.add_argument(
        "--bind",
        default=EVERYWHERE,
        help="address of the probes (default: %(default)s, all of IPv4 and IPv6)",
    )
    parser.add_argument("--health-port", type=int, default=8081, help="port of the probes")
    parser.add_argument(
        "--request-timeout",
        type=int,
        default=int(RESERVATION_LIFETIME.total_seconds()),
        help="kube-apiserver's --request-timeout in seconds, at least: what was admitted may"
        " still be created for so long (default: %(default)s)",
    )
    add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
