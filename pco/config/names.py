"""Names of runs that hold the time at which they were due, such as `nightly-{date}`."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from data.errors import BadInput

ALLOWED = "`{date}`, such as 2026-01-31, and `{time}`, such as 220000, both UTC"
_FIELDS = {"{date}": "%Y-%m-%d", "{time}": "%H%M%S"}
_FIELD = re.compile(r"\{[^{}]*\}|[{}]")
PATTERN = r"^([A-Za-z0-9]|\{date\}|\{time\})([A-Za-z0-9._-]|\{date\}|\{time\}){0,99}$"


def resolved(name: str, due: datetime) -> str:
    """The name with `{date}` and `{time}` of `due`, which knows its time zone, in UTC: a day there has no hour twice.

    Raises BadInput for any other braces.
    """
    unknown = [field for field in _FIELD.findall(name) if field not in _FIELDS]
    if unknown:
        raise BadInput(f"run: {name}: holds {', '.join(unknown)}. Allowed in braces are {ALLOWED}.")
    moment = due.astimezone(UTC)
    for field, form in _FIELDS.items():
        name = name.replace(field, moment.strftime(form))
    return name


def named(raw: Mapping[str, Any], due: datetime | None) -> dict[str, Any]:
    """A raw config whose `run` is resolved; by default it is due now. What is no text is left to the validation."""
    name = raw.get("run")
    return {**raw, "run": resolved(name, due or datetime.now(UTC))} if isinstance(name, str) else dict(raw)
