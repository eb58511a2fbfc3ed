"""New beginnings from a run on disk: fork it into a new one, or set its last stages aside to make them anew."""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

from data import store
from data.errors import BadInput, RunConflict
from pco.config import RunConfig
from pco.rounds import walk
from pco.rundir import CONFIG, opened
from pco.stage import Stage, StageName, round_folder
from pco.status import Point, points

_ASIDE = "set-aside"


@dataclass(frozen=True)
class Fork:
    """What a new run took over: each stage, and where it was made with other settings than the new run's."""

    shared: list[Stage] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)


class _Enough(Exception):
    pass


def fork(origin: RunConfig, new: RunConfig, at: Point | None) -> Fork:
    """Make the run `new`, sharing the files of `origin`'s stages before `at`; without it, of all that are still valid.

    With `at`, earlier stages are taken as they are, even if `new` would have made them with other settings: so a
    setting can change from some round on.

    Raises RunConflict when `new` exists, BadInput when a stage before `at` is not finished.
    """
    if (new.folder / CONFIG).exists():
        raise RunConflict(f"{new.folder}: this run exists. Fork into another name.")
    if at is not None and at not in points(new):
        raise BadInput(_no_such_point(new, at))
    made = Fork()

    def take_over(stage: Stage) -> store.Manifest:
        if (stage.round, stage.name) == at:
            raise _Enough
        source = _source(stage, origin)
        manifest = store.read_manifest(source)
        if manifest is None and at is not None:
            raise BadInput(f"{source}: not finished, so a fork cannot begin after it. Begin at it, or before.")
        if manifest is None or (at is None and stage.changes(manifest)):
            raise _Enough
        made.differing.extend(f"{stage.title}: {change}" for change in stage.changes(manifest))
        made.shared.append(stage)
        return manifest

    with contextlib.suppress(_Enough):
        walk(new, take_over)
    with opened(new):
        for stage in made.shared:
            _share(stage, origin)
    return made


def _source(stage: Stage, origin: RunConfig) -> Path:
    return Stage(stage.name, stage.round, origin, {}).folder


def _share(stage: Stage, origin: RunConfig) -> None:
    """The policy before the stage that made it: a finished training has one."""
    if stage.name == "train":
        policy = round_folder(stage.config, stage.round) / "policy"
        store.share(round_folder(origin, stage.round) / "policy", policy, origin=origin.run)
    store.share(_source(stage, origin), stage.folder, origin=origin.run)


def newest(config: RunConfig, name: StageName) -> Point:
    """The last round in which a stage has left anything.

    Raises BadInput when there is none.
    """
    begun = [point for point in points(config) if point[1] == name and _folders(config, point)]
    if not begun:
        raise BadInput(f"{config.folder}: no round has begun `{name}`. `pco status {config.run}` shows what is done.")
    return begun[-1]


def set_aside(config: RunConfig, at: Point) -> list[Path]:
    """Move what a stage and all stages after it have made out of the way, so that they are made anew.

    Nothing is deleted: it lies under `set-aside/` in the run's folder. Returns the folders that were moved.

    Raises BadInput when the run has no such stage.
    """
    every = points(config)
    if at not in every:
        raise BadInput(_no_such_point(config, at))
    aside = config.folder / _ASIDE / time.strftime("%Y%m%d-%H%M%S")
    moved = []
    # The last first, so that a kill in between leaves whole stages up to some point and none after it.
    for point in reversed(every[every.index(at) :]):
        for folder in _folders(config, point):
            store.move(folder, aside / folder.relative_to(config.folder))
            moved.append(folder)
    return moved


def _folders(config: RunConfig, point: Point) -> list[Path]:
    """What a stage has made, its own folder with the manifest first."""
    number, name = point
    folders = [Stage(name, number, config, {}).folder]
    if name == "train":
        folders.append(round_folder(config, number) / "policy")
    return [folder for folder in folders if folder.exists()]


def _no_such_point(config: RunConfig, at: Point) -> str:
    number, name = at
    return (
        f"{config.run}: has no stage `{name}` in round {number}. It has {config.rounds} rounds; round 0 holds the "
        "start (prepare, evaluate), and only losses with a reference have `refer`."
    )
