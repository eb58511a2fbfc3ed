"""Fork a run on disk into a new one, or set its last stages aside so that they run again."""

import contextlib
import os
import shutil
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from data import files, store
from data.errors import BadInput, RunConflict
from pco.config.run import RunConfig
from pco.evaluation import looks
from pco.rounds import as_begun, stages_in, walk
from pco.runs import retention
from pco.runs.folder import write_config
from pco.runs.status import Point, points
from pco.specs import TESTS, StageName
from pco.stage import Stage

_ASIDE = "set-aside"


@dataclass(frozen=True)
class Fork:
    """The stages that a new run shares, and where their settings differ from the new run's.

    `unfinished` is the origin's next stage, if the new run may share that too once it is finished.
    """

    shared: list[Stage] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    unfinished: list[Stage] = field(default_factory=list)


class _Stop(Exception):
    """Ends a walk over the stages."""


def fork(origin: RunConfig, new: RunConfig, at: Point | None, *, without: Collection[Point] = ()) -> Fork:
    """Make the run `new`, which shares the files of `origin`'s stages before `at`; without `at`, of all valid stages.

    Stages of `without` are left for `new` to make, though later ones are shared, even if their settings differ.

    With `at`, earlier stages are shared even if their settings differ from those of `new`. So a setting can change from
    some round on. A stage that only the settings of `new` ask for is left for it to make. The new run's folder appears
    whole or not at all.

    Raises RunConflict when `new` exists, BadInput when a stage before `at` is not finished or there is no way to `at`.
    """
    if new.folder.exists():
        raise RunConflict(f"{new.folder}: exists. Fork into another name.")
    plan = planned(origin, new, at, without)
    temporary = new.folder.with_name(f".{new.run}.{os.getpid()}.tmp")
    with files.write_errors(new.folder):
        try:
            for stage in plan.shared:
                _share(stage, origin, temporary / stage.folder.relative_to(new.folder))
            write_config(new, temporary)
            if (origin.folder / looks.FILE).exists():  # what was seen there is known here
                shutil.copy2(origin.folder / looks.FILE, temporary / looks.FILE)
            temporary.rename(new.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return plan


def planned(origin: RunConfig, new: RunConfig, at: Point | None, without: Collection[Point] = ()) -> Fork:
    """What `fork` would share now; writes nothing, and raises as it does."""
    if at is not None:
        check_point(new, at)
        # Only the origin's settings may lack `refer`, which begins from the same policy as the training after it.
        _check_beginning(origin, at if at in points(origin) else (at[0], "train"))
    plan, begun = Fork(), as_begun(origin)

    def take_over(stage: Stage) -> store.Manifest:
        if (stage.round, stage.name) == at:
            raise _Stop
        source = _source(stage, begun)
        manifest = store.read_manifest(source.folder)
        if manifest is not None and (stage.round, stage.name) in without:
            return manifest
        if manifest is None and stage.name not in (*stages_in(origin, stage.round), *TESTS):
            return _to_be_made(stage)
        changes = [] if manifest is None else _changes(stage, source, manifest)
        if at is None and (manifest is None or (changes and not without)):
            plan.unfinished.extend([source] if manifest is None else [])
            raise _Stop
        if manifest is None:
            raise BadInput(f"{source.folder}: not finished, so a fork cannot begin after it. Begin at it, or before.")
        model = source.own_model(manifest)
        if model is not None and not (model.folder.is_dir() or retention.was_removed(model.folder)):
            raise BadInput(f"{model.folder}: is gone, so this stage cannot be shared. Fork from it, or before.")
        plan.differing.extend(f"{stage.title}: {change}" for change in changes)
        plan.shared.append(stage)
        return manifest

    try:
        walk(new, take_over)
    except _Stop:
        return plan
    if at is not None:
        refused = plan.shared[-1].round
        raise BadInput(
            f"{origin.run}: its gate refused round {refused}, so no stage comes after it. To go on from there all the "
            f"same: --from decide --round {refused}, with other bounds under `gate`."
        )
    return plan


def _to_be_made(stage: Stage) -> store.Manifest:
    """What stands for a stage of the new run which its origin never had, to see what can be shared after it."""
    inputs = {name: artifact.fingerprint for name, artifact in stage.inputs.items()}
    return store.Manifest(
        stage=stage.name,
        fingerprint=stage.fingerprint,
        parts=[],
        unit="",
        rows_in=0,
        rows_out=0,
        dropped={},
        inputs=inputs,
        settings=stage.settings,
    )


def _source(stage: Stage, origin: RunConfig) -> Stage:
    return Stage(stage.name, stage.round, origin, {})


def _changes(stage: Stage, source: Stage, manifest: store.Manifest) -> list[str]:
    """The settings that differ in the new run. A stage that the origin itself shares counts by its settings alone."""
    if store.origin(source.folder) is not None and stage.settings == source.settings:
        return []
    return stage.changes(manifest)


def _share(stage: Stage, origin: RunConfig, folder: Path) -> None:
    """Share a stage. Its model comes first: a finished training must have one."""
    source = _source(stage, origin)
    manifest = store.read_manifest(source.folder)
    model = source.own_model(manifest) if manifest else None
    if model is not None:
        shared = folder.with_name(model.folder.name)
        if model.folder.is_dir():
            store.share(model.folder, shared, origin=origin.run)
        else:
            retention.mark_removed(shared)
    store.share(source.folder, folder, origin=origin.run)


def newest(config: RunConfig, name: StageName) -> Point:
    """The last round in which a stage has begun.

    Raises BadInput when there is none.
    """
    begun = [point for point in points(config) if point[1] == name and _folders(config, point)]
    if not begun:
        raise BadInput(f"{config.folder}: no round has begun `{name}`. `pco status {config.run}` shows what is done.")
    return begun[-1]


def set_aside(config: RunConfig, at: Point) -> list[Path]:
    """Move the results of a stage and of all stages after it aside, so that these stages run again.

    Nothing is deleted: the results are moved to `set-aside/` in the run's folder. Returns the folders that were moved.

    Raises BadInput when the run has no such stage.
    """
    check_point(config, at)
    _check_beginning(config, at)
    all_points = points(config)
    aside = config.folder / _ASIDE / time.strftime("%Y%m%d-%H%M%S")
    moved = []
    # The last first, so that a kill in between leaves whole stages up to some point and none after it.
    for point in reversed(all_points[all_points.index(at) :]):
        for folder in _folders(config, point):
            files.move(folder, aside / folder.relative_to(config.folder))
            moved.append(folder)
    return moved


def _check_beginning(config: RunConfig, at: Point) -> None:
    """Raise BadInput if the policy that a point begins from was removed, before anything is moved or shared."""

    def visit(stage: Stage) -> store.Manifest:
        manifest = store.read_manifest(stage.folder)
        needed = stage.inputs["policy"].folder if "policy" in stage.inputs else None
        if (stage.round, stage.name) == at and needed and not needed.is_dir() and retention.was_removed(needed):
            raise BadInput(
                f"{needed}: was removed to save room (`keep_last`), and `{at[1]}` of round {at[0]} begins from "
                "it. Go back to a round whose starting policy is kept: the first, or one after a policy that is there."
            )
        if (stage.round, stage.name) == at or manifest is None:
            raise _Stop
        return manifest

    with contextlib.suppress(_Stop):
        walk(config, visit)


def _folders(config: RunConfig, point: Point) -> list[Path]:
    """The files and folders of a stage. Its own folder, which holds the manifest, comes first."""
    stage = Stage(point[1], point[0], config)
    models = [stage.model_folder] if stage.spec.model or stage.spec.merged else []
    logs = [stage.stage_file, stage.log_file, stage.error_file, *stage.log_file.parent.glob(f"{stage.name}.worker*")]
    paths = [stage.folder, *models, *logs]
    return [path for path in paths if path.exists()]


def check_point(config: RunConfig, at: Point) -> None:
    """Raise BadInput if a run of this config has no such stage in that round."""
    number, name = at
    if at not in points(config):
        raise BadInput(
            f"{config.run}: has no stage `{name}` in round {number}. It has {config.rounds} rounds; round 0 holds the "
            "start (prepare, evaluate), and only losses with a reference have `refer`."
        )
