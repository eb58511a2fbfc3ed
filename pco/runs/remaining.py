"""How long a run still takes, by the stages that it has finished."""

from contextlib import suppress
from typing import Any

from data import store
from data.errors import PCOError
from pco.config.run import RunConfig
from pco.specs import StageName, stages_of
from pco.stage import Stage


def seconds_after(stage: Stage[Any]) -> float | None:
    """About how many seconds a run takes after one of its stages, if all its rounds are made.

    Each stage is reckoned as long as its like in the last round that finished one. None where some stage has none yet,
    so in most of a run's first round, and in the test of a run that has ended.
    """
    if not isinstance(stage.config, RunConfig):
        return None
    names: list[str] = [*stages_of(stage.config, stage.round)]
    if stage.name not in names:
        return None
    total = 0.0
    for number in range(stage.round, stage.config.rounds + 1):
        done = names.index(stage.name) + 1 if number == stage.round else 0
        for name in stages_of(stage.config, number)[done:]:
            seconds = _last(name, stage.round, stage.config)
            if seconds is None:
                return None
            total += seconds
    return total


def _last(name: StageName, until: int, config: RunConfig) -> float | None:
    """Seconds of the last such stage in a round until this one; None if none is finished."""
    for number in range(until, -1, -1):
        with suppress(PCOError):  # damage is told when the stage's turn comes: this only informs
            manifest = store.read_manifest(Stage(name, number, config).folder)
            if manifest is not None:
                return manifest.seconds
    return None
