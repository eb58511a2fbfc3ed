"""What every section of the config has in common."""

import math
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Frozen; unknown keys are refused; the text under a field is its description; NaN is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _numbers_are_numbers(self) -> Self:
        for name, value in self:
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"`{name}` is not a number")
        return self


def added(default: Any, **constraints: Any) -> Any:
    """A field that came later: at its default it stays out of a stage's fingerprint, so that old runs stay valid."""
    return Field(default, json_schema_extra={"added": True}, **constraints)
