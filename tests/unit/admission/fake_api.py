"""An API server in memory with the requests that admission makes, and objects to store in it."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeVar

from hugetlb_quota.accounting.forest import QuotaKey
from hugetlb_quota.accounting.reservation import RESERVATION_LIFETIME, parse_all
from hugetlb_quota.admission.cache import QuotaCache
from hugetlb_quota.admission.changes import ChangeNotes
from hugetlb_quota.admission.commit import Committer
from hugetlb_quota.admission.deadline import Deadline
from hugetlb_quota.admission.pods import PodAdmission
from hugetlb_quota.admission.quotas import QuotaAdmission
from hugetlb_quota.admission.review import AdmissionRequest, Decision, GroupResource
from hugetlb_quota.api.quota import FINALIZER
from hugetlb_quota.kube import errors
from hugetlb_quota.kube.quotas import QuotaObject
from hugetlb_quota.kube.resources import CONFIG_MAPS, EVENTS, HUGETLB_QUOTAS, NAMESPACES, Resource
from hugetlb_quota.page_size import PageSize
from hugetlb_quota.quantity import render

Json = dict[str, Any]
#: The present time of :func:`decide_pod`.
NOW: Final = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)

#: The ConfigMap in which admission notes changes of quotas.
CHANGES: Final = ("hugetlb-system", "hugetlb-quota-changes")
PLURALS: Final = {
    "Namespace": NAMESPACES.plural,
    "HugeTLBQuota": HUGETLB_QUOTAS.plural,
    "ConfigMap": CONFIG_MAPS.plural,
    "Event": EVENTS.plural,
}

#: The fate of a request: the API answers, or the request is lost, or the answer is lost.
Fate = Literal["answered", "lost", "answer lost"]


class FakeApi:
    """Stores objects with growing resourceVersions; a write over an older version is a Conflict."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.version = 0
        self.requests: list[str] = []
        self.events: list[tuple[int, str, Json]] = []
        self._new_event = asyncio.Event()
        namespace, name = CHANGES
        self.put({"kind": "ConfigMap", "metadata": {"namespace": namespace, "name": name}})

    async def turn(self, request: str) -> Fate:
        """Return the fate of a request. Each request calls this method first, and awaits it."""
        self.requests.append(request)
        await asyncio.sleep(0)
        return "answered"

    @property
    def writes(self) -> list[str]:
        """The writes of quotas so far."""
        return [each for each in self.requests if each.startswith("PUT hugetlbquotas")]

    @property
    def noted(self) -> list[str]:
        """The noted changes of quotas: the quota and its new parent."""
        data = self.objects[CONFIG_MAPS.plural, *CHANGES].get("data", {})
        return [line.rsplit(" ", 3)[0] for line in data.get("changes", "").splitlines()]

    def put(self, raw: Json) -> Json:
        """Store the object as an administrator would, over any version; the stored object."""
        self.version += 1
        metadata = raw["metadata"]
        kept = copy.deepcopy(raw)
        kept["metadata"] |= {"resourceVersion": str(self.version)}
        kept["metadata"].setdefault("uid", f"uid-{self.version}")
        plural = PLURALS[raw["kind"]]
        self.objects[plural, metadata.get("namespace", ""), metadata["name"]] = kept
        self._add_event(plural, "MODIFIED", kept)
        return kept

    def remove(self, key: str) -> None:
        """Delete a quota as an administrator would."""
        self.version += 1
        namespace, name = QuotaKey.parse(key)
        gone = copy.deepcopy(self.objects.pop((HUGETLB_QUOTAS.plural, namespace, name)))
        gone["metadata"]["resourceVersion"] = str(self.version)
        self._add_event(HUGETLB_QUOTAS.plural, "DELETED", gone)

    def _add_event(self, plural: str, kind: str, raw: Json) -> None:
        self.events.append((self.version, plural, {"type": kind, "object": copy.deepcopy(raw)}))
        new_event, self._new_event = self._new_event, asyncio.Event()
        new_event.set()

    async def deliver(self) -> None:
        """Delay an event of a watch. The watch calls this method before each event."""

    async def watch(
        self,
        resource: Resource,
        resource_version: str,
        namespace: str | None = None,
        *,
        field_selector: str | None = None,
    ) -> AsyncIterator[Json]:
        sent = len(self.events)
        while sent and self.events[sent - 1][0] > int(resource_version):
            sent -= 1
        while True:
            new_event = self._new_event
            while sent < len(self.events):
                _, plural, event = self.events[sent]
                sent += 1
                if plural == resource.plural:
                    await self.deliver()
                    yield copy.deepcopy(event)
            await new_event.wait()

    def quota(self, key: str) -> QuotaObject:
        return QuotaObject.from_json(self.raw(key))

    def raw(self, key: str) -> Json:
        namespace, name = QuotaKey.parse(key)
        return self.objects[HUGETLB_QUOTAS.plural, namespace, name]

    def reservations(self, key: str) -> dict[str, str]:
        """The reserved amount of 2Mi pages, by the UID of the pod or quota."""
        held, _ = parse_all(self.raw(key).get("status", {}).get("reservations"))
        return {each.uid: render(each.charge.of(PageSize(2 * 1024**2))) for each in held}

    async def get(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        timeout: float = 1.0,
    ) -> Json:
        fate = await self.turn(f"GET {resource.plural} {namespace or ''}/{name}")
        self._check_fate(fate, "GET", "lost", "answer lost")
        return copy.deepcopy(self._find(resource, name, namespace))

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        field_selector: str | None = None,
        limit: int | None = None,
        continuation: str | None = None,
        timeout: float = 1.0,
    ) -> Json:
        fate = await self.turn(f"LIST {resource.plural} {namespace or ''}")
        self._check_fate(fate, "LIST", "lost", "answer lost")
        items = [
            copy.deepcopy(raw)
            for (plural, where, _), raw in self.objects.items()
            if plural == resource.plural and namespace in (None, where)
        ]
        return {"metadata": {"resourceVersion": str(self.version)}, "items": items}

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: Json,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        timeout: float = 1.0,
    ) -> Json:
        assert subresource == ("status" if resource == HUGETLB_QUOTAS else None)
        suffix = "" if subresource is None else f"/{subresource}"
        fate = await self.turn(f"PUT {resource.plural}{suffix} {namespace or ''}/{name}")
        self._check_fate(fate, "PUT", "lost")
        stored = self._find(resource, name, namespace)
        sent = body["metadata"]
        if (sent["resourceVersion"], sent["uid"]) != (
            stored["metadata"]["resourceVersion"],
            stored["metadata"]["uid"],
        ):
            raise errors.Conflict(409, "Conflict", "the object has been modified")
        changed = {"status": body["status"]} if subresource == "status" else body
        written = self.put({**stored, **copy.deepcopy(changed)})
        self.wrote(f"{namespace}/{name}")
        self._check_fate(fate, "PUT", "answer lost")
        return copy.deepcopy(written)

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Json,
        namespace: str | None = None,
        *,
        timeout: float = 1.0,
    ) -> Json:
        """Merge ``body`` into the metadata; removing a field is not supported."""
        fate = await self.turn(f"PATCH {resource.plural} {namespace or ''}/{name}")
        self._check_fate(fate, "PATCH", "lost")
        stored = self._find(resource, name, namespace)
        sent, held = body["metadata"], stored["metadata"]
        if any(sent.get(each, held[each]) != held[each] for each in ("uid", "resourceVersion")):
            raise errors.Conflict(409, "Conflict", "the object has been modified")
        sent = {**sent, "labels": held.get("labels", {}) | sent.get("labels", {})}
        written = self.put({**stored, "metadata": {**held, **copy.deepcopy(sent)}})
        self._check_fate(fate, "PATCH", "answer lost")
        return copy.deepcopy(written)

    async def create(
        self,
        resource: Resource,
        body: Json,
        namespace: str | None = None,
        *,
        timeout: float = 1.0,
    ) -> Json:
        name = body["metadata"]["name"]
        fate = await self.turn(f"POST {resource.plural} {namespace or ''}/{name}")
        self._check_fate(fate, "POST", "lost", "answer lost")
        if (resource.plural, namespace or "", name) in self.objects:
            raise errors.AlreadyExists(409, "AlreadyExists", f"{resource} {name!r} already exists")
        return copy.deepcopy(self.put(body))

    @property
    def event_counts(self) -> list[tuple[str, int]]:
        """Each Event's quota, and the Event's count."""
        return [
            (
                f"{raw['regarding']['namespace']}/{raw['regarding']['name']}",
                raw.get("series", {}).get("count", 1),
            )
            for (plural, _, _), raw in self.objects.items()
            if plural == EVENTS.plural
        ]

    def wrote(self, key: str) -> None:
        """Called after each status write."""

    @staticmethod
    def _check_fate(fate: Fate, verb: str, *fatal: Fate) -> None:
        if fate in fatal:
            raise errors.ApiUnreachable(f"The API server did not answer {verb}.")

    def _find(self, resource: Resource, name: str, namespace: str | None) -> Json:
        try:
            return self.objects[resource.plural, namespace or "", name]
        except KeyError:
            raise errors.NotFound(404, "NotFound", f"{resource} {name!r} not found") from None


