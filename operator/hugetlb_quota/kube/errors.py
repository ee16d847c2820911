"""What can go wrong in talking to the API, as types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """The API server answered with an error.

    ``status``: the HTTP code, 0 without an answer. ``reason``: the machine's word for
    it (``Conflict``, ``AlreadyExists``). ``message``: the server's sentence.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message or reason or f"HTTP status {status}")
        self.status = status
        self.reason = reason
        self.message = message


class NotFound(ApiError):
    """404: the object, or its kind, is not there."""


class Conflict(ApiError):
    """409: the object changed since the resourceVersion that was sent was read."""


class AlreadyExists(ApiError):
    """409: an object of that name is there."""


class Forbidden(ApiError):
    """403: RBAC or an admission plugin refuses."""


class Gone(ApiError):
    """410: the resourceVersion or the page asked for is too old; list anew."""


class ApiUnreachable(ApiError):
    """No answer: no connection, or none in time. A write may or may not have happened."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "Unreachable", message)


_BY_STATUS: Mapping[int, type[ApiError]] = {404: NotFound, 409: Conflict, 403: Forbidden, 410: Gone}


def from_status(status: int, body: Mapping[str, Any]) -> ApiError:
    """The error that a ``metav1.Status`` with HTTP code ``status`` stands for."""
    reason, message = str(body.get("reason") or ""), str(body.get("message") or "")
    kind = AlreadyExists if reason == "AlreadyExists" else _BY_STATUS.get(status, ApiError)
    return kind(status, reason, message)
