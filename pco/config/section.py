"""What every section of the config has in common."""

import math
from datetime import date
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticUndefined


class Section(BaseModel):
    """Frozen; unknown keys are refused; the text under a field is its description; NaN is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _numbers_are_numbers(self) -> Self:
        for name, value in self:
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"`{name}` is not a number")
        return self


def iso_date(value: object) -> object:
    """A date as text, such as 2026-01-31: YAML reads dates itself. Raises ValueError for a text that is none."""
    if isinstance(value, str):
        date.fromisoformat(value)
    return value.isoformat() if isinstance(value, date) else value


_BEFORE = "before"  # in a field's JSON schema


def added(default: Any, *, before: Any = PydanticUndefined, **constraints: Any) -> Any:
    """A field that joined its section after runs had been made with it.

    `before` is the value that means what the code did before the field was there, by default the default. At that
    value it decides nothing and stays out of fingerprints (`settings_of`): what was made before stays finished. With
    another default, what a run's `config.yaml` means that lacks the field must be said where such files are read.
    """
    meant = default if before is PydanticUndefined else before
    return Field(default, json_schema_extra={_BEFORE: meant}, **constraints)


def settings_of(section: Section) -> dict[str, Any]:
    """The settings of a section as JSON values, without those that were `added` and mean what was done before them."""
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(field.json_schema_extra, dict) and _BEFORE in field.json_schema_extra:
            if value == field.json_schema_extra[_BEFORE]:
                del values[name]
        elif isinstance(value, Section):
            values[name] = settings_of(value)
    return values
