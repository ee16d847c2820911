"""The envelope: admission.k8s.io/v1 AdmissionReview, and what is answered in it."""

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
    """A request body that is no AdmissionReview this program can answer."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The request body is no {API_VERSION} AdmissionReview: {why} Nothing was changed."
        )


@dataclass(frozen=True, slots=True)
class GroupResource:
    """Which resource the request is for."""

    group: str
    resource: str


@dataclass(frozen=True, slots=True)
class UserInfo:
    """Who asks."""

    username: str = ""
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """What is asked; ``object`` is None for a DELETE, ``old_object`` for a CREATE."""

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
        """The object as it would be.

        :raises MalformedReview: when there is none.
        """
        if self.object is None:
            raise MalformedReview(f"request.object is missing in a {self.operation}.")
        return self.object

    @property
    def old(self) -> Mapping[str, Any]:
        """The object as it is.

        :raises MalformedReview: when there is none.
        """
        if self.old_object is None:
            raise MalformedReview(f"request.oldObject is missing in a {self.operation}.")
        return self.old_object


def parse(body: bytes) -> AdmissionRequest:
    """The request in ``body``; fields of later API versions are passed over.

    By hand: a model takes longer than all the rest of a decision that is cached.

    :raises MalformedReview: when it is none, saying what is wrong with it.
    """
    try:
        review = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedReview(f"Invalid JSON: {error}.") from error
    if not isinstance(review, dict):
        raise MalformedReview("it is no JSON object.")
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
    """The object in ``field`` of ``holder``, which is called ``where``; none is an empty one.

    :raises MalformedReview: when it is something else.
    """
    found = holder.get(field)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise MalformedReview(f"{where}.{field} is no JSON object.".lstrip("."))
    return found


def strings(holder: Mapping[str, Any], field: str, where: str) -> Mapping[str, str]:
    """The strings by name in ``field`` of ``holder``, which is called ``where``.

    :raises MalformedReview: when it is something else.
    """
    found = mapping(holder, field, where)
    if not all(isinstance(value, str) for value in found.values()):
        raise MalformedReview(f"{where}.{field} has a value that is no string.")
    return found


def text(holder: Mapping[str, Any], field: str) -> str:
    """The string in ``field`` of ``holder``; none is an empty one.

    :raises MalformedReview: when it is something else.
    """
    found = holder.get(field)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise MalformedReview(f"{field} is no string.")
    return found


def _object(request: Mapping[str, Any], field: str) -> Mapping[str, Any] | None:
    return None if request.get(field) is None else mapping(request, field, "request")


def _groups(groups: Any) -> tuple[str, ...]:
    if groups is None:
        return ()
    if not isinstance(groups, list) or not all(isinstance(each, str) for each in groups):
        raise MalformedReview("request.userInfo.groups is no list of strings.")
    return tuple(groups)


#: Why something was refused. "rule": quotas and objects as they are. All others are admission's
#: own: a quota has no place for another reservation, or changes can't be noted; a quota is not
#: counted yet; too many ask; the time was short; the API server did not answer; a bug.
CAUSES: Final = ("rule", "full", "uncounted", "overloaded", "timeout", "unreachable", "bug")
Cause = Literal["", "rule", "full", "uncounted", "overloaded", "timeout", "unreachable", "bug"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer: ``message`` is for the person refused, ``warnings`` for one allowed.

    ``again``: after how many seconds it may go otherwise; clients try again by themselves.
    ``by``: the quotas that refuse. ``cause``: "" where it is allowed.
    """

    allowed: bool
    message: str = ""
    warnings: tuple[str, ...] = ()
    again: int = 0
    by: tuple[QuotaKey, ...] = ()
    cause: Cause = ""

    def review(self, uid: str) -> dict[str, Any]:
        """As the AdmissionReview that answers request ``uid``."""
        response: dict[str, Any] = {"uid": uid, "allowed": self.allowed}
        if not self.allowed:
            response["status"] = {
                "status": "Failure",
                "code": 403,
                "reason": "Forbidden",
                "message": self.message,
            }
            if self.again:
                # The API server makes the header Retry-After of it.
                response["status"] |= {
                    "code": 429,
                    "reason": "TooManyRequests",
                    "details": {"retryAfterSeconds": self.again},
                }
        if self.warnings:
            response["warnings"] = list(self.warnings)
        return {"apiVersion": API_VERSION, "kind": KIND, "response": response}


ALLOW: Final = Decision(allowed=True)


def allow(*warnings: str) -> Decision:
    """Allow, with ``warnings`` that kubectl prints."""
    return Decision(allowed=True, warnings=warnings)


def deny(
    message: str, *, again: int = 0, by: tuple[QuotaKey, ...] = (), cause: Cause = "rule"
) -> Decision:
    """Refuse, with the sentence that says why and what to do."""
    return Decision(allowed=False, message=message, again=again, by=by, cause=cause)
