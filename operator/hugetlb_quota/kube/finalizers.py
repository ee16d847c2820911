"""The operator's finalizer on quotas, and how it comes off when the operator goes.

A quota whose finalizer nobody takes away could never be deleted, nor its namespace.
"""

from __future__ import annotations

from typing import Any

from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.quota import FINALIZER, KIND
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS


def is_guarded(raw: dict[str, Any]) -> bool:
    """Whether the quota has our finalizer."""
    return FINALIZER in (raw["metadata"].get("finalizers") or ())


async def let_go(api: ObjectApi, raw: dict[str, Any]) -> bool:
    """Take our finalizer off the quota ``raw``, and leave those of others.

    False where the quota has changed since it was read, or is gone: look at it again.

    :raises ApiError: when it can't be written; it may have been.
    """
    metadata = raw["metadata"]
    others = [each for each in metadata["finalizers"] if each != FINALIZER]
    body = {
        **raw,
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {**metadata, "finalizers": others},
    }
    try:
        await api.replace(HUGETLB_QUOTAS, metadata["name"], body, metadata["namespace"])
    except (errors.Conflict, errors.NotFound):
        return False
    return True
