"""What every section of the config has in common."""

import math
from datetime import date
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


def iso_date(value: object) -> object:
    """A date as text, such as 2026-01-31: YAML reads dates itself. Raises ValueError for a text that is none."""
    if isinstance(value, str):
        date.fromisoformat(value)
    return value.isoformat() if isinstance(value, date) else value


def added(default: Any, **constraints: Any) -> Any:
    """A field that joined its section after runs had been made with it.

    While it is at its default it decides nothing and stays out of fingerprints (`settings_of`): what was made before it
    was there stays finished. The default must therefore mean what the code did before.
    """
    return Field(default, json_schema_extra={"added": True}, **constraints)


def settings_of(section: Section) -> dict[str, Any]:
    """The settings of a section as JSON values, without those that were `added` and are at their default."""
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("added"):
            if value == field.get_default(call_default_factory=True):
                del values[name]
        elif isinstance(value, Section):
            values[name] = settings_of(value)
    return values
