"""One connection to the API server: raw JSON in and out, a time limit on everything.

Models of Kubernetes' objects are left out: a decoded pod costs about 54 KiB, its raw JSON a
passing few.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import orjson

from hugetlb_quota.kube import errors
from hugetlb_quota.kube.resources import Resource
from hugetlb_quota.kube.transport import ByKubeconfig, InPod, Transport

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient

#: How long a request may take unless its caller says otherwise, in seconds.
REQUEST_TIMEOUT: Final = 10.0
#: How long it may take to connect, TLS included, in seconds.
CONNECT_TIMEOUT: Final = 5.0
#: Connections to the API server at the same time, kept alive between requests.
CONNECTIONS: Final = 100
#: How long the server is asked to keep a watch open, in seconds.
WATCH_TIMEOUT: Final = 300
#: How long a watch may be silent, in seconds: the server sends a bookmark each minute
#: (cacher.go, ``bookmarkFrequency``), so one silent for longer is a dead connection.
WATCH_SILENCE: Final = 90.0
#: An event longer than this is no object that etcd could hold, in bytes.
LONGEST_EVENT: Final = 32 * 1024**2

Json = dict[str, Any]


class NotConfigured(RuntimeError):
    """There is no way to reach an API server; the sentence says what is missing."""


class Connection:
    """Requests to one API server; made by :meth:`open`."""

    def __init__(
        self,
        transport: Transport,
        another: Callable[[], AbstractAsyncContextManager[Connection]],
    ) -> None:
        self._transport = transport
        #: Opens one more to the same server: each belongs to the event loop that opened it.
        self.another = another

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        program: str = "hugetlb-quota",
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
    ) -> AsyncIterator[Self]:
        """A connection configured by $KUBECONFIG, else by the pod's ServiceAccount.

        :param program: named to the server as the User-Agent.
        :param kubeconfig: files in the place of $KUBECONFIG, separated as there.
        :param context: of the kubeconfig; its current one by default.
        :raises NotConfigured: when neither is there or can be read.
        """
        agent = f"{program}/{importlib.metadata.version('hugetlb-quota')}"
        transport: Transport
        try:
            if path := kubeconfig or os.environ.get("KUBECONFIG"):
                transport = await ByKubeconfig.load(path, agent, context)
            else:
                transport = InPod(agent)
        except Exception as error:  # the loaders raise whatever they meet in the files
            raise NotConfigured(
                f"No Kubernetes API server to talk to: {str(error).removesuffix('.')}."
                " Set KUBECONFIG, or run in a pod with a ServiceAccount."
            ) from error
        try:
            yield cls(transport, partial(cls.open, program, kubeconfig=kubeconfig, context=context))
        finally:
            await transport.close()

    async def client(self) -> ApiClient:
        """The kubernetes package's own client, for what it does by itself (Leases)."""
        return await self._transport.client()

    @property
    def server(self) -> str:
        """The API server's address: scheme, host and port."""
        return self._transport.server

    async def get(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109 - it reaches the socket
    ) -> Json:
        """One object, by quorum read: what every earlier write left.

        :raises ApiError: as :mod:`errors` tells.
        """
        path = resource.path(namespace, name, subresource)
        return await self._request("GET", path, timeout=timeout)

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        field_selector: str | None = None,
        label_selector: str | None = None,
        limit: int | None = None,
        continuation: str | None = None,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
    ) -> Json:
        """One page of a collection, by quorum read.

        :param limit: objects a page; None is all of them.
        :param continuation: ``metadata.continue`` of the page before.
        :raises Gone: when the page before is too old to go on from.
        """
        query = {
            "fieldSelector": field_selector,
            "labelSelector": label_selector,
            "limit": limit,
            "continue": continuation,
        }
        return await self._request("GET", resource.path(namespace), query=query, timeout=timeout)

    async def create(
        self,
        resource: Resource,
        body: Json,
        namespace: str | None = None,
        *,
        name: str | None = None,
        subresource: str | None = None,
        dry_run: bool = False,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
    ) -> Json:
        """Create an object, or POST to a subresource of ``name``.

        :param dry_run: decide as for any other, admission included, and store nothing.
        :raises AlreadyExists: when there is one of that name.
        """
        path = resource.path(namespace, name, subresource)
        query = {"dryRun": "All"} if dry_run else None
        return await self._request("POST", path, query=query, body=body, timeout=timeout)

    async def replace(
        self,
        resource: Resource,
        name: str,
        body: Json,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
    ) -> Json:
        """PUT an object, compared by the ``metadata.resourceVersion`` in ``body``.

        :raises Conflict: when it changed since.
        """
        path = resource.path(namespace, name, subresource)
        return await self._request("PUT", path, body=body, timeout=timeout)

    async def watch(
        self,
        resource: Resource,
        resource_version: str,
        namespace: str | None = None,
        *,
        field_selector: str | None = None,
        timeout_seconds: int = WATCH_TIMEOUT,
        silence: float = WATCH_SILENCE,
    ) -> AsyncIterator[Json]:
        """The raw events after ``resource_version``, bookmarks included.

        Ends when the server ends it, as it does after ``timeout_seconds``.

        :raises Gone: when ``resource_version`` is too old; list anew.
        :raises ApiUnreachable: when the connection breaks or is ``silent`` for too long.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": timeout_seconds,
            "fieldSelector": field_selector,
        }
        limit = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_read=silence)
        path = resource.path(namespace)
        async with self._answer("GET", path, limit, query=query) as answer:
            async for line in _lines(answer.content):
                event: Json = orjson.loads(line)
                if event.get("type") == "ERROR":
                    status = event.get("object") or {}
                    raise errors.from_status(int(status.get("code") or 500), status)
                yield event

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        timeout: float,  # noqa: ASYNC109
    ) -> Json:
        limit = aiohttp.ClientTimeout(total=timeout, connect=min(CONNECT_TIMEOUT, timeout))
        async with self._answer(method, path, limit, query=query, body=body) as answer:
            decoded: Json = orjson.loads(await answer.read())
            return decoded

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        limit: aiohttp.ClientTimeout,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The server's answer, a good one; every other is raised as an ApiError."""
        asked = {key: str(value) for key, value in (query or {}).items() if value}
        try:
            answer = await self._transport.send(method, path, asked, body, limit)
            try:
                if answer.status >= 400:
                    raise errors.from_status(answer.status, _status(await answer.read()))
                yield answer
            finally:
                # Closed, not released: what is left of a watch must not be read on.
                answer.close() if not answer.content.at_eof() else answer.release()
        except TimeoutError as error:
            seconds = limit.total or limit.sock_read
            raise errors.ApiUnreachable(
                f"The API server did not answer {method} {path} within {seconds:g} s."
            ) from error
        except (aiohttp.ClientError, OSError, orjson.JSONDecodeError) as error:
            raise errors.ApiUnreachable(
                f"The API server can't be reached for {method} {path}:"
                f" {error or type(error).__name__}."
            ) from error


def _status(body: bytes) -> Mapping[str, Any]:
    """The ``metav1.Status`` in ``body``; a proxy in between may answer anything else."""
    try:
        status = orjson.loads(body)
    except ValueError:
        status = None
    if isinstance(status, dict):
        return status
    return {"message": body[:300].decode(errors="replace").strip()}


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a watch; not ``readline``, whose limit an object can exceed."""
    pending = bytearray()
    async for chunk in stream.iter_any():
        pending += chunk
        *lines, rest = pending.split(b"\n") if b"\n" in chunk else [pending]
        for line in lines:
            if line:
                yield bytes(line)
        pending = rest
        if len(pending) > LONGEST_EVENT:
            raise errors.ApiUnreachable(f"A watch event is longer than {LONGEST_EVENT} bytes.")
