"""Compare-and-swap on the status of a HugeTLBQuota; every write of the status is one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.backoff import Backoff
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.connection import REQUEST_TIMEOUT
from hugetlb_quota.kube.quotas import QuotaObject, status_body
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS

#: The first and the longest upper bound of the random wait after a Conflict, in seconds.
FIRST_BACKOFF: Final = 0.01
LONGEST_BACKOFF: Final = 0.32

#: Makes the new quota of the present one; returns the same object to write nothing. If it
#: raises, nothing is written. After a Conflict it is called again with the newer quota.
Change = Callable[[QuotaObject], QuotaObject]


async def read(
    connection: ObjectApi,
    key: QuotaKey,
    *,
    timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
) -> QuotaObject:
    """Read the quota, by quorum read.

    :raises InvalidQuota: if its spec is invalid.
    :raises ApiError: also NotFound.
    """
    raw = await connection.get(HUGETLB_QUOTAS, key.name, key.namespace, timeout=timeout)
    return QuotaObject.from_json(raw)


async def write(
    connection: ObjectApi,
    quota: QuotaObject,
    *,
    timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
) -> dict[str, Any]:
    """Write the quota's status over the version that was read; the JSON of the written object.

    :raises Conflict: if another write came first.
    :raises ApiError: also NotFound; after ApiUnreachable the server may have done the write.
    """
    return await connection.replace(
        HUGETLB_QUOTAS,
        quota.key.name,
        status_body(quota),
        quota.key.namespace,
        subresource="status",
        timeout=timeout,
    )


async def compare_and_swap(
    connection: ObjectApi,
    key: QuotaKey,
    change: Change,
    *,
    within: float = REQUEST_TIMEOUT,
    just_read: QuotaObject | None = None,
) -> QuotaObject:
    """Read, change and write the quota's status; after a Conflict, try again.

    :param within: the time limit of all attempts, in seconds.
    :param just_read: the quota as the caller has read it, to save the first read.
    :returns: the written object, or the read object if there is nothing to write.
    :raises ApiUnreachable: if the time is over; the server may have done the write.
    :raises InvalidQuota: if the quota's spec is invalid.
    :raises ApiError: also NotFound. Exceptions of ``change`` are raised too.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    backoff = Backoff(FIRST_BACKOFF, LONGEST_BACKOFF)
    while True:
        left = deadline - loop.time()
        if left <= 0:
            raise errors.ApiUnreachable(
                f"HugeTLBQuota {key} could not be written within {within:g} s:"
                " others kept writing it at the same time."
            )
        before = just_read or await read(connection, key, timeout=left)
        just_read = None
        after = change(before)
        if after is before or after.is_stored:
            return after
        try:
            written = await write(connection, after, timeout=max(deadline - loop.time(), 0.001))
        except errors.Conflict:
            await asyncio.sleep(random.uniform(0, backoff.next()))  # noqa: S311 - jitter, no secret
            continue
        return QuotaObject.from_json(written)
