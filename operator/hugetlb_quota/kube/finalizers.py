"""The operator's finalizer on quotas, and how the uninstall removes it.

Without the operator, a quota with the finalizer can never be deleted, nor can its namespace.
"""

from __future__ import annotations

from typing import Any

from hugetlb_quota.api import API_VERSION
from hugetlb_quota.api.quota import FINALIZER, KIND
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.resources import HUGETLB_QUOTAS


def has_finalizer(raw: dict[str, Any]) -> bool:
    """Whether the quota has the operator's finalizer."""
    return FINALIZER in (raw["metadata"].get("finalizers") or ())


async def remove_finalizer(api: ObjectApi, raw: dict[str, Any]) -> bool:
    """Remove the operator's finalizer from the quota ``raw``; other finalizers stay.

    :returns: False if the quota has changed since the read, or is gone; then read it again.
    :raises ApiError: if the write failed; the server may have done the write.
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
