"""The base class of all models, and the models of Kubernetes' shared types."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """A part of an API object: snake_case here, camelCase in JSON, no unknown fields."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )

    def to_json(self) -> dict[str, Any]:
        """The JSON for the API server, without the fields that are None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


_M = TypeVar("_M", bound=Model)
_Time = TypeVar("_Time")


def read_leniently(model: type[_M], raw: Any) -> _M:
    """Read ``raw``, and ignore unknown fields, which a newer release may have added.

    Only the top level may have unknown fields.

    :raises ValueError: if ``raw`` does not match the model otherwise.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{raw!r} is not an object.")
    names = {field.alias or name for name, field in model.model_fields.items()}
    return model.model_validate({name: raw[name] for name in names & raw.keys()})


class LabelSelectorRequirement(Model):
    """One condition on one label."""

    key: str = Field(description="The name of the label.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="How to compare the label with values. Exists and DoesNotExist use no values."
    )
    values: list[str] = Field(
        default_factory=list, description="The values that In and NotIn compare with."
    )


class LabelSelector(Model):
    """A label selector. All parts must match; an empty selector matches everything."""

    match_labels: dict[str, str] = Field(
        default_factory=dict, description="The object must have all these labels and values."
    )
    match_expressions: list[LabelSelectorRequirement] = Field(
        default_factory=list, description="The object must meet all these requirements."
    )


class Condition(Model):
    """One aspect of an object's state, as in metav1.Condition."""

    type: str = Field(description="The name of the condition. True is the good state.")
    status: Literal["True", "False", "Unknown"] = Field(
        description="True, False, or Unknown if the state can't be determined."
    )
    reason: str = Field(description="The reason for the status, in one word.")
    message: str = Field(
        default="", max_length=32768, description="The reason in a sentence, and what to do."
    )
    last_transition_time: datetime = Field(description="When the status last changed.")
    observed_generation: int | None = Field(
        default=None, description="The metadata.generation of the spec that the condition is for."
    )


def transition_time(status: str, now: _Time, *, before: object, changed_at: _Time | None) -> _Time:
    """When the status of a condition last changed: ``now``, or ``changed_at`` if it is the same.

    :param before: the status of the earlier condition, if there was one.
    :param changed_at: ``lastTransitionTime`` of the earlier condition; None if there is none.
    """
    return now if changed_at is None or status != before else changed_at


class ObjectMeta(BaseModel):
    """The metadata fields that the programs read; other fields are ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True
    )

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    deletion_timestamp: datetime | None = None
