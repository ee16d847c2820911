"""``python -m hugetlb_quota.controller``: read the command line and wire the parts."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from datetime import timedelta
from functools import partial

import kopf

from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME, lifetime
from hugetlb_quota.controller import deletion
from hugetlb_quota.controller.certificates.keeper import Keeper, Names
from hugetlb_quota.controller.certificates.rotation import Policy
from hugetlb_quota.controller.metrics import ControllerMetrics
from hugetlb_quota.controller.recounter import Recounter
from hugetlb_quota.controller.webhooks.configuration import Webhooks
from hugetlb_quota.controller.webhooks.rules import WebhookRules
from hugetlb_quota.kube import events
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.controller_lease import LEASE
from hugetlb_quota.kube.lease import LeadershipLost, lead, term
from hugetlb_quota.kube.listening import EVERYWHERE
from hugetlb_quota.kube.probes import NoProbePort, serve_probes
from hugetlb_quota.kube.resources import WEBHOOK_CONFIGURATIONS
from hugetlb_quota.program import add_options, add_request_timeout, start_log

logger = logging.getLogger("hugetlb_quota.controller")


def main() -> None:
    """Run until SIGTERM or SIGINT, or until the Lease is lost; then kubelet starts a new process.

    Exit code 1 with a sentence if the Lease is lost, if no API server is configured, or if the
    port of the probes is in use.
    """
    arguments = command_line().parse_args()
    start_log(arguments)
    try:
        asyncio.run(_main(arguments))
    except (NotConfigured, NoProbePort, LeadershipLost) as error:
        sys.exit(str(error))
    except BaseExceptionGroup as group:  # raised by the tasks of a leader
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
        read_term = partial(term, *lease)
        recounter = Recounter(
            connection,
            arguments.identity,
            read_term,
            lifetime=lifetime(arguments.request_timeout),
            may_begin=lambda: rules.in_force or not arguments.webhooks,
        )
        rules = WebhookRules(
            connection,
            # With --require-quota admission must refuse pods even if there is no quota.
            quotas_exist=lambda: arguments.require_quota or recounter.quotas_exist,
            confirm=read_term,
            on_in_force=recounter.look,
            on_removed=partial(_publish_rules_removed, connection, arguments),
        )
        names = _names(arguments)
        keeper = Keeper(connection, names, _policy(arguments), read_term)
        webhooks = Webhooks(connection, names, keeper, rules)
        recounter.on_quotas(webhooks.wake)
        metrics = ControllerMetrics(recounter)

        async def work() -> None:
            metrics.leads = True
            async with asyncio.TaskGroup() as group:
                group.create_task(recounter.run())
                if arguments.webhooks:
                    group.create_task(webhooks.run())
                group.create_task(_handle_deletions(connection, arguments, program))

        # A controller that waits for the Lease can take over at any time, so it is ready.
        async with serve_probes(arguments.bind, arguments.health_port, lambda: "", metrics.render):
            try:
                await lead(*lease, work)
            except asyncio.CancelledError:
                logger.info("Ended by a signal.")


async def _handle_deletions(
    connection: Connection, arguments: argparse.Namespace, program: asyncio.Task[None]
) -> None:
    """Run kopf until a signal arrives, then cancel ``program``."""
    await kopf.operator(
        registry=deletion.registry(connection),
        clusterwide=True,
        standalone=True,
        # Without an identity kopf looks up the user's name, and a container's user has none.
        identity=arguments.identity,
    )
    # kopf replaces the signal handlers of _main, and returns after a signal.
    program.cancel()


async def _publish_rules_removed(
    connection: Connection, arguments: argparse.Namespace, sentence: str
) -> None:
    await events.publish(
        connection,
        events.Regarding(
            f"{WEBHOOK_CONFIGURATIONS.group}/{WEBHOOK_CONFIGURATIONS.version}",
            "ValidatingWebhookConfiguration",
            "",
            arguments.webhooks,
        ),
        kind="Warning",
        reason="RulesTakenAway",
        note=sentence,
        program="controller",
        instance=arguments.identity,
    )


def _names(arguments: argparse.Namespace) -> Names:
    return Names(
        namespace=arguments.lease_namespace,
        webhooks=arguments.webhooks,
        serving=arguments.serving_secret,
        authority=arguments.authority_secret,
    )


def _policy(arguments: argparse.Namespace) -> Policy:
    return Policy(
        name=f"{arguments.webhooks}-ca",
        hosts=(),
        authority_lifetime=timedelta(seconds=arguments.ca_lifetime),
        serving_lifetime=timedelta(seconds=arguments.certificate_lifetime),
        overlap=timedelta(seconds=arguments.certificate_overlap),
    )


def command_line() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="hugetlb-quota-controller",
        description="Counts what is charged to each HugeTLBQuota, and keeps the certificates and"
        " the rules of the webhooks.",
    )
    parser.add_argument("--lease-namespace", required=True, help="the namespace of the Lease")
    parser.add_argument(
        "--identity",
        # Two controllers on one host need different names. In a container the process ID is
        # always the same, so a restarted controller still holds its Lease.
        default=os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
        help="the unique name of this controller in the Lease"
        " (default: $POD_NAME, or host name and process ID)",
    )
    parser.add_argument(
        "--bind",
        default=EVERYWHERE,
        help="address of the probes (default: %(default)s, all of IPv4 and IPv6)",
    )
    parser.add_argument("--health-port", type=int, default=8081, help="port of the probes")
    add_request_timeout(parser, RESERVATION_LIFETIME)
    _add_certificates(parser)
    add_options(parser)
    return parser


def _add_certificates(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("webhooks")
    group.add_argument(
        "--webhooks",
        default="",
        help="the ValidatingWebhookConfiguration to manage; without it, quotas are counted whether"
        " or not the API server calls admission",
    )
    group.add_argument(
        "--serving-secret",
        default="",
        help="the Secret of admission's certificate and paths, in the namespace of the Lease",
    )
    group.add_argument(
        "--authority-secret",
        default="",
        help="the Secret of the CA, in the same namespace; without it, another tool makes the"
        " certificates",
    )
    group.add_argument(
        "--require-quota",
        action="store_true",
        help="give the webhooks their rules even if there is no quota; admission then refuses pods"
        " with huge pages that no quota selects",
    )
    usual = Policy("", ())
    for flag, default, what in (
        (
            "--ca-lifetime",
            usual.authority_lifetime,
            "how long a CA is valid; the next CA replaces it earlier",
        ),
        (
            "--certificate-lifetime",
            usual.serving_lifetime,
            "how long a serving certificate is valid",
        ),
        (
            "--certificate-overlap",
            usual.overlap,
            "how long a new CA is trusted before it signs, and an old CA after the last"
            " certificate that it signed was replaced",
        ),
    ):
        group.add_argument(
            flag,
            type=float,
            default=default.total_seconds(),
            metavar="SECONDS",
            help=f"{what} (default: %(default)s)",
        )


if __name__ == "__main__":
    main()
