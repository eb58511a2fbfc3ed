"""A study on disk: its settings, its one writer, and which of its runs shares work with which."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from data import files
from data.errors import BadInput, PCOError, RunConflict
from pco.config.file import OF_RUN, of_run
from pco.config.run import RunConfig, parse
from pco.config.study import FOLDER, Study
from pco.rounds import decisions
from pco.runs import fork
from pco.runs.folder import changed, check_same, locked, recorded
from pco.runs.status import Point, RunState
from pco.specs import SPECS, stages_of

_KIND = "study"


@contextmanager
def opened(study: Study, flow_run: str = "") -> Iterator[None]:
    """Hold a study's folder for writing; make it, and the file with its settings, if it is new.

    Raises RunConflict when another process holds it, or it began with other settings.
    """
    with files.write_errors(study.folder):
        study.folder.mkdir(parents=True, exist_ok=True)
    with locked(study.folder, flow_run):
        check(study)
        files.sweep(study.folder)
        for variant, seed in study.runs:  # forks that were killed
            for left in study.runs_dir.glob(f".{study.config(variant, seed).run}.*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
        record = {
            "kind": _KIND,
            "study": study.name,
            "seeds": study.seeds,
            "variants": {name: config.model_dump(mode="json") for name, config in study.variants.items()},
        }
        files.write_text(study.folder / OF_RUN, yaml.safe_dump(record, sort_keys=False))
        yield


def read(name: str, runs_dir: Path) -> Study:
    """A study on disk by its name. Its runs are looked for in the folder that holds it now.

    Raises BadInput when there is none.
    """
    folder = (runs_dir / FOLDER / name).resolve()
    record = of_run(folder)
    if record is None or record.get("kind") != _KIND:
        known = sorted(path.parent.name for path in folder.parent.glob(f"*/{OF_RUN}"))
        raise BadInput(f"{folder}: no study here. Studies in {folder.parent}: {', '.join(known) or 'none'}.")
    source = str(folder / OF_RUN)
    try:
        raws = {variant: recorded(raw, runs_dir.resolve()) for variant, raw in record["variants"].items()}
        variants = {variant: parse(raw, source=source, recorded=raw) for variant, raw in raws.items()}
        return Study(name=record["study"], variants=variants, seeds=record["seeds"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"{source}: holds no study ({error}). Run the study again with its config.") from None


def check(study: Study) -> None:
    """Raise RunConflict if the study began with other settings, or a run of its name has other ones.

    Variants and seeds may join, and what decides no result of a run may change.
    """
    if (study.folder / OF_RUN).exists():
        _check_record(study, read(study.name, study.runs_dir))
    for variant, seed in study.runs:
        check_same(study.config(variant, seed))


def _check_record(study: Study, before: Study) -> None:
    gone = [f"  variant `{name}` is gone" for name in before.variants if name not in study.variants]
    gone += [f"  seed {seed} is gone" for seed in before.seeds if seed not in study.seeds]
    if not gone and study.first != before.first:
        gone = [f"  the first variant, which others are compared with, was `{before.first}`, is `{study.first}`"]
    changes = gone
    for name, config in before.variants.items():
        if name in study.variants:
            lines = changed(config, study.variants[name], is_free=lambda key: key in {"run", "seed"})
            changes += [f"  variant `{name}`:{line.removeprefix(' ')}" for line in lines]
    if changes:
        raise RunConflict(
            f"{study.folder}: this study began with another config. Take another name (`study: ...` in the file, or "
            "--name), or go back to what it was; variants, seeds and rounds may be added:\n" + "\n".join(changes)
        )


def shareable(origin: RunConfig, new: RunConfig) -> list[Point]:
    """The stages that a run shares with another of the study, going by the settings of both, up to the first that
    differs.
    """
    points: list[Point] = []
    for number in range(min(origin.rounds, new.rounds) + 1):
        for name in stages_of(new, number):
            if name not in stages_of(origin, number):
                continue
            settings = SPECS[name].settings
            same_files = name != "prepare" or origin.prompts == new.prompts
            same_loss = name != "train" or origin.train.loss == new.train.loss
            # In the first round every policy is the start.
            same_policy = number < 2 or origin.train.begin_from == new.train.begin_from
            if not (same_files and same_loss and same_policy and settings(origin) == settings(new)):
                return points
            points.append((number, name))
    return points


def origin_of(study: Study, variant: str, seed: int) -> RunConfig | None:
    """The earlier run of the study that this one shares most with; None for the first, or where nothing is shared."""
    new = study.config(variant, seed)
    earlier = [study.config(*run) for run in study.runs[: study.runs.index((variant, seed))]]
    best = max(earlier, key=lambda origin: len(shareable(origin, new)), default=None)  # the earliest among equals
    return best if best is not None and shareable(best, new) else None


def is_ready(study: Study, variant: str, seed: int) -> bool:
    """Whether all that a run shares with an earlier one is finished there, or it has begun itself."""
    new, origin = study.config(variant, seed), origin_of(study, variant, seed)
    if origin is None or new.folder.exists():
        return True
    return origin.folder.exists() and not fork.planned(origin, new, None).unfinished


def begin(study: Study, variant: str, seed: int) -> None:
    """Let a run share what an earlier one has finished, unless it has begun already."""
    new, origin = study.config(variant, seed), origin_of(study, variant, seed)
    if origin is not None and origin.folder.exists() and not new.folder.exists():
        fork.fork(origin, new, None)


def check_policies_are_kept(study: Study) -> None:
    """Raise BadInput where a run would begin from a policy that the run which it shares with may have removed."""
    for variant, seed in study.runs:
        origin = origin_of(study, variant, seed)
        if origin is None or origin.keep_last is None:
            continue
        if any(name == "train" for _, name in shareable(origin, study.config(variant, seed))):
            raise BadInput(
                f"keep_last: variant `{variant}` shares policies with the run {origin.run}, which would remove them. "
                "Leave keep_last out of the base config."
            )


@dataclass(frozen=True)
class RunLine:
    """Where one run of a study stands. `kept` is the round whose policy it has promoted last; 0: the starting one."""

    variant: str
    seed: int
    run: str
    state: str
    note: str
    decided: int
    rounds: int
    kept: int
    made: int
    shared: int


def lines(study: Study) -> list[RunLine]:
    """Every run of a study, from what is on disk."""
    return [_line(study, variant, seed) for variant, seed in study.runs]


def _line(study: Study, variant: str, seed: int) -> RunLine:
    config = study.config(variant, seed)
    place = (variant, seed, config.run)
    if not (config.folder / OF_RUN).exists():
        return RunLine(*place, "not begun", "", 0, config.rounds, 0, 0, 0)
    try:
        state = RunState(config)
        stages = state.stages
        promoted = decisions(config)
    except PCOError as error:
        return RunLine(*place, "damaged", str(error), 0, config.rounds, 0, 0, 0)
    kept = max((number for number, decision in promoted.items() if decision.promoted), default=0)
    done = [stage for stage in stages if stage.state == "done"]
    shared = sum(stage.note.startswith("from ") for stage in done)
    outcome, note = state.outcome, ""
    wrong = [stage for stage in stages if stage.state in {"failed", "stale", "damaged"}]
    if wrong and outcome != "running" and not state.is_finished:
        outcome, note = wrong[0].state, f"round {wrong[0].round}, {wrong[0].stage}: {wrong[0].note}"
    return RunLine(*place, outcome, note, len(promoted), config.rounds, kept, len(done) - shared, shared)