_Api = TypeVar("_Api", bound=FakeApi)


def _now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def admitting(
    api: FakeApi,
    now: Callable[[], datetime] = _now,
    lifetime: timedelta = RESERVATION_LIFETIME,
    *,
    require_quota: bool = False,
) -> AsyncIterator[PodAdmission]:
    """A replica that decides on pods; at the end, all refused reservations are taken back."""
    cache = QuotaCache(api)
    committer = Committer(api, cache)
    async with cache.running():
        try:
            yield PodAdmission(
                cache, committer, now, lifetime=lifetime, require_quota=require_quota
            )
        finally:
            await committer.close()


@asynccontextmanager
async def admitting_quotas(api: FakeApi) -> AsyncIterator[QuotaAdmission]:
    """A replica that decides on quotas. Its cache is empty, because each decision reads the API."""
    committer = Committer(api, QuotaCache(api))
    try:
        yield QuotaAdmission(api, committer, ChangeNotes(api, CHANGES))
    finally:
        await committer.close()


async def filled_cache(api: FakeApi) -> QuotaCache:
    """A cache that has read all quotas and all namespaces' labels, and that has no watch."""
    cache = QuotaCache(api)
    quotas = [QuotaKey(*key) for plural, *key in api.objects if plural == HUGETLB_QUOTAS.plural]
    namespaces = [name for plural, _, name in api.objects if plural == NAMESPACES.plural]
    await cache.read(quotas, namespaces)
    return cache


