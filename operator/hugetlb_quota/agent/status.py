"""The parts of a HugeTLBNode's status that come from a reading of the host. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from hugetlb_quota import quantity
from hugetlb_quota.accounting.charge import Charge
from hugetlb_quota.agent.reading import MountUse
from hugetlb_quota.agent.report import printable
from hugetlb_quota.api.node import MountStatus
from hugetlb_quota.node.pools import Pool

Json = dict[str, Any]


def timestamp(time: datetime) -> str:
    """Return ``time`` as the API writes times, in whole seconds of UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def summary(pools: Iterable[Pool]) -> str:
    """Return free and total bytes of the host's pools: ``2Mi: 96Mi/128Mi, 1Gi: 0/0``."""
    return ", ".join(
        f"{pool.size}: {quantity.render(pool.free * pool.size.bytes)}"
        f"/{quantity.render(pool.total * pool.size.bytes)}"
        for pool in pools
        if pool.numa_node is None
    )


def pool_status(pool: Pool) -> Json:
    """Return a pool as a row of the status."""
    status = {
        "pageSize": pool.size.resource,
        "numaNode": pool.numa_node,
        "total": pool.total,
        "free": pool.free,
        "reserved": pool.reserved,
        "surplus": pool.surplus,
    }
    return {name: value for name, value in status.items() if value is not None}


def mount_status(use: MountUse) -> MountStatus:
    """Return a mount and its use as a row of the status."""
    mount = use.mount
    return MountStatus(
        path=printable(mount.point),
        page_size=mount.size.resource,
        limit=None if mount.limit is None else quantity.render(mount.limit),
        minimum=quantity.render(mount.minimum) if mount.minimum else None,
        used=quantity.render(use.used),
    )


def too_low(ceiling: Charge, demand: Charge) -> Iterable[str]:
    """Yield a sentence for each limit of kubepods itself that is below the demand of all pods.

    :param ceiling: the limits of kubepods itself.
    :param demand: the demand of all pods of the node together.
    """
    for size, limit in ceiling.items():
        if demand.of(size) > limit:
            yield (
                f"kubepods itself is limited to {quantity.render(limit)} of {size.resource}, and"
                f" its pods ask for {quantity.render(demand.of(size))}: beyond that mmap fails in"
                " all of them. Write max to its hugetlb limits, or restart kubelet once the node"
                " has all its huge pages."
            )
