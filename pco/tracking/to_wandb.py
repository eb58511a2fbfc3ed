"""Weights & Biases: a group with a run for the curves over rounds, and one for each round.

WANDB_PROJECT (`pco` if not set), WANDB_ENTITY, WANDB_API_KEY and WANDB_MODE are read by wandb itself.
"""

import os
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from pco.tracking.facts import Part, Point, child
from pco.tracking.tracked import FOLDER, Tracked


def send(run: Tracked, parts: list[Part], note: Callable[[Part], None]) -> None:
    """Tell Weights & Biases; `note` is called for each part when all are told."""
    with _opened(run, "") as whole:
        for number, of_round in groupby(parts, key=lambda part: None if part.stage == "report" else part.round):
            if number is None:
                _attach(whole, run, *of_round)
            else:
                _log_round(run, number, list(of_round), whole)
    for part in parts:
        note(part)


def _log_round(run: Tracked, number: int, parts: list[Part], whole: Any) -> None:
    with _opened(run, child(number)) as opened:
        for part in parts:
            _log(whole, part.values, "round")
            _log(opened, part.steps, "train/step")
            opened.summary.update({point.name: point.value for point in part.values})
            _attach(opened, run, part)


def _opened(run: Tracked, name: str) -> Any:
    import wandb

    os.environ.setdefault("WANDB_DIR", str(run.folder / FOLDER))
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "pco"),
        group=run.name,
        job_type="round" if name else "run",
        name=f"{run.name} {name}".strip(),
        id=f"{run.id[:16]}-{name or 'run'}",
        config=run.settings,
        resume="allow",
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
    )
    # Its own steps only rise, and what is made anew begins at the first again.
    opened.define_metric("train/*", step_metric="train/step")
    for metrics in ("eval/*", "gate/*", "cost/*"):
        opened.define_metric(metrics, step_metric="round")
    return opened


def _log(opened: Any, points: Sequence[Point], step: str) -> None:
    rows: dict[int, dict[str, float]] = {}
    for point in points:
        rows.setdefault(point.step, {})[point.name] = point.value
    for number, row in rows.items():
        opened.log({**row, step: number})


def _attach(opened: Any, run: Tracked, part: Part) -> None:
    import wandb

    if not part.files:
        return
    artifact = wandb.Artifact(f"{run.name}-{part.key.replace('/', '-')}", type=part.stage)
    for path in part.files:
        artifact.add_file(str(path), name=path.name)
    opened.log_artifact(artifact)
