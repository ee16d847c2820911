"""The node's part of kubelet: it registers, sends heartbeats, and runs the pods bound to it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.testnode.api import STRATEGIC_MERGE, Api, ApiError, Json
from tests.testnode.demand import PREFIX, parse_bytes
from tests.testnode.hugepages import page_sizes, total_pages
from tests.testnode.naming import resource_name
from tests.testnode.pod import Place, PodRun
from tests.testnode.status import now

log = logging.getLogger(__name__)

_UNREACHABLE = (aiohttp.ClientError, TimeoutError)
_RETRY_SECONDS = 0.5
_LEASE_SECONDS = 10.0
_STATUS_EVERY = 6
_NOT_READY = "node.kubernetes.io/not-ready"


def default_capacity() -> dict[str, str]:
    """The machine's huge pages, and enough of other resources for the pods of any test."""
    pages = {resource_name(size): str(total_pages(size) * size) for size in page_sizes()}
    return {"cpu": "32", "memory": "64Gi", "pods": "250", "ephemeral-storage": "100Gi"} | pages


def huge_page_bytes(capacity: Mapping[str, str]) -> dict[int, int]:
    """The huge pages of ``capacity``: bytes by page size in bytes."""
    return {
        parse_bytes(name.removeprefix(PREFIX)): parse_bytes(quantity)
        for name, quantity in capacity.items()
        if name.startswith(PREFIX)
    }