async def decide_pod(api: FakeApi, request: AdmissionRequest, seconds: float = 9.0) -> Decision:
    """The decision of a new replica at NOW, with ``seconds`` until the deadline."""
    async with admitting(api, lambda: NOW) as admission:
        return await admission.decide(request, Deadline.after(seconds))


def with_tenant(api: _Api) -> _Api:
    """``api`` with acme/tenant of 256Mi, and db/leaf of 128Mi below."""
    api.put(namespace("acme"))
    api.put(namespace("db", tenant="acme"))
    children = {"matchLabels": {"tenant": "acme"}}
    api.put(quota("acme/tenant", {"hugepages-2Mi": "256Mi"}, children=children))
    api.put(quota("db/leaf", {"hugepages-2Mi": "128Mi"}, parent="acme/tenant"))
    return api


def quota(
    key: str,
    hard: Mapping[str, str | int],
    *,
    parent: str | None = None,
    selector: Json | None = None,
    children: Json | None = None,
    pods: Mapping[str, str] | None = None,
    reservations: list[str] | None = None,
    terminating: bool = False,
    counted: bool = True,
    retained: Mapping[str, str] | None = None,
    policy: str | None = None,
    attached_to: str | None = None,
) -> Json:
    """A HugeTLBQuota in JSON; ``hard`` and ``pods`` are by resource name."""
    namespace, name = QuotaKey.parse(key)
    spec: Json = {"hard": dict(hard)}
    if parent is not None:
        above = QuotaKey.parse(parent)
        spec["parentRef"] = {"namespace": above.namespace, "name": above.name}
    if selector is not None:
        spec["podSelector"] = selector
    if children is not None:
        spec["childNamespaces"] = children
    if policy is not None:
        spec["deletionPolicy"] = policy
    metadata: Json = {
        "namespace": namespace,
        "name": name,
        "generation": 1,
        "finalizers": [FINALIZER],
    }
    if terminating:
        metadata["deletionTimestamp"] = "2026-11-22T12:00:00Z"
    status: Json = {} if attached_to is None else {"attachedTo": attached_to}
    return {
        "apiVersion": "hugetlb.dev/v1alpha1",
        "kind": "HugeTLBQuota",
        "metadata": metadata,
        "spec": spec,
        "status": status
        | {
            "observedGeneration": int(counted),
            "pods": dict(pods or {}),
            "retained": dict(retained or {}),
            "reservations": reservations or [],
        },
    }


def namespace(name: str, **labels: str) -> Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def reservation(
    uid: str,
    pod: str,
    amount: str,
    expires: str = "2026-11-22T12:00:00Z",
    request: str = "another-request",
) -> str:
    """A line of status.reservations."""
    return f"{uid} {pod} 2Mi:{amount} {expires} {request} 0"


def pod(
    uid: str = "pod-1",
    request: Mapping[str, Any] | None = None,
    *,
    namespace: str = "db",
    labels: Mapping[str, str] | None = None,
    **fields: Any,
) -> Json:
    """A pod of one container in JSON; ``fields`` go into its metadata."""
    resources = {"requests": dict({"hugepages-2Mi": "64Mi"} if request is None else request)}
    metadata = {"namespace": namespace, "name": f"name-of-{uid}", "uid": uid}
    return {
        "metadata": {**metadata, "labels": dict(labels or {}), **fields},
        "spec": {"containers": [{"name": "main", "resources": resources}]},
    }


def create(raw: Json, **fields: Any) -> AdmissionRequest:
    """The request to create ``raw``, with further ``fields`` of the request."""
    return _request("CREATE", raw, object=raw, **fields)


def update(old: Json, new: Json, **fields: Any) -> AdmissionRequest:
    return _request("UPDATE", new, object=new, old_object=old, **fields)


def delete(old: Json, **fields: Any) -> AdmissionRequest:
    return _request("DELETE", old, old_object=old, **fields)


def _request(operation: str, raw: Json, **fields: Any) -> AdmissionRequest:
    metadata = raw["metadata"]
    return AdmissionRequest(
        uid=fields.pop("uid", "request-1"),
        resource=GroupResource("", "any"),
        operation=operation,
        namespace=metadata["namespace"],
        name=metadata["name"],
        **fields,
    )
