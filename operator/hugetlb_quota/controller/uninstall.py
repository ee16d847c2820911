"""``python -m hugetlb_quota.controller.uninstall``: remove our finalizer from all quotas.

Without the operator, a quota with the finalizer can never be deleted, nor can its namespace. This
program takes the Lease, so no controller leads any more. Then it removes the finalizer from every
quota, until the controller that led has stopped and no quota has the finalizer. The quotas stay.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from typing import Final

from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.controller_lease import HOOK, LEASE
from hugetlb_quota.kube.finalizers import has_finalizer, remove_finalizer
from hugetlb_quota.kube.lease import LEASE_DURATION, take
from hugetlb_quota.kube.pages import PAGE, pages
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS
from hugetlb_quota.program import add_options, start_log

#: The time between two passes over all quotas, in seconds; each pass renews the Lease.
_PERIOD: Final = 3.0

logger = logging.getLogger("hugetlb_quota.uninstall")


def main() -> None:
    """Remove the finalizers; exit code 1 with a sentence if an API request fails."""
    arguments = command_line().parse_args()
    start_log(arguments)
    try:
        asyncio.run(_main(arguments))
    except (NotConfigured, errors.ApiError) as error:
        sys.exit(str(error))


async def _main(arguments: argparse.Namespace) -> None:
    async with Connection.open("hugetlb-quota-uninstall") as connection:
        lease = (connection, arguments.lease_namespace, arguments.lease, HOOK)
        was_held = await take(*lease)
        loop = asyncio.get_running_loop()
        # By then the controller that held the Lease has stopped, with its kopf handlers.
        stopped_at = loop.time() + (LEASE_DURATION if was_held else 0)
        while await _remove_finalizers(connection) or loop.time() < stopped_at:
            await asyncio.sleep(_PERIOD)
            # A waiting controller would take the Lease if nobody renewed it.
            await take(*lease)
    logger.info(
        "No quota has the operator's finalizer any more. Quotas and CRDs stay; see docs/install.md."
    )


async def _remove_finalizers(connection: Connection) -> int:
    """Remove the finalizer from every quota; the number of quotas that had it."""
    found = 0
    async for page in pages(
        lambda token: connection.list_page(HUGETLB_QUOTAS, limit=PAGE, continuation=token)
    ):
        for raw in filter(has_finalizer, page.get("items") or ()):
            found += 1
            if await remove_finalizer(connection, raw):
                name = "{namespace}/{name}".format_map(raw["metadata"])
                logger.info("Removed the operator's finalizer from HugeTLBQuota %s.", name)
    return found


def command_line() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="hugetlb-quota-uninstall",
        description="Removes the operator's finalizer from all quotas, so that quotas can be"
        " deleted when the operator is gone.",
    )
    parser.add_argument(
        "--lease-namespace", required=True, help="the namespace of the controllers' Lease"
    )
    parser.add_argument("--lease", default=LEASE, help="the name of the Lease")
    add_options(parser)
    return parser


if __name__ == "__main__":
    main()
