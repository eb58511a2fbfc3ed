"""`a.b=value` strings over a raw config, as of `--set` and of a form's overrides."""

import copy
from typing import Any

import yaml
from pydantic import BaseModel

from data.errors import BadInput
from pco.config import typed

Raw = dict[str, Any]


def overridden(model: type[BaseModel], raw: Raw, overrides: list[str]) -> Raw:
    """A copy of the raw config with `a.b=value` strings applied.

    A value is read by the type of its field (`typed.value`). A section whose `kind` is changed begins from the defaults
    of the new kind: of the old one only what other overrides have set is kept.

    Raises BadInput for a string that is not of that form.
    """
    raw = copy.deepcopy(raw)
    said: set[str] = set()
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise BadInput(f"--set {override}: expected key=value, e.g. --set train.learning_rate=1e-5")
        try:
            _override(model, raw, dotted, text, said)
        except yaml.YAMLError as error:
            raise BadInput(f"--set {override}: the value is not readable as YAML: {error}") from error
        said.add(dotted)
    return raw


def _override(model: type[BaseModel], raw: Raw, dotted: str, text: str, said: set[str]) -> None:
    section, allowed, kind = raw, typed.Types([model]), None
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = typed.of_kind(allowed, section.get("kind", kind))
        kind = _default_kind(inner, parent)
        allowed = typed.below(inner, parent) or typed.below(allowed, parent)
        if section.get(parent) is None:  # left out, or null as a resolved config writes it
            section[parent] = {}
        section = section[parent]
        if not isinstance(section, dict):
            raise BadInput(f"--set {dotted}={text}: `{parent}` is not a section of the config.")
    present = section.get("kind", kind)
    # A key of another kind may come before the `kind` that makes it known.
    fields = typed.below(typed.of_kind(allowed, present), last) or typed.below(allowed, last)
    value = typed.value(text, fields)
    if last == "kind" and value != present and sum(map(typed.is_choice, allowed)) > 1:
        prefix = ".".join(parents)
        for key in [key for key in section if not _is_said(f"{prefix}.{key}", said)]:
            del section[key]
    section[last] = value


def _is_said(dotted: str, said: set[str]) -> bool:
    return any(f"{key}.".startswith(f"{dotted}.") or dotted.startswith(f"{key}.") for key in said)


def _default_kind(allowed: typed.Types, key: str) -> str | None:
    """The kind that a section has which says none."""
    defaults = (field.default for field in typed.fields(allowed, key))
    return next((getattr(default, "kind", None) for default in defaults), None)
