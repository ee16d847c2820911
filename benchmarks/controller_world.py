"""The objects that ``benchmarks.controller`` makes on the API server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from typing import Any

import aiohttp
import orjson

from benchmarks.pods import container
from tests.kube.api import Object
from tests.kube.control_plane import ControlPlane

QUOTAS = "/apis/hugetlb.dev/v1alpha1/hugetlbquotas"
REPORTS = "/apis/hugetlb.dev/v1alpha1/hugetlbnodes"
GROUP = "/apis/hugetlb.dev/v1alpha1"
#: The number of quotas in one namespace: a root without pods, and its children.
FAMILY = 10
CREATORS = 32
NODE_INFO = (
    *("machineID", "systemUUID", "kernelVersion", "osImage", "containerRuntimeVersion"),
    *("kubeletVersion", "kubeProxyVersion", "operatingSystem", "architecture"),
)


class Api:
    """Sends many requests at the same time, as an administrator."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session = session
        self._server = server

    @classmethod
    @asynccontextmanager
    async def of(cls, plane: ControlPlane) -> AsyncIterator[Api]:
        """Connect to ``plane``."""
        connector = aiohttp.TCPConnector(limit=CREATORS + 10, ssl=plane.admin_tls())
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, read_bufsize=2**22
        ) as session:
            yield cls(session, plane.server)

    async def send(self, method: str, path: str, body: Object | None = None) -> Object:
        """Send one request; return the answer. Raises RuntimeError for an error."""
        kind = "merge-patch+json" if method == "PATCH" else "json"
        async with self._session.request(
            method,
            self._server + path,
            data=None if body is None else orjson.dumps(body),
            headers={"Content-Type": f"application/{kind}"},
        ) as answer:
            content: Object = orjson.loads(await answer.read())
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {content.get('message')}")
            return content

    async def watch(self, path: str, notify: Callable[[str, Object], None]) -> None:
        """Call ``notify`` for every existing object and every change, until cancellation."""
        listed = await self.send("GET", path)
        for item in listed["items"]:
            notify("LISTED", item)
        version = listed["metadata"]["resourceVersion"]
        query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "7200"}
        async with self._session.get(self._server + path, params=query) as answer:
            pending = b""
            async for chunk in answer.content.iter_any():
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    event = orjson.loads(line)
                    notify(event["type"], event["object"])


async def at_once(work: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Await all of ``work``, CREATORS at a time."""
    waiting = iter(work)

    async def worker() -> None:
        for each in waiting:
            await each

    await asyncio.gather(*(worker() for _ in range(CREATORS)))


class World:
    """The objects on the API server. Their number only grows."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.pods: list[Object] = []
        self.quotas = 0
        self.nodes: list[str] = []
        self._reports: dict[str, dict[str, Object]] = {}
        self._names = count()

    async def grow(self, pods: int, quotas: int, nodes: int) -> None:
        """Create the missing objects."""
        families = range(self.quotas // FAMILY, quotas // FAMILY)
        await at_once(self._make_family(number) for number in families)
        self.quotas = max(self.quotas, quotas)
        await self._wait_for_accounts()
        names = [f"node-{number}" for number in range(len(self.nodes), nodes)]
        await at_once(self._make_node(name) for name in names)
        self.nodes += names
        say(f"{self.quotas} quotas, {len(self.nodes)} nodes")
        more = pods - len(self.pods)
        await at_once(self.make_pod(self.nodes) for _ in range(more))
        say(f"{len(self.pods)} pods")
        await at_once(self.report(name) for name in self.nodes)

    async def _make_family(self, number: int) -> None:
        namespace = f"ns-{number}"
        body: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        await self.api.send("POST", "/api/v1/namespaces", body)
        for name in ["root", *(f"team-{each}" for each in range(1, FAMILY))]:
            spec: Object = {
                "hard": {"hugepages-2Mi": "1Ti"},
                "podSelector": {"matchLabels": {"team": name}},
            }
            if name != "root":
                spec["parentRef"] = {"namespace": namespace, "name": "root"}
            body = {
                "apiVersion": "hugetlb.dev/v1alpha1",
                "kind": "HugeTLBQuota",
                "metadata": {"namespace": namespace, "name": name},
                "spec": spec,
            }
            await self.api.send("POST", f"{GROUP}/namespaces/{namespace}/hugetlbquotas", body)

    async def _wait_for_accounts(self) -> None:
        wanted = {f"ns-{number}" for number in range(self.quotas // FAMILY)} | {"native"}
        while True:
            listed = await self.api.send("GET", "/api/v1/serviceaccounts")
            if wanted <= {each["metadata"]["namespace"] for each in listed["items"]}:
                return
            await asyncio.sleep(0.5)

    async def _make_node(self, name: str) -> None:
        body: Object = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
        await self.api.send("POST", "/api/v1/nodes", body)
        status = {"status": {"nodeInfo": {**dict.fromkeys(NODE_INFO, ""), "bootID": "boot"}}}
        await self.api.send("PATCH", f"/api/v1/nodes/{name}/status", status)
        body = {
            "apiVersion": "hugetlb.dev/v1alpha1",
            "kind": "HugeTLBNode",
            "metadata": {"name": name},
        }
        await self.api.send("POST", REPORTS, body)
        self._reports[name] = {}

    async def make_pod(self, nodes: list[str], namespace: str = "") -> None:
        """Create one more pod, in the next team."""
        number = next(self._names)
        family, team = divmod(number % max(1, self.quotas), FAMILY)
        namespace = namespace or f"ns-{family}"
        made = await self.api.send(
            "POST",
            f"/api/v1/namespaces/{namespace}/pods",
            _pod(f"p-{number}", f"team-{max(1, team)}", nodes[number % len(nodes)]),
        )
        meta, node = made["metadata"], made["spec"]["nodeName"]
        self.pods.append(made)
        self._reports.get(node, {})[meta["uid"]] = {
            "uid": meta["uid"],
            "namespace": namespace,
            "name": meta["name"],
            "labels": meta["labels"],
            "live": True,
            "demand": {"hugepages-2Mi": "2Mi"},
            "charged": {"hugepages-2Mi": "2Mi"},
        }

    async def report(self, node: str, version: str = "1") -> None:
        """Write the report of ``node``, with its pods up to ``version``."""
        status = {
            "bootID": "boot",
            "podsResourceVersion": version,
            "reportedAt": datetime.now(UTC).isoformat(),
            "pods": list(self._reports[node].values()),
        }
        await self.api.send("PATCH", f"{REPORTS}/{node}/status", {"status": status})

    async def delete(self, pod: Object) -> str:
        """Delete a pod; return the resourceVersion of its end."""
        meta = pod["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        gone = await self.api.send("DELETE", path)
        self._reports.get(pod["spec"]["nodeName"], {}).pop(meta["uid"], None)
        version: str = gone["metadata"]["resourceVersion"]
        return version


def say(text: str) -> None:
    """Print progress to standard error."""
    print(f"# {text}", file=sys.stderr, flush=True)


def _pod(name: str, team: str, node: str) -> Object:
    resources = {"hugepages-2Mi": "2Mi", "cpu": "1m", "memory": "1Mi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"team": team, "app": "database"}},
        "spec": {
            "containers": [container(resources)],
            "nodeName": node,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            # No kubelet renews the leases of these nodes, so they get taints.
            "tolerations": [{"operator": "Exists"}],
        },
    }
