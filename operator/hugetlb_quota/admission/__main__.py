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
from hugetlb_quota.admission.connections import DRAIN_TIMEOUT, MOST_CONNECTIONS, Connections
from hugetlb_quota.admission.credentials import CertificateFiles, ServingSecret
from hugetlb_quota.admission.metrics import AdmissionMetrics
from hugetlb_quota.admission.server import Tls, serve
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.listening import EVERYWHERE
from hugetlb_quota.kube.probes import NoProbePort, serve_probes
from hugetlb_quota.process import allow_open_files, collect_garbage_rarely
from hugetlb_quota.program import add_options, add_request_timeout, start_log

#: Open files beside the webhooks' connections: listeners, the API server, files.
OTHER_FILES: Final = 256

logger = logging.getLogger("hugetlb_quota.admission")


def main() -> None:
    """Serve until SIGTERM; if that fails at the start, exit with code 1 and a sentence."""
    arguments = _arguments()
    start_log(arguments)
    # Almost no object of a request is in a reference cycle. With Python's own threshold, garbage
    # collections took 6 % of the time.
    collect_garbage_rarely()
    allow_open_files(MOST_CONNECTIONS + OTHER_FILES)
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
        secret = ServingSecret(connection, arguments.serving_secret)
        await stack.enter_async_context(secret.followed())
        certificate: Tls = secret
        if arguments.tls_cert is not None:
            files = _certificate_files(arguments)
            await stack.enter_async_context(files.followed())
            certificate = files
        complete = secret.complete(certificate=certificate is secret)
        if not await _wait_unless(stop, complete):
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
                secret,
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
                logger.info("Ending; answering until the API server has closed its connections.")
        except OSError as error:
            sys.exit(f"Can't listen on {arguments.bind} port {arguments.port}: {error}")


def _certificate_files(arguments: argparse.Namespace) -> CertificateFiles:
    """The certificate from files; exits with a sentence if it can't be loaded."""
    try:
        return CertificateFiles(arguments.tls_cert, arguments.tls_key)
    except (OSError, ssl.SSLError) as error:
        sys.exit(
            f"The certificate {arguments.tls_cert} with the key {arguments.tls_key}"
            f" can't be loaded: {error}"
        )


async def _wait_unless(stop: asyncio.Event, waiting: Coroutine[None, None, None]) -> bool:
    """Wait until ``waiting`` ends; False if ``stop`` is set first."""
    tasks = (asyncio.ensure_future(waiting), asyncio.ensure_future(stop.wait()))
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return not stop.is_set()


def command_line() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="hugetlb-quota-admission",
        description="Decides on pods and HugeTLBQuotas for the API server.",
    )
    parser.add_argument(
        "--serving-secret",
        type=_namespace_and_name,
        required=True,
        metavar="NAMESPACE/NAME",
        help="the Secret into which the controller writes a certificate and the webhooks' paths",
    )
    parser.add_argument("--tls-cert", type=Path, help="another certificate chain, PEM")
    parser.add_argument("--tls-key", type=Path, help="its private key, PEM")
    parser.add_argument(
        "--changes",
        type=_namespace_and_name,
        required=True,
        metavar="NAMESPACE/NAME",
        help="the ConfigMap in which all replicas note the changes of quotas that they allow",
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
        help="at the end, how long to go on answering at most, until the API server has closed its"
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
