"""Compare-and-swap on the status of a HugeTLBQuota: the one way it is ever written."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Final

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.connection import REQUEST_TIMEOUT
from hugetlb_quota.kube.quotas import QuotaObject, status_body
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS

#: Waits between attempts, in seconds: a random part of it, doubled up to the last.
FIRST_BACKOFF: Final = 0.01
LONGEST_BACKOFF: Final = 0.32

#: From a quota as it is to what it should be; the very same object when it is right.
#: It may raise: then nothing is written. It may be called again with a later state.
Change = Callable[[QuotaObject], QuotaObject]


async def read(
    connection: ObjectApi,
    key: QuotaKey,
    *,
    timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
) -> QuotaObject:
    """The quota as the last write left it.

    :raises InvalidQuota: when it can't be understood.
    :raises ApiError: NotFound among them.
    """
    raw = await connection.get(HUGETLB_QUOTAS, key.name, key.namespace, timeout=timeout)
    return QuotaObject.from_json(raw)


async def write(
    connection: ObjectApi,
    quota: QuotaObject,
    *,
    timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
) -> dict[str, Any]:
    """Write the quota's status over the very state that it was read in; what was written.

    :raises Conflict: when somebody came between.
    :raises ApiError: NotFound among them; after ApiUnreachable it may have happened.
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
    known: QuotaObject | None = None,
) -> QuotaObject:
    """Read, change and write the quota's status until nobody came between.

    :param within: seconds for all of it.
    :param known: a state read just now, to save the first read.
    :returns: the object as written, or as read when there was nothing to write.
    :raises ApiUnreachable: when the time is over; the write may have happened.
    :raises InvalidQuota: when the object can't be understood.
    :raises ApiError: NotFound among them; and whatever ``change`` raises.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    backoff = FIRST_BACKOFF
    while True:
        left = deadline - loop.time()
        if left <= 0:
            raise errors.ApiUnreachable(
                f"HugeTLBQuota {key} could not be written within {within:g} s:"
                " others kept writing it at the same time."
            )
        before = known or await read(connection, key, timeout=left)
        known = None
        after = change(before)
        if after is before or after.is_stored:
            return after
        try:
            written = await write(connection, after, timeout=max(deadline - loop.time(), 0.001))
        except errors.Conflict:
            await asyncio.sleep(random.uniform(0, backoff))  # noqa: S311 - jitter, no secret
            backoff = min(backoff * 2, LONGEST_BACKOFF)
            continue
        return QuotaObject.from_json(written)
