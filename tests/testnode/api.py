"""The few requests of a kubelet to the API server, as raw JSON."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

Json = dict[str, Any]
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
_CALL = aiohttp.ClientTimeout(total=15)
_WATCH_SECONDS = 240
_WATCH = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_WATCH_SECONDS + 30)


class ApiError(RuntimeError):
    """The API server returned an error; ``code`` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Api:
    """A connection by the current context of a kubeconfig; an async context manager."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        self._server: str = cluster["server"].rstrip("/")
        self._tls = _tls(cluster, user, kubeconfig.parent) if "https" in self._server else None
        self._headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls or True)
        self._session = aiohttp.ClientSession(headers=self._headers, connector=connector)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session:
            await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Json:
        """Send one request. Raises ApiError, aiohttp.ClientError or TimeoutError."""
        assert self._session is not None, "Api is used outside its context"
        async with self._session.request(
            method,
            self._server + path,
            params=query,
            data=json.dumps(body) if body is not None else None,
            headers={"Content-Type": content_type},
            timeout=_CALL,
        ) as response:
            text = await response.text()
            if response.status >= 400:
                raise ApiError(response.status, _message(text))
            answer: Json = json.loads(text)
            return answer

    async def watch(
        self, path: str, query: Mapping[str, str], resource_version: str
    ) -> AsyncIterator[Json]:
        """The watch events after a resourceVersion, until the server ends the watch.

        Raises ApiError (410 if the version is too old), aiohttp.ClientError, TimeoutError.
        """
        assert self._session is not None, "Api is used outside its context"
        parameters = {
            **query,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        async with self._session.get(
            self._server + path, params=parameters, timeout=_WATCH
        ) as response:
            if response.status >= 400:
                raise ApiError(response.status, _message(await response.text()))
            rest = b""
            # aiohttp limits the length of a line, and the API server does not: split here.
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    event: Json = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise ApiError(status.get("code", 500), status.get("message", ""))
                    yield event


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500]


def _named(entries: list[Json], name: str) -> Json:
    for entry in entries:
        if entry["name"] == name:
            return entry
    raise ValueError(f"the kubeconfig names {name!r}, but has no such entry")


def _tls(cluster: Json, user: Json, base: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    authority = _content(cluster, "certificate-authority", base)
    if authority:
        context.load_verify_locations(cadata=authority.decode())
    certificate = _content(user, "client-certificate", base)
    key = _content(user, "client-key", base)
    if certificate and key:
        # The ssl module loads client certificates from files only.
        with tempfile.NamedTemporaryFile() as pair:
            pair.write(certificate + b"\n" + key)
            pair.flush()
            context.load_cert_chain(pair.name)
    return context


def _content(entry: Json, name: str, base: Path) -> bytes | None:
    if f"{name}-data" in entry:
        return base64.b64decode(entry[f"{name}-data"])
    return (base / entry[name]).read_bytes() if name in entry else None
