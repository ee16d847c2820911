"""``python -m hugetlb_quota.controller.uninstall``: before the operator goes, its finalizers do.

A quota whose finalizer nobody takes away could never be deleted, nor its namespace. So this takes
the Lease, whoever holds it, and with it the right to put finalizers on; waits until the
controller that led has stopped; and takes the finalizer off every quota. The quotas stay.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from typing import Final

from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.finalizers import is_guarded, let_go
from hugetlb_quota.kube.lease import LEASE_DURATION, take
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS
from hugetlb_quota.program import add_options, start_log

#: Seconds between looks, each of which renews the Lease.
_PERIOD: Final = 3.0
_PAGE: Final = 500
_HOLDER: Final = "uninstall"

logger = logging.getLogger("hugetlb_quota.uninstall")


def main() -> None:
    """Do it; exit code 1 with a sentence where that can't be done."""
    arguments = command_line().parse_args()
    start_log(arguments)
    try:
        asyncio.run(_main(arguments))
    except (NotConfigured, errors.ApiError) as error:
        sys.exit(str(error))


async def _main(arguments: argparse.Namespace) -> None:
    async with Connection.open("hugetlb-quota-uninstall") as connection:
        lease = (connection, arguments.lease_namespace, arguments.lease, _HOLDER)
        led = await take(*lease)
        # Whoever led has stopped by then, kopf's handlers with it.
        sure_at = asyncio.get_running_loop().time() + (LEASE_DURATION if led else 0)
        while True:
            freed = await _free(connection)
            if not freed and asyncio.get_running_loop().time() >= sure_at:
                break
            await asyncio.sleep(_PERIOD)
            # A controller that waits for the Lease takes one that is not renewed for so long.
            await take(*lease)
    logger.info("No quota has a finalizer of ours. Quotas and CRDs stay; see docs/install.md.")


async def _free(connection: Connection) -> int:
    """Take the finalizer off every quota that has it; how many had."""
    had = 0
    continuation: str | None = None
    while True:
        page = await connection.list_page(HUGETLB_QUOTAS, limit=_PAGE, continuation=continuation)
        for raw in filter(is_guarded, page.get("items") or ()):
            had += 1
            if await let_go(connection, raw):
                name = "{namespace}/{name}".format_map(raw["metadata"])
                logger.info("HugeTLBQuota %s has no finalizer of ours any more.", name)
        continuation = page["metadata"].get("continue")
        if not continuation:
            return had


def command_line() -> argparse.ArgumentParser:
    """All that the command line takes."""
    parser = argparse.ArgumentParser(prog="hugetlb-quota-uninstall", description=__doc__)
    parser.add_argument("--lease-namespace", required=True, help="where the controllers' Lease is")
    parser.add_argument("--lease", default="hugetlb-quota-controller", help="its name")
    add_options(parser)
    return parser


if __name__ == "__main__":
    main()
