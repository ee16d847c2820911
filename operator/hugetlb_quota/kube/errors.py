"""The errors of requests to the API server, as types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """The API server answered with an error.

    ``status``: the HTTP status code, 0 without a response. ``reason`` and ``message``: those of
    the ``metav1.Status``, such as ``Conflict`` and a sentence.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message or reason or f"HTTP status {status}")
        self.status = status
        self.reason = reason
        self.message = message


class NotFound(ApiError):
    """404: the object or its kind does not exist."""


class Conflict(ApiError):
    """409: the object has changed since the resourceVersion that the request names."""


class AlreadyExists(ApiError):
    """409: an object of that name exists."""


class Forbidden(ApiError):
    """403: RBAC or an admission plugin refuses."""


class Gone(ApiError):
    """410: the resourceVersion or the continuation is too old; list again."""


class ApiUnreachable(ApiError):
    """No connection, or no response in time; the server may have done the write."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "Unreachable", message)


_BY_STATUS: Mapping[int, type[ApiError]] = {404: NotFound, 409: Conflict, 403: Forbidden, 410: Gone}


def from_status(status: int, body: Mapping[str, Any]) -> ApiError:
    """The error for a response with the HTTP code ``status`` and the ``metav1.Status`` ``body``."""
    reason, message = str(body.get("reason") or ""), str(body.get("message") or "")
    kind = AlreadyExists if reason == "AlreadyExists" else _BY_STATUS.get(status, ApiError)
    return kind(status, reason, message)