class Node:
    """A Node object and the pods bound to it."""

    def __init__(
        self, api: Api, place: Place, capacity: Mapping[str, str], labels: Mapping[str, str]
    ) -> None:
        self._api = api
        self._place = place
        self._name = place.node_name
        self._capacity = default_capacity() | dict(capacity)
        self._labels = {
            "kubernetes.io/hostname": self._name,
            "kubernetes.io/os": "linux",
            **labels,
        }
        self._bound: dict[str, _Bound] = {}

    async def run(self, ready: Path) -> None:
        """Run until cancelled; create the file ``ready`` when pods can be scheduled here.

        A cancellation ends every pod with its processes, cgroups and mounts.
        """
        self._place.make(huge_page_bytes(self._capacity))
        try:
            async with asyncio.TaskGroup() as group:
                await self._insist(self._register)
                group.create_task(self._heartbeat())
                group.create_task(self._follow_pods())
                await self._until_schedulable()
                ready.touch()
        finally:
            tasks = [bound.task for bound in self._bound.values() if bound.task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _insist(self, call: Callable[[], Awaitable[None]]) -> None:
        """Repeat the call until it succeeds: the API server or a namespace may not be ready."""
        while True:
            try:
                return await call()
            except (ApiError, *_UNREACHABLE) as error:
                log.warning("%s; trying again", error)
                await asyncio.sleep(_RETRY_SECONDS)

    # The Node object

    async def _register(self) -> None:
        metadata = {"name": self._name, "labels": self._labels}
        node: Json = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {}}
        node["status"] = self._node_status()
        try:
            await self._api.call("POST", "/api/v1/nodes", node)
        except ApiError as error:
            if error.code != 409:
                raise
            await self._patch_node("", {"metadata": metadata})
            await self._report_node()

    async def _patch_node(self, subresource: str, patch: Json) -> Json:
        return await self._api.call(
            "PATCH",
            f"/api/v1/nodes/{self._name}{subresource}",
            patch,
            content_type=STRATEGIC_MERGE,
        )

    async def _report_node(self) -> None:
        await self._patch_node("/status", {"status": self._node_status()})

    def _node_status(self) -> Json:
        held = {
            "MemoryPressure": ("False", "KubeletHasSufficientMemory"),
            "DiskPressure": ("False", "KubeletHasNoDiskPressure"),
            "PIDPressure": ("False", "KubeletHasSufficientPID"),
            "Ready": ("True", "KubeletReady"),
        }
        conditions = [
            {"type": kind, "status": status, "reason": reason, "lastHeartbeatTime": now()}
            for kind, (status, reason) in held.items()
        ]
        return {
            "capacity": self._capacity,
            "allocatable": self._capacity,
            "conditions": conditions,
            "addresses": [
                {"type": "InternalIP", "address": "127.0.0.1"},
                {"type": "Hostname", "address": self._name},
            ],
            "nodeInfo": _node_info(),
        }

    async def _until_schedulable(self) -> None:
        """Wait until the node lifecycle controller has removed the not-ready taint."""
        while True:
            try:
                node = await self._api.call("GET", f"/api/v1/nodes/{self._name}")
                if _NOT_READY not in {t["key"] for t in node["spec"].get("taints") or ()}:
                    return
            except (ApiError, *_UNREACHABLE) as error:
                log.warning("get node: %s", error)
            await asyncio.sleep(0.1)

    async def _heartbeat(self) -> None:
        beats = 0
        while True:
            await self._insist(self._renew_lease)
            await asyncio.sleep(_LEASE_SECONDS)
            beats += 1
            if beats % _STATUS_EVERY == 0:
                await self._insist(self._report_node)

    async def _renew_lease(self) -> None:
        leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        spec = {
            "holderIdentity": self._name,
            "leaseDurationSeconds": 40,
            "renewTime": now().replace("Z", ".000000Z"),
        }
        try:
            await self._api.call(
                "PATCH",
                f"{leases}/{self._name}",
                {"spec": spec},
                content_type="application/merge-patch+json",
            )
        except ApiError as error:
            if error.code != 404:
                raise
            lease = {"metadata": {"name": self._name}, "spec": spec}
            await self._api.call("POST", leases, lease)

    # Pods

    async def _follow_pods(self) -> None:
        """List, then watch; list again after an error."""
        query = {"fieldSelector": f"spec.nodeName={self._name}"}
        while True:
            try:
                version = await self._list_pods(query)
                while True:
                    async for event in self._api.watch("/api/v1/pods", query, version):
                        version = event["object"]["metadata"]["resourceVersion"]
                        self._take(event["type"], event["object"])
            except (ApiError, *_UNREACHABLE) as error:
                log.warning("pods: %s; listing again", error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _list_pods(self, query: Mapping[str, str]) -> str:
        pods = await self._api.call("GET", "/api/v1/pods", query=query)
        seen = {pod["metadata"]["uid"] for pod in pods["items"]}
        for uid in self._bound.keys() - seen:
            self._vanished(uid)
        for pod in pods["items"]:
            self._take("MODIFIED", pod)
        return str(pods["metadata"]["resourceVersion"])

    def _take(self, event: str, pod: Json) -> None:
        if event == "BOOKMARK":
            return
        uid = pod["metadata"]["uid"]
        if event == "DELETED":
            self._vanished(uid)
            return
        if uid not in self._bound:
            bound = _Bound(PodRun(pod, self._place, lambda status: self._report_pod(pod, status)))
            bound.task = asyncio.create_task(self._live(uid, bound), name=f"pod {uid}")
            self._bound[uid] = bound
        bound = self._bound[uid]
        bound.run.pod = pod
        if "deletionTimestamp" in pod["metadata"]:
            bound.delete(float(pod["metadata"].get("deletionGracePeriodSeconds") or 0))

    def _vanished(self, uid: str) -> None:
        """End a pod that still runs: its object was force-deleted, or deleted between watches."""
        if uid in self._bound:
            self._bound[uid].delete(1)

    async def _live(self, uid: str, bound: _Bound) -> None:
        """Run a pod until its object is deleted; the cgroup is removed before the object.

        A pod that was finished or being deleted when the node started does not run. Other pods
        of an earlier process of this node start again.
        """
        pod = bound.run.pod
        over = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        try:
            if not over and "deletionTimestamp" not in pod["metadata"]:
                await bound.run.run()
            await bound.deleted.wait()
            await self._insist(lambda: self._delete_pod(pod))
        except Exception:
            log.exception("pod %s: gave up", _key(pod))
        finally:
            del self._bound[uid]

    async def _report_pod(self, pod: Json, status: Json) -> None:
        """Write the status; the UID in the patch protects a new pod with the same name."""
        metadata = {"uid": pod["metadata"]["uid"]}

        async def report_pod() -> None:
            await self._unless_gone(
                "PATCH",
                f"{_path(pod)}/status",
                {"metadata": metadata, "status": status},
                STRATEGIC_MERGE,
            )

        await self._insist(report_pod)

    async def _delete_pod(self, pod: Json) -> None:
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        await self._unless_gone("DELETE", _path(pod), options, "application/json")

    async def _unless_gone(self, method: str, path: str, body: Json, content_type: str) -> None:
        try:
            await self._api.call(method, path, body, content_type=content_type)
        except ApiError as error:
            # 409: another object now has the name.
            if error.code not in (404, 409):
                raise


@dataclass
class _Bound:
    """A pod bound to this node; ``deleted`` is set after a request to delete the pod."""

    run: PodRun
    deleted: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def delete(self, grace_seconds: float) -> None:
        self.deleted.set()
        self.run.terminate(grace_seconds)


def _key(pod: Json) -> str:
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _path(pod: Json) -> str:
    metadata = pod["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


def _node_info() -> dict[str, str]:
    return {
        "bootID": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "kernelVersion": os.uname().release,
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, ""),
        "operatingSystem": "linux",
        "osImage": "this machine",
        "containerRuntimeVersion": "containerd://0.0.0-testnode",
        "kubeletVersion": "v1.0.0-testnode",
        "kubeProxyVersion": "",
        "machineID": "",
        "systemUUID": "",
    }
