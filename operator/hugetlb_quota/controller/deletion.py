"""What keeps a quota until nothing is charged to it: a finalizer, and kopf, which takes it off.

The webhook refuses to delete a charged quota; this closes the moment between its
answer and the deletion. From then on admission refuses pods for the quota, so the use
that is read here can only fall. What is retained moves to an heir: the recount names it in
HugeTLBNode.spec, and counts it there once it has read that back. So a quota of which nothing
is charged any more is no longer needed to say who pays.
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
from hugetlb_quota.kube.quotas import InvalidQuota, summary
from hugetlb_quota.program import about

#: Seconds between looks at a quota that is to go and is charged still.
AGAIN: Final = 2.0
#: Of so many quotas that wait it is remembered what was told.
WAITING_KEPT: Final = 1024

logger = logging.getLogger(__name__)


def registry(connection: Connection) -> kopf.OperatorRegistry:
    """The handlers, for :func:`kopf.operator`."""
    handlers = kopf.OperatorRegistry()
    waiting: dict[str, str] = {}
    # It tells by its handlers' names of each try, as an error too where a quota only waits.
    logging.getLogger("kopf.objects").addFilter(_is_no_try)

    @kopf.on.login(registry=handlers)
    def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # In the order in which Connection.open looks.
        if (told := kopf.login_with_kubeconfig(**kwargs)) is not None:
            return told
        account = kopf.login_with_service_account(**kwargs)
        # Not by the cluster's DNS, as kopf does: what else the controller does needs none.
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
        # A quota that waits for its charges to go is no error to tell of each time.
        settings.posting.enabled = False

    @kopf.on.delete(GROUP, VERSION, PLURAL, registry=handlers)
    async def wait_for_charges(
        namespace: str | None, name: str | None, uid: str | None, **_: Any
    ) -> None:
        key = QuotaKey(namespace or "", name or "")
        try:
            await _see_that_it_is_uncharged(connection, key)
        except kopf.TemporaryError as error:
            why = str(error)
            if waiting.get(str(uid)) != why:
                logger.info("%s", why, extra=about(quota=key, uid=uid))
            while len(waiting) >= WAITING_KEPT:
                del waiting[next(iter(waiting))]
            waiting[str(uid)] = why
            raise
        waiting.pop(str(uid), None)

    return handlers


async def _see_that_it_is_uncharged(connection: Connection, key: QuotaKey) -> None:
    """See that nothing is charged to the quota any more, or that it is gone.

    :raises kopf.TemporaryError: when something is, or that can't be told just now.
    """
    try:
        counter = (await status.read(connection, key)).counter
    except errors.NotFound:
        return
    except (errors.ApiError, InvalidQuota) as error:
        raise kopf.TemporaryError(str(error), delay=AGAIN) from error
    if counter.used:
        raise kopf.TemporaryError(
            f"HugeTLBQuota {key} is charged still ({summary(counter.used, counter.hard)});"
            " it goes when its pods"
            " have, and what they left is charged to its heir.",
            delay=AGAIN,
        )
    if counter.reservations:
        pods = ", ".join(each.pod for each in counter.reservations[:5])
        raise kopf.TemporaryError(
            f"HugeTLBQuota {key} alone knows whose the pages are that nodes may yet tell of"
            f" (pods {pods}); it goes when their agents have reported.",
            delay=AGAIN,
        )


class _NoDiffs(kopf.DiffBaseStorage):
    """Keeps no copy of a quota on the quota: only deletions are handled, and no changes."""

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        pass


def _is_no_try(record: logging.LogRecord) -> bool:
    """Whether a record of kopf's tells of an error that nobody foresaw, and not of a try."""
    error = record.exc_info[1] if record.exc_info else None
    return error is not None and not isinstance(error, kopf.TemporaryError)
