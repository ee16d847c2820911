"""What keeps a quota until nothing is charged to it: kopf's finalizer and its handler.

The webhook refuses to delete a charged quota; this closes the moment between its
answer and the deletion. From then on admission refuses pods for the quota, so the use
that is read here can only fall. What is retained moves to an heir: the recount names it in
HugeTLBNode.spec, and counts it there once it has read that back. So a quota of which nothing
is charged any more is no longer needed to say who pays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import kopf

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.api import GROUP, VERSION
from hugetlb_quota.api.quota import PLURAL
from hugetlb_quota.kube import errors, status
from hugetlb_quota.kube.connection import Connection
from hugetlb_quota.kube.quotas import InvalidQuota, summary

FINALIZER: Final = "hugetlb.dev/charged"
#: Seconds between looks at a quota that is to go and is charged still.
AGAIN: Final = 2.0


def registry(connection: Connection) -> kopf.OperatorRegistry:
    """The handlers, for :func:`kopf.operator`."""
    handlers = kopf.OperatorRegistry()

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
        settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(
            prefix="controller.hugetlb.dev"
        )
        settings.networking.request_timeout = 10
        settings.networking.connect_timeout = 5
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 360
        # A quota that waits for its charges to go is no error to tell of each time.
        settings.posting.enabled = False

    @kopf.on.delete(GROUP, VERSION, PLURAL, registry=handlers)
    async def wait_for_charges(namespace: str | None, name: str | None, **_: Any) -> None:
        key = QuotaKey(namespace or "", name or "")
        try:
            counter = (await status.read(connection, key)).counter
        except errors.NotFound:
            return
        except (errors.ApiError, InvalidQuota) as error:
            raise kopf.TemporaryError(str(error), delay=AGAIN) from error
        if counter.used:
            raise kopf.TemporaryError(
                f"HugeTLBQuota {key} is charged still ({summary(counter)}); it goes when its pods"
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

    return handlers
