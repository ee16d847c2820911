"""An API server with one Node and its HugeTLBNode, for tests of the agent."""

from __future__ import annotations

from typing import Any

from hugetlb_quota.kube.errors import AlreadyExists, ApiUnreachable, Conflict, NotFound
from hugetlb_quota.kube.resources import NODES, Resource

Json = dict[str, Any]


class FakeApi:
    """Keeps the two objects, and refuses writes of an old resourceVersion.

    ``report`` is the HugeTLBNode, or None. ``calls`` are verb and resource of each request. While
    ``down`` is True, each request fails.
    """

    def __init__(self) -> None:
        self.node: Json | None = {"metadata": {"name": "n", "uid": "node-uid"}}
        self.report: Json | None = None
        self.version = 10
        self.calls: list[str] = []
        self.down = False

    async def get(self, resource: Resource, name: str) -> Json:
        self._call("get", resource)
        found = self.node if resource == NODES else self.report
        if found is None:
            raise NotFound(404, "NotFound", f"{resource} {name} not found")
        return found

    async def create(self, resource: Resource, body: Json) -> Json:
        self._call("create", resource)
        if self.report is not None:
            raise AlreadyExists(409, "AlreadyExists", "the object exists")
        assert "status" not in body
        return self._store({**body, "metadata": {**body["metadata"], "uid": "report-uid"}})

    async def replace(
        self, resource: Resource, name: str, body: Json, *, subresource: str | None = None
    ) -> Json:
        self._call("replace", resource)
        assert subresource == "status"
        if self.report is None:
            raise NotFound(404, "NotFound", "gone")
        for field in ("resourceVersion", "uid"):
            if body["metadata"][field] != self.report["metadata"][field]:
                raise Conflict(409, "Conflict", "the object has changed")
        return self._store({**self.report, "status": body["status"]})

    def remember(self, **status: Any) -> None:
        """Store a report of an earlier agent."""
        metadata = {"name": "n", "uid": "report-uid", "resourceVersion": "3"}
        self.report = {"metadata": metadata, "status": status}

    def touch(self) -> None:
        """Write the status as another program."""
        assert self.report is not None
        self._store({**self.report, "status": {**self.status, "reportedAt": "by another"}})

    def wish(self) -> None:
        """Write the spec as the controller."""
        assert self.report is not None
        self._store({**self.report, "spec": {"reclaim": []}})

    @property
    def status(self) -> Json:
        status: Json = (self.report or {}).get("status") or {}
        return status

    @property
    def writes(self) -> int:
        return sum(call.startswith("replace") for call in self.calls)

    def _store(self, body: Json) -> Json:
        self.version += 1
        metadata = {**body["metadata"], "resourceVersion": str(self.version)}
        self.report = {**body, "metadata": metadata}
        return self.report

    def _call(self, verb: str, resource: Resource) -> None:
        self.calls.append(f"{verb} {resource.plural}")
        if self.down:
            raise ApiUnreachable("The API server can't be reached.")
