"""Parse an AdmissionReview (admission.k8s.io/v1), and render the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from hugetlb_quota.accounting.forest import QuotaKey

API_VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"
OPERATIONS: Final = ("CREATE", "UPDATE", "DELETE", "CONNECT")


class MalformedReview(ValueError):
    """The request body is not an AdmissionReview that this program can answer."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The request body is not a valid {API_VERSION} AdmissionReview: {why}"
            " Nothing was changed."
        )


@dataclass(frozen=True, slots=True)
class GroupResource:
    """The resource of the object in a request."""

    group: str
    resource: str


@dataclass(frozen=True, slots=True)
class UserInfo:
    """The user that sent the API request."""

    username: str = ""
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """One admission request.

    ``object``: the new object; None for a DELETE. ``old_object``: the stored object; None for a
    CREATE. ``dry_run``: whether the API server stores nothing.
    """

    uid: str
    resource: GroupResource
    operation: str
    sub_resource: str = ""
    namespace: str = ""
    name: str = ""
    user_info: UserInfo = UserInfo()
    object: Mapping[str, Any] | None = None
    old_object: Mapping[str, Any] | None = None
    dry_run: bool = False

    @property
    def new(self) -> Mapping[str, Any]:
        """The new object.

        :raises MalformedReview: if the request has none.
        """
        if self.object is None:
            raise MalformedReview(f"request.object is missing in a {self.operation}.")
        return self.object

    @property
    def old(self) -> Mapping[str, Any]:
        """The stored object.

        :raises MalformedReview: if the request has none.
        """
        if self.old_object is None:
            raise MalformedReview(f"request.oldObject is missing in a {self.operation}.")
        return self.old_object

    def namespace_and_name(self, metadata: Mapping[str, Any]) -> tuple[str, str]:
        """Namespace and name of the new object; "" for a missing one.

        A new object may have only a ``generateName``, which then stands for the name.

        :param metadata: that of the new object.
        :raises MalformedReview: if one of the fields is not a string.
        """
        name = text(metadata, "name") or text(metadata, "generateName") or self.name
        return self.namespace or text(metadata, "namespace"), name


def parse(body: bytes) -> AdmissionRequest:
    """The request in ``body``; unknown fields are ignored.

    There is no pydantic model, because a model takes longer than the rest of a decision from
    the cache.

    :raises MalformedReview: if ``body`` is not an AdmissionReview.
    """
    try:
        review = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedReview(f"Invalid JSON: {error}.") from error
    if not isinstance(review, dict):
        raise MalformedReview("it is not a JSON object.")
    for field, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        if review.get(field) != expected:
            raise MalformedReview(f"{field} is not {expected}.")
    request = mapping(review, "request", "")
    uid, operation = text(request, "uid"), text(request, "operation")
    if not uid:
        raise MalformedReview("request.uid is missing.")
    if operation not in OPERATIONS:
        raise MalformedReview(f"request.operation is none of {', '.join(OPERATIONS)}.")
    resource = mapping(request, "resource", "request")
    user = mapping(request, "userInfo", "request")
    return AdmissionRequest(
        uid=uid,
        resource=GroupResource(text(resource, "group"), text(resource, "resource")),
        operation=operation,
        sub_resource=text(request, "subResource"),
        namespace=text(request, "namespace"),
        name=text(request, "name"),
        user_info=UserInfo(text(user, "username"), _groups(user.get("groups"))),
        object=_object(request, "object"),
        old_object=_object(request, "oldObject"),
        dry_run=request.get("dryRun") is True,
    )


def mapping(holder: Mapping[str, Any], field: str, where: str) -> Mapping[str, Any]:
    """The JSON object in ``field`` of ``holder``; empty if the field is missing.

    :param where: the path of ``holder``, for the error; "" for the whole body.
    :raises MalformedReview: if the field has another type.
    """
    found = holder.get(field)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise MalformedReview(f"{where}.{field} is not a JSON object.".lstrip("."))
    return found


