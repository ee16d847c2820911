"""The admission program: ``python -m hugetlb_quota.admission --serving-secret NAMESPACE/NAME``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import ssl
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import uvloop

from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME, lifetime
from hugetlb_quota.admission.connections import CONNECTIONS, DRAIN_TIMEOUT, Connections
from hugetlb_quota.admission.identity import Certificate, Identity
from hugetlb_quota.admission.metrics import AdmissionMetrics
from hugetlb_quota.admission.server import Tls, serve
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.listening import EVERYWHERE
from hugetlb_quota.kube.probes import NoProbePort, serve_probes
from hugetlb_quota.process import allow_open_files, collect_garbage_rarely
from hugetlb_quota.program import add_options, add_request_timeout, start_log

#: File descriptors beside those of the connections: listeners, the API server, files.
OTHER_FILES: Final = 256

logger = logging.getLogger("hugetlb_quota.admission")


def main() -> None:
    """Serve until SIGTERM; exit code 1 with a sentence when that can't begin."""
    arguments = _arguments()
    start_log(arguments)
    # What was imported is never garbage, and of what a request makes nearly all goes by its
    # reference count: with Python's own threshold collections took 6 % of the time.
    collect_garbage_rarely()
    allow_open_files(CONNECTIONS + OTHER_FILES)
    try:
        uvloop.run(_run(arguments))
    except (NotConfigured, NoProbePort) as error:
        sys.exit(str(error))


async def _run(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(Connection.open("hugetlb-quota-admission"))
        identity = Identity(connection, arguments.serving_secret)
        await stack.enter_async_context(identity.followed())
        certificate: Tls = identity
        if arguments.tls_cert is not None:
            given = _given(arguments)
            await stack.enter_async_context(given.followed())
            certificate = given
        if not await _unless(stop, identity.complete(certificate=certificate is identity)):
            return
        try:
            metrics, is_serving = AdmissionMetrics(), asyncio.Event()
            probes = serve_probes(
                arguments.bind,
                arguments.health_port,
                lambda: "" if is_serving.is_set() else "the webhooks",
                metrics.render,
            )
            serving = serve(
                connection,
                certificate,
                identity,
                arguments.bind,
                arguments.port,
                Connections(drain=arguments.drain_seconds),
                changes=arguments.changes,
                lifetime=lifetime(arguments.request_timeout),
                metrics=metrics,
                require_quota=arguments.require_quota,
            )
            async with probes, serving as bound:
                is_serving.set()
                logger.info("Serving admission on %s port %d.", *bound)
                await stop.wait()
                logger.info("Ending: answering until the API server has left.")
        except OSError as error:
            sys.exit(f"Can't listen on {arguments.bind} port {arguments.port}: {error}")


def _given(arguments: argparse.Namespace) -> Certificate:
    """The certificate in files; the program ends with a sentence where it can't be loaded."""
    try:
        return Certificate(arguments.tls_cert, arguments.tls_key)
    except (OSError, ssl.SSLError) as error:
        sys.exit(
            f"The certificate {arguments.tls_cert} with the key {arguments.tls_key}"
            f" can't be loaded: {error}"
        )


async def _unless(stop: asyncio.Event, waiting: Coroutine[None, None, None]) -> bool:
    """Wait until ``waiting`` ends; False when ``stop`` comes first."""
    tasks = (asyncio.ensure_future(waiting), asyncio.ensure_future(stop.wait()))
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return not stop.is_set()


def command_line() -> argparse.ArgumentParser:
    """All that the command line takes."""
    parser = argparse.ArgumentParser(
        prog="hugetlb-quota-admission",
        description="Decides on pods and HugeTLBQuotas for the API server.",
    )
    parser.add_argument(
        "--serving-secret",
        type=_namespace_and_name,
        required=True,
        metavar="NAMESPACE/NAME",
        help="the Secret that the controller puts a certificate and the webhooks' paths into",
    )
    parser.add_argument("--tls-cert", type=Path, help="another certificate chain, PEM")
    parser.add_argument("--tls-key", type=Path, help="its private key, PEM")
    parser.add_argument(
        "--changes",
        type=_namespace_and_name,
        required=True,
        metavar="NAMESPACE/NAME",
        help="the ConfigMap in which all replicas note the changes of quotas that are under way",
    )
    parser.add_argument(
        "--bind",
        default=EVERYWHERE,
        help="address to listen on (default: %(default)s, all of IPv4 and IPv6)",
    )
    parser.add_argument("--port", type=int, default=8443, help="port to listen on")
    parser.add_argument(
        "--health-port",
        type=int,
        default=8083,
        help="port of the probes and of /metrics, in plain HTTP",
    )
    parser.add_argument(
        "--drain-seconds",
        type=float,
        default=DRAIN_TIMEOUT,
        help="how long to go on answering at the end, until the API server has closed its"
        " connections (default: %(default)s)",
    )
    add_request_timeout(parser, RESERVATION_LIFETIME)
    parser.add_argument(
        "--require-quota",
        action="store_true",
        help="refuse pods that ask for huge pages and that no quota governs",
    )
    add_options(parser)
    return parser


def _arguments() -> argparse.Namespace:
    parser = command_line()
    arguments = parser.parse_args()
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        parser.error("--tls-cert and --tls-key belong together")
    return arguments


def _namespace_and_name(text: str) -> tuple[str, str]:
    namespace, _, name = text.partition("/")
    if not (namespace and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/NAME")
    return namespace, name


if __name__ == "__main__":
    main()
