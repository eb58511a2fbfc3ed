"""What a run's folder says of the run, without starting anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from data import store
from data.errors import BadInput, PCOError
from pco.config.run import RunConfig
from pco.execution.launcher import error_path
from pco.rounds import is_over, walk
from pco.runs import approvals, retention
from pco.runs.folder import CONFIG, is_held, is_reward_training, read_config, report_path
from pco.stage import Stage, StageName, stages_of
from pco.training import checkpoints

Point = tuple[int, StageName]


@dataclass(frozen=True)
class RunLine:
    """One run among others."""

    name: str
    rounds: int
    decided: int
    state: str
    report: Path | None


@dataclass(frozen=True)
class StageLine:
    """One stage of a run.

    `state` is `done`, `running`, `partial`, `interrupted` (with nothing kept), `failed`, `waiting` (for a person's
    answer), `stale`, `damaged` or `not started`, and `note` says the rest: what is kept, why it failed, what changed,
    what cannot be read, what the gate decided.
    """

    round: int
    stage: StageName
    state: str
    note: str = ""
    rows: str = ""
    dropped: str = ""
    time: str = ""


def of_all(runs_dir: Path) -> list[RunLine]:
    """Every run under a folder, by name."""
    return [_run_line(path.parent) for path in sorted(runs_dir.resolve().glob(f"[!.]*/{CONFIG}"))]


def _run_line(folder: Path) -> RunLine:
    try:
        if is_reward_training(folder):
            report = folder / "report.html"
            ended = "finished" if report.exists() else "running" if is_held(folder) else "unfinished"
            return RunLine(folder.name, 0, 0, f"reward training, {ended}", report if report.exists() else None)
        return _read_run_line(read_config(folder))
    except PCOError as error:  # that one run is damaged is no reason to hide the others
        return RunLine(folder.name, 0, 0, f"damaged: {error}", None)


def _read_run_line(config: RunConfig) -> RunLine:
    decisions = _decisions(config)
    promoted = [manifest.outputs["promoted"] == "yes" for manifest in decisions]
    report = report_path(config)
    if promoted and is_over(config, promoted):
        state = "finished" if promoted[-1] else "refused by the gate"
    else:
        state = "running" if is_held(config.folder) else "unfinished"
    return RunLine(config.run, config.rounds, len(decisions), state, report if report.exists() else None)


def _decisions(config: RunConfig) -> list[store.Manifest]:
    manifests = [store.read_manifest(_folder(config, number, "decide")) for number in range(1, config.rounds + 1)]
    return [manifest for manifest in manifests if manifest is not None]


def verdicts(config: RunConfig) -> list[str]:
    """The gate's sentence on each round."""
    return [manifest.outputs["reason"] for manifest in _decisions(config)]


def promotions(config: RunConfig) -> list[bool]:
    """Whether the gate promoted each round."""
    return [manifest.outputs["promoted"] == "yes" for manifest in _decisions(config)]


def of_run(config: RunConfig) -> list[StageLine]:
    """Every stage of every round, in the order in which they run."""
    reached, _ = _reached(config)
    return [_stage_line(config, number, name, reached) for number, name in points(config)]


def points(config: RunConfig) -> list[Point]:
    """Round and name of every stage that a run may have, in order."""
    return [(number, name) for number in range(config.rounds + 1) for name in stages_of(config, number)]


def is_finished(config: RunConfig) -> bool:
    """Whether every stage is done, or the gate refused a round, so that a resumed run would have nothing to do."""
    return _reached(config)[1]


class _NotDone(Exception):
    pass


def _reached(config: RunConfig) -> tuple[dict[Point, Stage], bool]:
    """The stages whose inputs are known, which are all up to the first that is not done; and whether all are done."""
    reached: dict[Point, Stage] = {}

    def look(stage: Stage) -> store.Manifest:
        reached[stage.round, cast(StageName, stage.name)] = stage
        manifest = store.read_manifest(stage.folder)
        if manifest is None or stage.changes(manifest):
            raise _NotDone
        return manifest

    try:
        walk(config, look)
    except (_NotDone, PCOError):  # what cannot be read is told in its stage's line, or is for the run to refuse
        return reached, False
    return reached, True


def to_do(config: RunConfig) -> str:
    """What `pco resume` would do with this run, in a sentence or two."""
    reached, finished = _reached(config)
    if finished:
        return "Nothing is left to do."
    number, name = point = list(reached)[-1] if reached else (0, "prepare")
    resume = f"pco resume {config.run}"
    if is_held(config.folder):
        return "A process is writing to this run now."
    try:
        manifest = store.read_manifest(reached[point].folder) if point in reached else None
        changes = "; ".join(reached[point].changes(manifest)) if manifest else ""
    except PCOError as error:
        return f"`{resume}` would be refused at `{name}` of round {number}: {error}"
    if changes:
        return (
            f"`{resume}` would be refused at `{name}` of round {number}: {changes}. `pco fork {config.run} NEW` shares "
            f"what is still valid; `{resume} --from {name} --round {number}` sets the rest aside and makes it anew."
        )
    if (line := _stage_line(config, number, name, reached)).state == "waiting":
        return line.note
    every = points(config)
    left = every[every.index(point) :]
    this_round = ", ".join(stage for at, stage in left if at == number)
    later = config.rounds - number
    then = f", then {later} more round{'s' if later > 1 else ''}" if later else ""
    return f"`{resume}` would run, in round {number}: {this_round}{then}."