def strings(holder: Mapping[str, Any], field: str, where: str) -> Mapping[str, str]:
    """The strings by name in ``field`` of ``holder``; empty if the field is missing.

    :param where: the path of ``holder``, for the error.
    :raises MalformedReview: if the field has another type.
    """
    found = mapping(holder, field, where)
    if not all(isinstance(value, str) for value in found.values()):
        raise MalformedReview(f"{where}.{field} has a value that is not a string.")
    return found


def text(holder: Mapping[str, Any], field: str) -> str:
    """The string in ``field`` of ``holder``; "" if the field is missing.

    :raises MalformedReview: if the field has another type.
    """
    found = holder.get(field)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise MalformedReview(f"{field} is not a string.")
    return found


def resource_version(metadata: Mapping[str, Any]) -> int:
    """The resourceVersion in ``metadata``; 0 if there is none, or if it is not a number.

    :raises MalformedReview: if the field is not a string.
    """
    version = text(metadata, "resourceVersion")
    return int(version) if version.isascii() and version.isdigit() else 0


def _object(request: Mapping[str, Any], field: str) -> Mapping[str, Any] | None:
    return None if request.get(field) is None else mapping(request, field, "request")


def _groups(groups: Any) -> tuple[str, ...]:
    if groups is None:
        return ()
    if not isinstance(groups, list) or not all(isinstance(each, str) for each in groups):
        raise MalformedReview("request.userInfo.groups is not a list of strings.")
    return tuple(groups)


#: Why a request was refused. "rule": a limit or another rule. The other causes are states of the
#: operator or the cluster. "full": a quota has no room for another reservation, or the ConfigMap
#: of changes can't be used. "uncounted": the controller has not counted a quota yet.
#: "overloaded": too many requests at the same time. "timeout": the time was over. "unreachable":
#: the API server did not answer. "bug": an error in this program.
CAUSES: Final = ("rule", "full", "uncounted", "overloaded", "timeout", "unreachable", "bug")
Cause = Literal["", "rule", "full", "uncounted", "overloaded", "timeout", "unreachable", "bug"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a request.

    ``message``: why the request is refused, and what to do; "" if it is allowed. ``warnings``:
    sentences that kubectl prints for an allowed request. ``retry_after``: after how many seconds
    a refused client should try again by itself; 0: never. ``by``: the quotas that refuse.
    ``cause``: one of CAUSES; "" if the request is allowed.
    """

    allowed: bool
    message: str = ""
    warnings: tuple[str, ...] = ()
    retry_after: int = 0
    by: tuple[QuotaKey, ...] = ()
    cause: Cause = ""

    def review(self, uid: str) -> dict[str, Any]:
        """The decision as the AdmissionReview that answers request ``uid``."""
        response: dict[str, Any] = {"uid": uid, "allowed": self.allowed}
        if not self.allowed:
            response["status"] = {
                "status": "Failure",
                "code": 403,
                "reason": "Forbidden",
                "message": self.message,
            }
            if self.retry_after:
                # The API server sends these seconds as the header Retry-After.
                response["status"] |= {
                    "code": 429,
                    "reason": "TooManyRequests",
                    "details": {"retryAfterSeconds": self.retry_after},
                }
        if self.warnings:
            response["warnings"] = list(self.warnings)
        return {"apiVersion": API_VERSION, "kind": KIND, "response": response}


ALLOW: Final = Decision(allowed=True)


def allow(*warnings: str) -> Decision:
    """A decision that allows, with ``warnings`` that kubectl prints."""
    return Decision(allowed=True, warnings=warnings)


def deny(
    message: str, *, retry_after: int = 0, by: tuple[QuotaKey, ...] = (), cause: Cause = "rule"
) -> Decision:
    """A decision that refuses; ``message`` says why, and what to do."""
    return Decision(allowed=False, message=message, retry_after=retry_after, by=by, cause=cause)
