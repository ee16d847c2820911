"""A connection to the API server: raw JSON in and out, and a timeout for every request.

The connection does not use the kubernetes package's models: a decoded pod takes about 54 KiB,
its raw JSON only a few KiB, and only for a moment.
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

#: The default timeout of a request, in seconds.
REQUEST_TIMEOUT: Final = 10.0
#: The timeout to connect, with the TLS handshake, in seconds.
CONNECT_TIMEOUT: Final = 5.0
#: The timeoutSeconds of a watch: the server ends the watch after this time.
WATCH_TIMEOUT: Final = 300
#: How long a watch may be silent, in seconds. The server sends a bookmark each minute
#: (cacher.go, ``bookmarkFrequency``); a longer silence means that the connection is dead.
WATCH_SILENCE: Final = 90.0
#: The largest length of a watch event, in bytes; etcd holds no object of this length.
LONGEST_EVENT: Final = 32 * 1024**2

Json = dict[str, Any]


class NotConfigured(RuntimeError):
    """No API server is configured; the message says what is missing."""


class Connection:
    """Requests to one API server; :meth:`open` creates a connection."""

    def __init__(
        self,
        transport: Transport,
        open_another: Callable[[], AbstractAsyncContextManager[Connection]],
    ) -> None:
        self._transport = transport
        #: Opens another connection to the same server. A connection works in one event loop only.
        self.open_another = open_another

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        program: str = "hugetlb-quota",
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
    ) -> AsyncIterator[Self]:
        """Open a connection, by $KUBECONFIG or else by the pod's ServiceAccount.

        :param program: the name in the User-Agent.
        :param kubeconfig: paths to use instead of $KUBECONFIG, in the same format.
        :param context: the context of the kubeconfig; by default the current context.
        :raises NotConfigured: if neither exists, or the files can't be read.
        """
        agent = f"{program}/{importlib.metadata.version('hugetlb-quota')}"
        transport: Transport
        try:
            if path := kubeconfig or os.environ.get("KUBECONFIG"):
                transport = await ByKubeconfig.load(path, agent, context)
            else:
                transport = InPod(agent)
        except Exception as error:  # the loaders can raise any exception
            raise NotConfigured(
                f"No Kubernetes API server to talk to: {str(error).removesuffix('.')}."
                " Set KUBECONFIG, or run in a pod with a ServiceAccount."
            ) from error
        try:
            yield cls(transport, partial(cls.open, program, kubeconfig=kubeconfig, context=context))
        finally:
            await transport.close()

    async def client(self) -> ApiClient:
        """The kubernetes package's client, for its leader election."""
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
        """The object, by quorum read: the result has every earlier write.

        :raises ApiError: a class of :mod:`errors`.
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

        :param limit: the largest number of objects; None for all objects.
        :param continuation: ``metadata.continue`` of the previous page.
        :raises Gone: if the previous page is too old to continue.
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

        :param dry_run: whether the server runs all checks, with admission, and stores nothing.
        :raises AlreadyExists: if an object of that name exists.
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
        """PUT an object, if ``metadata.resourceVersion`` in ``body`` is still current.

        :raises Conflict: if the object has changed since that version.
        """
        path = resource.path(namespace, name, subresource)
        return await self._request("PUT", path, body=body, timeout=timeout)

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: Json,
        namespace: str | None = None,
        *,
        timeout: float = REQUEST_TIMEOUT,  # noqa: ASYNC109
    ) -> Json:
        """Merge ``body`` into an object.

        :raises Conflict: if ``body`` has a ``metadata.uid`` or ``metadata.resourceVersion`` other
            than that of the object.
        """
        path = resource.path(namespace, name)
        return await self._request("PATCH", path, body=body, timeout=timeout)

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
        """The raw events after ``resource_version``, with bookmarks.

        The watch ends when the server ends it, after ``timeout_seconds`` at the latest.

        :param silence: the longest time without an event or bookmark, in seconds.
        :raises Gone: if ``resource_version`` is too old; then list again.
        :raises ApiUnreachable: if the connection breaks or is silent for too long.
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
        """The server's response.

        :raises ApiError: for a status of 400 or above, or without a response.
        """
        parameters = {key: str(value) for key, value in (query or {}).items() if value}
        try:
            answer = await self._transport.send(method, path, parameters, body, limit)
            try:
                if answer.status >= 400:
                    raise errors.from_status(answer.status, _status(await answer.read()))
                yield answer
            finally:
                # An unfinished watch must be closed: release() would read the rest of it.
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
    """The ``metav1.Status`` in ``body``; a proxy may send any other text as ``body``."""
    try:
        status = orjson.loads(body)
    except ValueError:
        status = None
    if isinstance(status, dict):
        return status
    return {"message": body[:300].decode(errors="replace").strip()}


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The lines of a watch; an object can be longer than the limit of ``readline``."""
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
