"""The admission program: ``python -m hugetlb_quota.admission --tls-cert FILE --tls-key FILE``."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import ssl
import sys
from datetime import timedelta
from pathlib import Path
from typing import Final

import uvloop

from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME
from hugetlb_quota.admission.metrics import AdmissionMetrics
from hugetlb_quota.admission.server import Certificate, PathSecret, serve
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.listening import EVERYWHERE
from hugetlb_quota.kube.probes import NoProbePort, serve_probes
from hugetlb_quota.program import add_options, start_log

#: Objects made and not freed before the youngest are collected; Python's own is 700.
GARBAGE_THRESHOLD: Final = 20_000

logger = logging.getLogger("hugetlb_quota.admission")


def main() -> None:
    """Serve until SIGTERM; exit code 1 with a sentence when that can't begin."""
    arguments = _arguments()
    start_log(arguments)
    # What was imported is never garbage, and of what a request makes nearly all goes by its
    # reference count: with Python's own threshold collections took 6 % of the time.
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
    try:
        uvloop.run(_run(arguments))
    except (NotConfigured, NoProbePort) as error:
        sys.exit(str(error))


async def _run(arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        certificate = Certificate(arguments.tls_cert, arguments.tls_key)
    except (OSError, ssl.SSLError) as error:
        sys.exit(
            f"The certificate {arguments.tls_cert} with the key {arguments.tls_key}"
            f" can't be loaded: {error}"
        )
    try:
        path = PathSecret(arguments.path_secret)
    except (OSError, ValueError) as error:
        sys.exit(f"The secret of the path, {arguments.path_secret}, can't be read: {error}")
    async with Connection.open("hugetlb-quota-admission") as connection:
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
                path,
                arguments.bind,
                arguments.port,
                changes=arguments.changes,
                lifetime=timedelta(seconds=arguments.request_timeout),
                metrics=metrics,
                require_quota=arguments.require_quota,
            )
            async with probes, serving as bound:
                is_serving.set()
                logger.info("Serving admission on %s port %d.", *bound)
                await stop.wait()
                logger.info("Ending: answering what was asked already.")
        except OSError as error:
            sys.exit(f"Can't listen on {arguments.bind} port {arguments.port}: {error}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hugetlb-quota-admission",
        description="Decides on pods and HugeTLBQuotas for the API server.",
    )
    parser.add_argument("--tls-cert", type=Path, required=True, help="certificate chain, PEM")
    parser.add_argument("--tls-key", type=Path, required=True, help="its private key, PEM")
    parser.add_argument(
        "--path-secret",
        type=Path,
        required=True,
        help="holds what the webhooks' paths begin with, known to the API server alone",
    )
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
        "--request-timeout",
        type=int,
        default=int(RESERVATION_LIFETIME.total_seconds()),
        help="kube-apiserver's --request-timeout in seconds, at least: what was admitted may"
        " still be created for so long (default: %(default)s)",
    )
    parser.add_argument(
        "--require-quota",
        action="store_true",
        help="refuse pods that ask for huge pages and that no quota governs",
    )
    add_options(parser)
    return parser.parse_args()


def _namespace_and_name(text: str) -> tuple[str, str]:
    namespace, _, name = text.partition("/")
    if not (namespace and name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/NAME")
    return namespace, name


if __name__ == "__main__":
    main()
