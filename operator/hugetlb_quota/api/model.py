"""What every model here has in common: camelCase names, and nothing unknown."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """Part of an API object, in snake_case here and in camelCase in JSON."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )

    def to_json(self) -> dict[str, Any]:
        """As JSON for the API server; what is not set is left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


_M = TypeVar("_M", bound=Model)


def read_leniently(model: type[_M], raw: Any) -> _M:
    """The model without the fields of newer releases, on its own level.

    :raises ValueError: when what is left is not what the model says.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{raw!r} is no object.")
    names = {field.alias or name for name, field in model.model_fields.items()}
    return model.model_validate({name: raw[name] for name in names & raw.keys()})


class LabelSelectorRequirement(Model):
    """One expression over one label."""

    key: str = Field(description="The label's name.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="How the label's value compares with values; Exists and DoesNotExist take none."
    )
    values: list[str] = Field(
        default_factory=list, description="The values that In and NotIn compare with."
    )


class LabelSelector(Model):
    """A label query; all of it must match, and an empty one matches everything."""

    match_labels: dict[str, str] = Field(
        default_factory=dict, description="Labels that must all be there with these values."
    )
    match_expressions: list[LabelSelectorRequirement] = Field(
        default_factory=list, description="Expressions over labels that must all be true."
    )


class Condition(Model):
    """One aspect of an object's state, as metav1.Condition has it."""

    type: str = Field(description="Which aspect; each is True when all is well.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it is so.")
    reason: str = Field(description="Why, in one word.")
    message: str = Field(
        default="", max_length=32768, description="Why, in a sentence, and what to do."
    )
    last_transition_time: datetime = Field(description="When status became what it is.")
    observed_generation: int | None = Field(
        default=None, description="The metadata.generation of the spec that this is about."
    )


class ObjectMeta(BaseModel):
    """What is read of an object's metadata; the rest is passed over."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True
    )

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    deletion_timestamp: datetime | None = None
