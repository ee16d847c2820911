"""Events: what a person sees with ``kubectl describe``. Nothing ever depends on one."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol

from hugetlb_quota.kube.errors import ApiError
from hugetlb_quota.kube.resources import EVENTS, Resource

#: Longer notes are refused by the API server (pkg/apis/core/validation/events.go).
LONGEST_NOTE: Final = 1024
#: An Event about a cluster-scoped object lives here.
_CLUSTER_EVENTS: Final = "default"
_TIMEOUT: Final = 5.0

logger = logging.getLogger(__name__)


class EventApi(Protocol):
    """The part of a Connection that this needs."""

    async def create(
        self,
        resource: Resource,
        body: dict[str, Any],
        namespace: str | None = None,
        *,
        timeout: float = _TIMEOUT,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """POST one object."""
        ...


@dataclass(frozen=True, slots=True)
class Regarding:
    """The object that an Event is about; ``namespace`` is "" in the cluster's scope."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""


async def publish(
    connection: EventApi,
    regarding: Regarding,
    *,
    kind: Literal["Normal", "Warning"],
    reason: str,
    note: str,
    program: str,
    instance: str,
    action: str = "Reconcile",
) -> None:
    """Tell of something that happened to ``regarding``; a failure is only logged.

    :param reason: one word in CamelCase; ``note`` is the sentence.
    :param program: the reporting program, ``instance`` which of it.
    """
    namespace = regarding.namespace or _CLUSTER_EVENTS
    if len(note) > LONGEST_NOTE:
        note = note[: LONGEST_NOTE - 3] + "..."
    body = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": f"{regarding.name}.{uuid.uuid4().hex[:16]}"},
        "eventTime": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "type": kind,
        "reason": reason,
        "note": note,
        "action": action,
        "reportingController": f"hugetlb.dev/{program}",
        "reportingInstance": instance[:128],
        "regarding": {
            "apiVersion": regarding.api_version,
            "kind": regarding.kind,
            "namespace": regarding.namespace,
            "name": regarding.name,
            "uid": regarding.uid,
        },
    }
    try:
        await connection.create(EVENTS, body, namespace, timeout=_TIMEOUT)
    except ApiError as error:
        logger.warning("Event %s about %s was not published: %s", reason, regarding.name, error)
