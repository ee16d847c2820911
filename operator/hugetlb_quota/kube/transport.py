"""The transport of requests to the API server: by $KUBECONFIG or a pod's ServiceAccount.

In a pod, requests do not need the kubernetes package. Its import takes a third of a program's
start and 12 MiB of memory, and a pod only needs a token, a CA and an address.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient, Configuration

#: The directory where kubelet mounts the ServiceAccount's token and CA.
ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: The time between two reads of the token file, which kubelet renews, in seconds.
TOKEN_PERIOD: Final = 60.0
#: The largest number of concurrent connections to the server, with watches.
_CONNECTIONS: Final = 100
#: The read buffer of a response, in bytes; a page of quotas has some megabytes.
_READ_BUFFER: Final = 2**21


class Transport(Protocol):
    """Sends requests to one API server."""

    @property
    def server(self) -> str:
        """Scheme, host and port."""
        ...

    async def client(self) -> ApiClient:
        """The kubernetes package's client, for its leader election."""
        ...

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        limit: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """The response with any HTTP status; the caller reads its body.

        :raises aiohttp.ClientError: without a response; also OSError and TimeoutError.
        """
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class _Session:
    """Keep-alive connections to one server.

    The kubernetes package's own session and models would take longer than the API server takes
    for a small write.

    :param options: further arguments of each of aiohttp's requests.
    """

    def __init__(
        self, server: str, agent: str, context: ssl.SSLContext, options: Mapping[str, Any]
    ) -> None:
        self.server = server
        self._options = options
        # trust_env would read the environment and .netrc for every request.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=_CONNECTIONS),
            headers={"Accept": "application/json", "User-Agent": agent},
            read_bufsize=_READ_BUFFER,
        )

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        limit: aiohttp.ClientTimeout,
        authorization: str | None,
    ) -> aiohttp.ClientResponse:
        headers = {} if authorization is None else {"Authorization": authorization}
        data = None
        if body is not None:
            data = orjson.dumps(body)
            kind = "merge-patch+json" if method == "PATCH" else "json"
            headers["Content-Type"] = f"application/{kind}"
        return await self._session.request(
            method,
            self.server + path,
            params=query,
            data=data,
            headers=headers,
            timeout=limit,
            allow_redirects=False,
            **self._options,
        )

    async def close(self) -> None:
        await self._session.close()


class InPod:
    """A transport that uses the pod's ServiceAccount.

    :param agent: the User-Agent.
    :param account: the directory of the token and the CA; by default ACCOUNT.
    :raises ValueError: if the process is not in a pod, or the pod has no ServiceAccount.
    """

    def __init__(self, agent: str, account: Path | None = None) -> None:
        self._account = account or ACCOUNT
        self.server = _server()
        try:
            context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
            self._read_token()
        except (OSError, ssl.SSLError) as error:
            raise ValueError(
                f"The ServiceAccount in {self._account} can't be used: {error}"
            ) from error
        self._session = _Session(self.server, agent, context, {})
        self._agent = agent
        self._client: ApiClient | None = None

    async def client(self) -> ApiClient:
        """The kubernetes package's client."""
        if self._client is None:
            from kubernetes.aio.client import ApiClient, Configuration
            from kubernetes.aio.config.incluster_config import InClusterConfigLoader

            configuration = Configuration()
            InClusterConfigLoader(  # type: ignore[no-untyped-call]
                token_filename=str(self._account / "token"),
                cert_filename=str(self._account / "ca.crt"),
            ).load_and_set(configuration)
            self._client = ApiClient(configuration)
            self._client.user_agent = self._agent
        return self._client

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        limit: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """The response, as in :class:`Transport`."""
        if time.monotonic() >= self._read_again_at:
            self._read_token()
        return await self._session.send(method, path, query, body, limit, f"Bearer {self._token}")

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
        if self._client is not None:
            await self._client.close()  # type: ignore[no-untyped-call]

    def _read_token(self) -> None:
        self._token = (self._account / "token").read_text().strip()
        self._read_again_at = time.monotonic() + TOKEN_PERIOD


class ByKubeconfig:
    """A transport that uses a kubeconfig, which the kubernetes package reads."""

    def __init__(self, client: ApiClient, refreshing: asyncio.Task[None]) -> None:
        self._client = client
        self._refreshing = refreshing
        configuration = client.configuration
        self.server = str(configuration.host)
        options = _proxy(configuration, self.server)
        if configuration.tls_server_name:
            options["server_hostname"] = configuration.tls_server_name
        context = client.rest_client.ssl_context
        self._session = _Session(self.server, client.user_agent, context, options)

    @classmethod
    async def load(cls, path: str, agent: str, context: str | None = None) -> ByKubeconfig:
        """Read the kubeconfig.

        :param path: one path, or several in the format of $KUBECONFIG.
        :param context: the context; by default the current context.
        :raises Exception: any exception of the kubernetes package's loader.
        """
        from kubernetes.aio.client import ApiClient, Configuration
        from kubernetes.aio.config import load_kube_config, refresh_token

        configuration = Configuration()
        loader = await load_kube_config(  # type: ignore[no-untyped-call]
            config_file=path,
            context=context,
            client_configuration=configuration,
            persist_config=False,
        )
        refresh = refresh_token(loader, configuration)  # type: ignore[no-untyped-call]
        client = ApiClient(configuration)
        client.user_agent = agent
        return cls(client, asyncio.create_task(refresh))

    async def client(self) -> ApiClient:
        """The kubernetes package's client."""
        return self._client

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Any,
        limit: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """The response, as in :class:`Transport`."""
        configuration = self._client.configuration
        token = await configuration.get_api_key_with_prefix("BearerToken", "authorization")
        return await self._session.send(method, path, query, body, limit, token)

    async def close(self) -> None:
        """Close all connections."""
        self._refreshing.cancel()
        await asyncio.gather(self._refreshing, return_exceptions=True)
        await self._session.close()
        await self._client.close()  # type: ignore[no-untyped-call]


def _proxy(configuration: Configuration, host: str) -> dict[str, Any]:
    """The proxy for ``host``, if the kubeconfig or the environment has one."""
    address = urlsplit(host)
    proxy = configuration.proxy or getproxies().get(address.scheme)
    if not proxy or (not configuration.proxy and proxy_bypass(address.netloc)):
        return {}
    return {"proxy": proxy, "proxy_headers": configuration.proxy_headers}


def _server() -> str:
    """The URL of the API server, from the environment of a pod."""
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}") for name in ("HOST", "PORT"))
    if not host or not port:
        raise ValueError("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
