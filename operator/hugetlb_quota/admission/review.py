"""The envelope: admission.k8s.io/v1 AdmissionReview, and what is answered in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from hugetlb_quota.kube.quotas import explain

API_VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"


class MalformedReview(ValueError):
    """A request body that is no AdmissionReview this program can answer."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The request body is no {API_VERSION} AdmissionReview: {why} Nothing was changed."
        )


class _Part(BaseModel):
    """A part of the review; fields of later API versions are passed over."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True
    )


class GroupResource(_Part):
    """Which resource the request is for."""

    group: str = ""
    resource: str


class UserInfo(_Part):
    """Who asks."""

    username: str = ""
    groups: tuple[str, ...] = ()


class AdmissionRequest(_Part):
    """What is asked; ``object`` is None for a DELETE, ``old_object`` for a CREATE."""

    uid: str = Field(min_length=1)
    resource: GroupResource
    sub_resource: str = ""
    namespace: str = ""
    name: str = ""
    operation: Literal["CREATE", "UPDATE", "DELETE", "CONNECT"]
    user_info: UserInfo = UserInfo()
    object: dict[str, Any] | None = None
    old_object: dict[str, Any] | None = None
    dry_run: bool | None = None

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


class _AdmissionReview(_Part):
    api_version: Literal["admission.k8s.io/v1"]
    kind: Literal["AdmissionReview"]
    request: AdmissionRequest


def parse(body: bytes) -> AdmissionRequest:
    """The request in ``body``.

    :raises MalformedReview: when it is none, saying what is wrong with it.
    """
    try:
        return _AdmissionReview.model_validate_json(body).request
    except ValidationError as error:
        raise MalformedReview(explain(error)) from error


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer: ``message`` is for the person refused, ``warnings`` for one allowed."""

    allowed: bool
    message: str = ""
    warnings: tuple[str, ...] = ()

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
        if self.warnings:
            response["warnings"] = list(self.warnings)
        return {"apiVersion": API_VERSION, "kind": KIND, "response": response}


ALLOW: Final = Decision(allowed=True)


def allow(*warnings: str) -> Decision:
    """Allow, with ``warnings`` that kubectl prints."""
    return Decision(allowed=True, warnings=warnings)


def deny(message: str) -> Decision:
    """Refuse, with the sentence that says why and what to do."""
    return Decision(allowed=False, message=message)
