"""The kopf handler that keeps a deleted quota until nothing is charged to the quota.

The webhook refuses to delete a charged quota. A pod may still be admitted between the webhook's
answer and the deletion, and the finalizer covers this moment. From the deletion on admission admits
no pod under the quota, so its use can only fall. The retained charge moves to an heir: the
recounter names the heir in HugeTLBNode.spec, and charges the heir after the recounter has read the
spec back. So when nothing is charged to the quota, nobody needs the quota to know who pays.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Final

import kopf

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.api import GROUP, VERSION
from hugetlb_quota.api.quota import DELETED, FINALIZER, PLURAL
from hugetlb_quota.kube import errors, status
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.quota_status import summary
from hugetlb_quota.kube.quotas import InvalidQuota
from hugetlb_quota.program import about

#: The time between two calls of the handler for a quota that is still charged, in seconds.
RETRY_PERIOD: Final = 2.0
#: For so many waiting quotas at most the last log line is remembered.
REMEMBERED: Final = 1024

logger = logging.getLogger(__name__)


def registry(connection: Connection) -> kopf.OperatorRegistry:
    """The handlers for :func:`kopf.operator`."""
    handlers = kopf.OperatorRegistry()
    #: By UID: why the quota waits, as last logged.
    logged: dict[str, str] = {}
    # kopf logs each call of a handler, and logs an error for a quota that only waits.
    logging.getLogger("kopf.objects").addFilter(_is_unexpected)

    @kopf.on.login(registry=handlers)
    def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # In the same order as Connection.open.
        if (kubeconfig := kopf.login_with_kubeconfig(**kwargs)) is not None:
            return kubeconfig
        account = kopf.login_with_service_account(**kwargs)
        # kopf would use the cluster's DNS, and the controller works without DNS.
        return account and replace(account, server=connection.server)

    @kopf.on.startup(registry=handlers)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.persistence.finalizer = FINALIZER
        settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(
            prefix="controller.hugetlb.dev"
        )
        settings.persistence.diffbase_storage = _NoDiffs()
        settings.networking.request_timeout = 10
        settings.networking.connect_timeout = 5
        settings.watching.label_selectors[GROUP, VERSION, PLURAL] = DELETED
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 360
        # kopf would create an Event for each call of the handler.
        settings.posting.enabled = False

    @kopf.on.delete(GROUP, VERSION, PLURAL, registry=handlers)
    async def wait_for_charges(
        namespace: str | None, name: str | None, uid: str | None, **_: Any
    ) -> None:
        key = QuotaKey(namespace or "", name or "")
        try:
            await _check_uncharged(connection, key)
        except kopf.TemporaryError as error:
            why = str(error)
            if logged.get(str(uid)) != why:
                logger.info("%s", why, extra=about(quota=key, uid=uid))
            while len(logged) >= REMEMBERED:
                del logged[next(iter(logged))]
            logged[str(uid)] = why
            raise
        logged.pop(str(uid), None)

    return handlers


async def _check_uncharged(connection: Connection, key: QuotaKey) -> None:
    """Check that nothing is charged to the quota, and that no line is left in its reservations.

    :raises kopf.TemporaryError: if a charge or a line is left, or the quota can't be read.
    """
    try:
        counter = (await status.read(connection, key)).counter
    except errors.NotFound:
        return
    except (errors.ApiError, InvalidQuota) as error:
        raise kopf.TemporaryError(str(error), delay=RETRY_PERIOD) from error
    if counter.used:
        raise kopf.TemporaryError(
            f"HugeTLBQuota {key} is still charged ({summary(counter.used, counter.hard)}). The"
            " quota stays until its pods are gone and an heir pays for the pages that they left.",
            delay=RETRY_PERIOD,
        )
    if counter.reservations:
        pods = ", ".join(each.pod for each in counter.reservations[:5])
        raise kopf.TemporaryError(
            f"HugeTLBQuota {key} stays until the nodes of the pods {pods} have reported. Until then"
            " only the quota's status.reservations says who pays for the pods' pages.",
            delay=RETRY_PERIOD,
        )


class _NoDiffs(kopf.DiffBaseStorage):
    """Stores no last version of a quota: the only handler is for deletions, not for changes."""

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        pass


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Whether a log record of kopf reports an error other than a quota that waits."""
    error = record.exc_info[1] if record.exc_info else None
    return error is not None and not isinstance(error, kopf.TemporaryError)
