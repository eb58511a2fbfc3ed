"""YAML files into validated configs: faults are told by key, unknown keys with the nearest known one."""

import difflib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from data import packaged
from data.errors import BadInput
from pco.config import typed
from pco.config.overrides import overridden

Config = TypeVar("Config", bound=BaseModel)

OF_RUN = "config.yaml"  # all settings of a run, in its folder


def read(kind: type[BaseModel], path: Path, overrides: list[str]) -> dict[str, Any]:
    """The YAML file of a config of that kind with `a.b=value` overrides applied, not yet validated.

    A value for a text is the text that stands in the file (`pco.config.typed`).

    Raises BadInput for what is not readable, not a mapping, or has a key twice.
    """
    try:
        raw = typed.document(packaged.absolute(path).read_text(encoding="utf-8"), [kind])
    except FileNotFoundError:
        raise BadInput(
            f"{path}: no such config file. `package:presets/quickstart.yaml` is one that comes with pco and works."
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise BadInput(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(raw, dict):
        raise BadInput(f"{path}: expected `key: value` lines at the top level, found {type(raw).__name__}.")
    return overridden(kind, raw, overrides)


def of_run(folder: Path) -> dict[str, Any] | None:
    """What the `config.yaml` of a run's folder holds, not validated; None when there is none.

    Raises BadInput when it cannot be read, or holds no config.
    """
    path = folder / OF_RUN
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: the run's config could not be read ({error}). Restore it from a copy.") from error
    if not isinstance(raw, dict):
        raise BadInput(f"{path}: holds no config. Restore it from a copy, or write it again with the run's settings.")
    return raw


def validated(kind: type[Config], raw: dict[str, Any], *, source: str) -> Config:
    """The raw config as one of that kind; raises BadInput that lists every fault with its key."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(kind, item)}" for item in error.errors())
        raise BadInput(f"{source}: {error.error_count()} fault(s) in the config:\n{faults}") from None


# A user may put a key or a password where none belongs; it is not repeated.
_MAY_HOLD_A_SECRET = ("api_key_env", "base_url")


def _fault(kind: type[BaseModel], item: Any) -> str:
    where = ".".join(str(step) for step in item["loc"]) or "config"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key.{_nearest(kind, item['loc'])}"
    if item["type"] == "missing":
        return f"{where}: required, but missing."
    is_secret = isinstance(item["input"], str) and where.endswith(_MAY_HOLD_A_SECRET)
    found = "" if is_secret else f" (found {item['input']!r})"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}{found}"


def _nearest(kind: type[BaseModel], loc: tuple[str | int, ...]) -> str:
    """A hint among the keys of the section that the unknown one stands in."""
    known = {name for section in _sections(kind, loc[:-1]) for name in section.model_fields}
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    return f" Did you mean `{close[0]}`?" if close else f" Known here: {', '.join(sorted(known))}."


def _sections(kind: type[BaseModel], loc: tuple[str | int, ...]) -> list[type[BaseModel]]:
    """The sections that a fault's place leads to; a step is a field's name, a place in a list, or a choice's kind."""
    found: list[type[BaseModel]] = [kind]
    for step in loc:
        if len(found) > 1 and all(typed.is_choice(section) for section in found):
            found = [section for section in found if section.model_fields["kind"].default == step]
        elif isinstance(step, str):
            fields = [section.model_fields[step] for section in found if step in section.model_fields]
            # A step that is no field is a name of the user's own, as the measures under `gate.guards`.
            inner = dict.fromkeys(model for field in fields for model in models_in(field.annotation))
            found = list(inner) or found
    return found


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field's type names, in a list or as choices."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from models_in(inner)