def awaited(config: RunConfig) -> Stage:
    """The `decide` stage that waits for a person's answer.

    Raises BadInput when the run asks nothing.
    """
    reached, _ = _reached(config)
    for point in list(reached)[-1:]:
        if _stage_line(config, *point, reached).state == "waiting":
            return reached[point]
    raise BadInput(f"{config.run}: waits for no answer. `pco status {config.run}` shows what it is at.")


def _stage_line(config: RunConfig, number: int, name: StageName, reached: dict[Point, Stage]) -> StageLine:
    try:
        return _read_stage_line(config, number, name, reached)
    except PCOError as error:
        return StageLine(number, name, "damaged", str(error))


def _read_stage_line(config: RunConfig, number: int, name: StageName, reached: dict[Point, Stage]) -> StageLine:
    folder = _folder(config, number, name)
    manifest = store.read_manifest(folder)
    if manifest is None:
        is_next = not reached or (number, name) == list(reached)[-1]
        return StageLine(number, name, *_unfinished(config, number, name, is_next=is_next))
    dropped = "; ".join(f"{count} {reason}" for reason, count in manifest.dropped.items() if count)
    account = (counted(manifest), dropped, f"{manifest.seconds:,.0f} s")
    if (number, name) not in reached:
        return StageLine(number, name, "stale", "a stage before it is not done", *account)
    if changes := reached[number, name].changes(manifest):
        return StageLine(number, name, "stale", "; ".join(changes), *account)
    return StageLine(number, name, "done", _found(folder, manifest), *account)


def _found(folder: Path, manifest: store.Manifest) -> str:
    """The run that a fork took a finished stage from, and what the gate said."""
    source = store.origin(folder)
    refused = manifest.outputs.get("promoted") == "no"
    verdict = manifest.outputs["reason"] if refused else "promoted" if manifest.stage == "decide" else ""
    return "; ".join(told for told in (f"from {source}" if source else "", verdict) if told)


def _unfinished(config: RunConfig, number: int, name: StageName, *, is_next: bool) -> tuple[str, str]:
    """State and note. A stage that has failed may be running again: its error file is gone then."""
    kept = _kept(config, number, name)
    error = error_path(config, number, name)
    begun = error.with_suffix(".log").exists()
    if error.exists():
        why = error.read_text(encoding="utf-8").partition("\n")[0]
        if approvals.how_to(config) in why:
            answered = approvals.read(Stage("decide", number, config, {}))
            return ("partial", "answered") if answered else ("waiting", why)
        return "failed", f"{why} ({kept} kept)" if kept else why
    if begun and is_next and is_held(config.folder):
        return "running", kept
    if kept:
        return "partial", kept
    return ("interrupted", "nothing kept") if begun else ("not started", "")


def _kept(config: RunConfig, number: int, name: StageName) -> str:
    folder = _folder(config, number, name)
    if name == "train":
        taken, of = checkpoints.progress(folder)
        return f"step {taken} of {of}" if taken else ""
    shards, of = store.committed(folder)
    return f"{shards}/{of} shards" if shards else ""


def counted(manifest: store.Manifest) -> str:
    """How many rows came out, and of how many where some were dropped."""
    of = f" of {manifest.rows_in:,}" if manifest.rows_in != manifest.rows_out else ""
    return f"{manifest.rows_out:,}{of} {manifest.unit}"


def damage(config: RunConfig) -> list[str]:
    """What is wrong with a run's finished stages, after reading every table and policy; nothing if all is whole."""
    found = []
    for number, name in points(config):
        folder = _folder(config, number, name)
        try:
            manifest = store.read_manifest(folder)
        except PCOError as error:
            found.append(str(error))
            continue
        if manifest is not None:
            found += _part_damage(folder, manifest)
            if name == "train":
                found += _policy_damage(retention.policy_folder(config, number), manifest.outputs["policy"])
    return found


def _part_damage(folder: Path, manifest: store.Manifest) -> list[str]:
    found = []
    for part in manifest.parts:
        try:
            store.read_part(folder, part)
        except PCOError as error:
            found.append(str(error))
    return found


def _policy_damage(folder: Path, digest: str) -> list[str]:
    if not folder.is_dir():
        if retention.was_removed(folder):
            return []
        return [f"{folder}: missing. Restore it from a copy, or make it again with `pco resume --from train`."]
    if store.folder_digest(folder) != digest:
        return [f"{folder}: its files are not those that were trained. Restore them from a copy."]
    return []


def folders_with(config: RunConfig, table: str, number: int | None) -> list[tuple[str, Path]]:
    """The finished stage folders that hold a table, with words for where they are.

    Raises BadInput when there is none.
    """
    found = []
    for at, name in points(config):
        folder = _folder(config, at, name)
        manifest = store.read_manifest(folder)
        if manifest and number in {None, at} and table in {part.table for part in manifest.parts}:
            found.append((f"round {at}, {name}", folder))
    if not found:
        where = "" if number is None else f" in round {number}"
        raise BadInput(
            f"{config.folder}: no finished stage holds a `{table}` table{where}. `pco status` shows what is done."
        )
    return found


def _folder(config: RunConfig, number: int, name: StageName) -> Path:
    return Stage(name, number, config, {}).folder
