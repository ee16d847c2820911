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
from typing import Any, Final

from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.quota import FINALIZER, KIND
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.connection import Connection, NotConfigured
from hugetlb_quota.kube.events import micro_time
from hugetlb_quota.kube.lease import LEASE_DURATION
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS, LEASES
from hugetlb_quota.program import add_options, start_log

#: Seconds between looks, each of which renews the Lease.
_PERIOD: Final = 3.0
_PAGE: Final = 500
_HOLDER: Final = "uninstall"

Json = dict[str, Any]

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
        lease = (connection, arguments.lease_namespace, arguments.lease)
        led = await _take_lease(*lease)
        # Whoever led has stopped by then, kopf's handlers with it.
        sure_at = asyncio.get_running_loop().time() + (LEASE_DURATION if led else 0)
        while True:
            freed = await _free(connection)
            if not freed and asyncio.get_running_loop().time() >= sure_at:
                break
            await asyncio.sleep(_PERIOD)
            # A controller that waits for the Lease takes one that is not renewed for so long.
            await _take_lease(*lease)
    logger.info("No quota has a finalizer of ours. Quotas and CRDs stay; see docs/install.md.")


async def _take_lease(connection: Connection, namespace: str, name: str) -> bool:
    """Take the Lease from whoever holds it; False where nobody has ever led."""
    while True:
        try:
            lease = await connection.get(LEASES, name, namespace)
        except errors.NotFound:
            return False
        now = micro_time()
        holder = lease["spec"].get("holderIdentity")
        is_renewal = holder == _HOLDER
        lease["spec"] |= {
            "holderIdentity": _HOLDER,
            "leaseDurationSeconds": LEASE_DURATION,
            "acquireTime": now,
            "renewTime": now,
        }
        try:
            await connection.replace(LEASES, name, lease, namespace)
        except errors.Conflict:  # it was renewed just now
            continue
        if not is_renewal:
            logger.info("Took Lease %s/%s, so that no controller leads.", namespace, name)
        return bool(holder)


async def _free(connection: Connection) -> int:
    """Take the finalizer off every quota that has it; how many had."""
    freed = 0
    continuation: str | None = None
    while True:
        page = await connection.list_page(HUGETLB_QUOTAS, limit=_PAGE, continuation=continuation)
        for raw in page.get("items") or ():
            freed += await _free_one(connection, raw)
        continuation = page["metadata"].get("continue")
        if not continuation:
            return freed


async def _free_one(connection: Connection, raw: Json) -> bool:
    metadata = raw["metadata"]
    finalizers = metadata.get("finalizers") or []
    if FINALIZER not in finalizers:
        return False
    metadata["finalizers"] = [each for each in finalizers if each != FINALIZER]
    body = {**raw, "apiVersion": API_VERSION, "kind": KIND}
    namespace, name = metadata["namespace"], metadata["name"]
    try:
        await connection.replace(HUGETLB_QUOTAS, name, body, namespace)
    except (errors.Conflict, errors.NotFound):
        return True  # looked at again
    logger.info("HugeTLBQuota %s/%s has no finalizer of ours any more.", namespace, name)
    return True


def command_line() -> argparse.ArgumentParser:
    """All that the command line takes."""
    parser = argparse.ArgumentParser(prog="hugetlb-quota-uninstall", description=__doc__)
    parser.add_argument("--lease-namespace", required=True, help="where the controllers' Lease is")
    parser.add_argument("--lease", default="hugetlb-quota-controller", help="its name")
    add_options(parser)
    return parser


if __name__ == "__main__":
    main()
