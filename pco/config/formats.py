"""`auto` number formats: decided once, when a run begins, and kept in its `config.yaml` from then on.

So a run goes on in one format wherever it is resumed, and fingerprints see only formats that were decided.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from pco import hardware

Config = TypeVar("Config", bound=BaseModel)

AUTO = "auto"
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
# The settings, and what they were by default while runs did not write them.
_SETTINGS = {("train", "precision"): "bf16", ("engine", "dtype"): "bfloat16"}


def decided(config: Config, recorded: Mapping[str, Any] | None) -> Config:
    """The config with a format in place of each `auto`: that of the run which it resumes or is forked from, if any.

    `recorded` is what that run's `config.yaml` holds. An `engine.dtype: auto` in it comes from a version that left the
    choice to vLLM, and stays; that is the one `auto` which a decided config can hold.
    """
    updates = {}
    for (section, name), before in _SETTINGS.items():
        settings = getattr(config, section, None)
        if getattr(settings, name, None) == AUTO:
            value = _of_this_machine(name) if recorded is None else _recorded(recorded, section, name, before)
            updates[section] = settings.model_copy(update={name: value})  # type: ignore[union-attr]
    return config.model_copy(update=updates)


def _of_this_machine(name: str) -> str:
    precision, _ = hardware.number_format()
    return precision if name == "precision" else DTYPES[precision]


def _recorded(recorded: Mapping[str, Any], section: str, name: str, before: str) -> str:
    settings = recorded.get(section)
    return str(settings.get(name, before)) if isinstance(settings, Mapping) else before
