"""Sends requests to the API server as the administrator; programs may be down at any time."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.kube.control_plane import ControlPlane


@dataclass(frozen=True)
class Answer:
    """An answer of the API server; `status` is 0 if no answer came."""

    status: int
    text: str

    @property
    def done(self) -> bool:
        """Whether the API server has carried out the request."""
        return 200 <= self.status < 300

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the object in the answer."""
        found: dict[str, Any] = json.loads(self.text)["metadata"]
        return found


NO_ANSWER = Answer(0, "")


class Client:
    """A connection to the API server for all users and nodes."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session = session
        self._server = server

    async def send(self, method: str, path: str, body: Any = None) -> Answer:
        """Send a request. A PATCH with a list is a JSON patch, any other PATCH a merge patch."""
        kind = "application/json"
        if method == "PATCH":
            kind = f"application/{'json' if isinstance(body, list) else 'merge'}-patch+json"
        try:
            async with self._session.request(
                method, self._server + path, json=body, headers={"Content-Type": kind}
            ) as answer:
                return Answer(answer.status, await answer.text())
        except (aiohttp.ClientError, TimeoutError, OSError):
            return NO_ANSWER


@asynccontextmanager
async def connect(plane: ControlPlane, connections: int, timeout: float) -> AsyncIterator[Client]:
    """Open a client; `timeout`: the longest time for a request, in seconds."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, ssl=plane.admin_tls()),
        timeout=aiohttp.ClientTimeout(total=timeout),
    ) as session:
        yield Client(session, plane.server)
