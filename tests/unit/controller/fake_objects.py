"""An API server in memory: get and compare-and-swap of one object."""

from __future__ import annotations

import copy
from typing import Any

from hugetlb_quota.kube import errors
from hugetlb_quota.kube.resources import Resource

Json = dict[str, Any]


class Killed(BaseException):
    """The program was killed."""


class FakeObjects:
    """`killed_at`: the number of the write that kills the program; `lands`: whether to store it."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Json] = {}
        self.writes: list[str] = []
        self.version = 0
        self.killed_at: int | None = None
        self.lands = True

    def put(self, resource: Resource, raw: Json) -> None:
        self.version += 1
        stored = copy.deepcopy(raw)
        stored["metadata"]["resourceVersion"] = str(self.version)
        self.objects[resource.plural, raw["metadata"]["name"]] = stored

    async def get(
        self, resource: Resource, name: str, namespace: str | None = None, *, timeout: float = 1
    ) -> Json:
        try:
            return copy.deepcopy(self.objects[resource.plural, name])
        except KeyError:
            raise errors.NotFound(404, "NotFound", "no such object") from None

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: Json,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        timeout: float = 1,
    ) -> Json:
        last = self.killed_at == len(self.writes)
        if last and not self.lands:
            raise Killed
        stored = await self.get(resource, name, namespace)
        if stored["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise errors.Conflict(409, "Conflict", "it changed")
        self.put(resource, body)
        self.writes.append(name)
        if last:
            raise Killed
        return body


def configuration() -> Json:
    """The webhook configuration of the chart."""
    names = ("pods.hugetlb.dev", "relabelled.pods.hugetlb.dev", "quotas.hugetlb.dev")
    service = {"name": "admission", "namespace": "system", "port": 443}
    webhooks: list[Json] = [
        {"name": each, "clientConfig": {"service": dict(service)}} for each in names
    ]
    webhooks[2]["rules"] = [{"resources": ["hugetlbquotas"]}]
    return {"metadata": {"name": "hooks"}, "webhooks": webhooks}
