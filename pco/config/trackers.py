"""Experiment trackers that a run may be followed with."""

import importlib.util
from collections.abc import Sequence
from typing import Literal, get_args

from data.errors import BadInput

Tracker = Literal["mlflow", "wandb", "tensorboard", "trackio"]
TRACKERS: tuple[Tracker, ...] = get_args(Tracker)

# What is imported for each, and what is installed for it.
_PACKAGES: dict[Tracker, tuple[str, str]] = {
    "mlflow": ("mlflow", "mlflow-skinny"),
    "wandb": ("wandb", "wandb"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "trackio": ("trackio", "trackio"),
}


def named(name: str) -> Tracker:
    """The tracker of that name; raises BadInput when there is none."""
    if name not in TRACKERS:
        raise BadInput(f"{name}: no such tracker. There are: {', '.join(TRACKERS)}.")
    return name


def check_installed(trackers: Sequence[Tracker]) -> None:
    """Raise BadInput if the package of a tracker is not installed; imports none of them."""
    missing = [_PACKAGES[name][1] for name in trackers if importlib.util.find_spec(_PACKAGES[name][0]) is None]
    if missing:
        raise BadInput(f"track: not installed: {', '.join(missing)}. `pip install {' '.join(missing)}`")
