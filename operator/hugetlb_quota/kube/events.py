"""Events for ``kubectl describe``. No decision depends on an Event."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, Protocol

from hugetlb_quota.kube.api import ObjectApi
from hugetlb_quota.kube.errors import AlreadyExists, ApiError, Conflict, NotFound
from hugetlb_quota.kube.resources import EVENTS, Resource
from hugetlb_quota.program import about

#: The API server refuses longer notes (pkg/apis/core/validation/events.go).
LONGEST_NOTE: Final = 1024
#: The namespace of Events about cluster-scoped objects.
_CLUSTER_EVENTS: Final = "default"
_TIMEOUT: Final = 5.0
#: The largest length of an object's name (a DNS subdomain).
_LONGEST_NAME: Final = 253
_ATTEMPTS: Final = 5

Json = dict[str, Any]

logger = logging.getLogger(__name__)


class EventApi(Protocol):
    """The part of a Connection that creates Events."""

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
    """The object that an Event is about; ``namespace``: "" for a cluster-scoped object."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""


class SeriesApi(EventApi, ObjectApi, Protocol):
    """The part of a Connection that :func:`count` needs."""


def event(
    regarding: Regarding,
    *,
    kind: Literal["Normal", "Warning"],
    reason: str,
    note: str,
    program: str,
    instance: str,
    action: str,
    suffix: str = "",
) -> Json:
    """An Event about ``regarding``, with the present time.

    :param reason: one word in CamelCase.
    :param note: a sentence; cut to LONGEST_NOTE.
    :param program: the reporting program.
    :param instance: the reporting process of the program.
    :param suffix: the last part of the Event's name; random if empty.
    """
    if len(note) > LONGEST_NOTE:
        note = note[: LONGEST_NOTE - 3] + "..."
    suffix = suffix or uuid.uuid4().hex[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "namespace": regarding.namespace or _CLUSTER_EVENTS,
            "name": f"{regarding.name[: _LONGEST_NAME - len(suffix) - 1].rstrip('-.')}.{suffix}",
        },
        "eventTime": micro_time(),
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
    """Create an Event as :func:`event` does; log a failure and go on."""
    body = event(
        regarding,
        kind=kind,
        reason=reason,
        note=note,
        program=program,
        instance=instance,
        action=action,
    )
    try:
        await connection.create(EVENTS, body, body["metadata"]["namespace"], timeout=_TIMEOUT)
    except ApiError as error:
        logger.warning(
            "Event %s about %s was not published: %s",
            *(reason, regarding.name, error),
            extra=about(kind=regarding.kind, namespace=regarding.namespace, name=regarding.name),
        )


async def count(connection: SeriesApi, body: Json, times: int) -> None:
    """Add ``times`` to the count of the Event with the name of ``body``, or create the Event.

    Several processes may count the same Event concurrently. An existing Event keeps its note.

    :raises ApiError: if the write fails; Conflict if it loses all of the attempts.
    """
    namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            found = await connection.get(EVENTS, name, namespace, timeout=_TIMEOUT)
        except NotFound:
            found = None
        try:
            if found is None:
                new = body if times == 1 else {**body, "series": _series(times)}
                await connection.create(EVENTS, new, namespace, timeout=_TIMEOUT)
            else:
                before = (found.get("series") or {}).get("count", 1)
                more = {**found, "series": _series(before + times)}
                await connection.replace(EVENTS, name, more, namespace, timeout=_TIMEOUT)
        except (AlreadyExists, Conflict):
            if attempt == _ATTEMPTS:
                raise
        else:
            return


def _series(times: int) -> Json:
    return {"count": times, "lastObservedTime": micro_time()}


def micro_time() -> str:
    """The present time as a MicroTime of the API."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
