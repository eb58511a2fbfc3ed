"""The state of a run, read from its folder without starting anything."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

from data import store
from data.errors import BadInput, PCOError
from pco import rounds
from pco.config.file import OF_RUN
from pco.config.run import RunConfig
from pco.evaluation.decision import Decision
from pco.execution import at_work
from pco.progress import Failure
from pco.runs import approvals
from pco.runs.folder import is_held, is_reward_training, read_config, report_path
from pco.specs import TESTS, StageName
from pco.stage import Stage
from pco.training import checkpoints

Point = tuple[int, StageName]
_PREPARE: Point = (0, "prepare")
_FREEZE: Point = (0, "prepare_test")
State = Literal["done", "running", "partial", "interrupted", "failed", "waiting", "stale", "damaged", "not started"]


@dataclass(frozen=True)
class StageState:
    """How far one stage of a run is.

    An `interrupted` stage began and kept nothing; a `waiting` stage waits for a person's answer. `note` holds the rest:
    what is kept, why it failed, what changed, what cannot be read, what the gate decided.
    """

    round: int
    stage: StageName
    state: State
    note: str = ""
    manifest: store.Manifest | None = None

    @property
    def rows(self) -> str:
        """How many rows came out."""
        return counted(self.manifest) if self.manifest else ""

    @property
    def dropped(self) -> str:
        """How many rows were dropped, and why."""
        dropped = self.manifest.dropped if self.manifest else {}
        return "; ".join(f"{count} {reason}" for reason, count in dropped.items() if count)

    @property
    def time(self) -> str:
        """How long it took."""
        return f"{self.manifest.seconds:,.0f} s" if self.manifest else ""


class _NotDone(Exception):
    """Ends a walk at the first stage that is not done."""


def _finished_manifest(stage: Stage) -> store.Manifest:
    manifest = store.read_manifest(stage.folder)
    if manifest is None or stage.changes(manifest):
        raise _NotDone
    return manifest


@dataclass(frozen=True)
class RunState:
    """Where a run stands; each part is read from disk when it is first asked for."""

    config: RunConfig

    @cached_property
    def decisions(self) -> dict[int, Decision]:
        """What the gate decided of each round that is decided."""
        return rounds.decisions(self.config)

    @property
    def promoted(self) -> list[bool]:
        """Whether the gate promoted each round that is decided."""
        return [decision.promoted for decision in self.decisions.values()]

    @property
    def reasons(self) -> list[str]:
        """The gate's sentence on each round that is decided."""
        return [decision.reason for decision in self.decisions.values()]

    @cached_property
    def is_held(self) -> bool:
        """Whether a process is writing to the run now."""
        return is_held(self.config.folder)

    @property
    def outcome(self) -> str:
        """The state of the run in a word or two, from its decisions alone."""
        if self.promoted and rounds.is_over(self.config, self.promoted):
            return "finished" if self.promoted[-1] else "refused by the gate"
        return "running" if self.is_held else "unfinished"

    @cached_property
    def _walked(self) -> tuple[dict[Point, Stage], bool]:
        """The stages up to the first that is not done, whose inputs are known, and whether all are done."""
        reached, is_finished = self._walk(self.config)
        if not is_finished and list(reached)[-1:] == [_FREEZE]:
            # A test set that joined the run: what the run made before does not wait for it.
            without = self.config.prompts.model_copy(update={"test": None})
            before, _ = self._walk(self.config.model_copy(update={"prompts": without}))
            return {**before, _FREEZE: reached[_FREEZE]}, False
        return reached, is_finished

    @staticmethod
    def _walk(config: RunConfig) -> tuple[dict[Point, Stage], bool]:
        reached: dict[Point, Stage] = {}

        def visit(stage: Stage) -> store.Manifest:
            reached[stage.round, cast(StageName, stage.name)] = stage
            return _finished_manifest(stage)

        try:
            rounds.walk(config, visit)
        except (_NotDone, PCOError):  # the state of the stage reports what cannot be read, or the run refuses it
            return reached, False
        return reached, True

    @property
    def is_finished(self) -> bool:
        """Whether every stage is done, or the gate refused a round, so that a resumed run would have nothing to do."""
        return self._walked[1]

    @cached_property
    def stages(self) -> list[StageState]:
        """Every stage of every round, in the order in which they run."""
        return [self._stage(point) for point in points(self.config)]

    @property
    def to_do(self) -> str:
        """What `pco resume` would do with this run, in a sentence or two."""
        if self.is_finished:
            return "Nothing is left to do."
        if self.is_held:
            return "A process is writing to this run now."
        number, name = point = self._next
        run, resume, state = self.config.run, f"pco resume {self.config.run}", self._stage(self._next)
        if state.state == "damaged":
            return f"`{resume}` would be refused at `{name}` of round {number}: {state.note}"
        if state.state == "stale":
            return (
                f"`{resume}` would be refused at `{name}` of round {number}: {state.note}. `pco fork {run} NEW` shares "
                f"what is still valid; `{resume} --from {name} --round {number}` sets the rest aside and runs it again."
            )
        if state.state == "waiting":
            return state.note
        if state.state == "done":  # what comes after it is refused
            return f"`{resume}` would be refused: {self._refusal}"
        all_points = points(self.config)
        missing = all_points[all_points.index(point) :]
        if point in {_FREEZE, _PREPARE}:
            missing = [later for later in missing if not self._is_done(later)]
        this_round = ", ".join(stage for at, stage in missing if at == number)
        later = 0 if name in TESTS else sum(at > number for at, stage in missing if stage == "decide")
        then = [f"{later} more round{'s' if later > 1 else ''}"] if later else []
        then += ["the test"] if any(at > number for at, stage in missing if stage == "test") else []
        return f"`{resume}` would run, in round {number}: {this_round}{', then ' * bool(then)}{' and '.join(then)}."

    def awaited(self) -> Stage:
        """The `decide` stage that waits for a person's answer.

        Raises BadInput when the run waits for no answer.
        """
        reached, _ = self._walked
        if self._next in reached and self._stage(self._next).state == "waiting":
            return reached[self._next]
        raise BadInput(f"{self.config.run}: waits for no answer. `pco status {self.config.run}` shows what it is at.")

    @property
    def _refusal(self) -> str:
        """Why no stage follows the last one that is done, though the run has not ended."""
        try:
            rounds.walk(self.config, _finished_manifest)
        except PCOError as error:
            return str(error)
        except _NotDone:
            pass
        return "nothing follows"

    def _is_done(self, point: Point) -> bool:
        return store.read_manifest(Stage(point[1], point[0], self.config).folder) is not None

    @property
    def _next(self) -> Point:
        """The first stage that is not done."""
        reached, _ = self._walked
        return list(reached)[-1] if reached else (0, "prepare")

    def _stage(self, point: Point) -> StageState:
        number, name = point
        try:
            manifest = store.read_manifest(Stage(name, number, self.config).folder)
            state, note = self._unfinished(point) if manifest is None else self._finished(point, manifest)
            return StageState(number, name, state, note, manifest)
        except PCOError as error:
            return StageState(number, name, "damaged", str(error))

    def _finished(self, point: Point, manifest: store.Manifest) -> tuple[State, str]:
        stage = self._walked[0].get(point)
        if stage is None and point[1] in TESTS:
            return "done", "an earlier look at the test set"
        origin = store.origin(Stage(point[1], point[0], self.config).folder)
        if stage is None and origin is None:
            return "stale", "a stage before it is not done"
        changes = (
            stage.changes(manifest) if stage else []
        )  # what is shared is taken as it is, whatever is made before it
        if changes:
            return "stale", "; ".join(changes)
        notes = [f"from {origin}"] if origin else []
        if point[1] == "decide":
            decision = Decision.of(manifest)
            notes.append("promoted" if decision.promoted else decision.reason)
        return "done", "; ".join(notes)

    def _unfinished(self, point: Point) -> tuple[State, str]:
        """State and note. A failed stage that is running again has no error file any more."""
        stage = Stage(point[1], point[0], self.config)
        kept, begun = _kept(stage), stage.log_file.exists()
        failure = Failure.read(stage.error_file)
        if failure is not None:
            reason = failure.message.partition("\n")[0]
            if failure.kind == "AwaitsAnswer":
                return ("partial", "answered") if approvals.read(stage) else ("waiting", reason)
            return "failed", f"{reason} ({kept} kept)" if kept else reason
        if begun and point == self._next and self.is_held:
            return "running", "; ".join(filter(None, [kept, *map(str, at_work.read(stage))]))
        if kept:
            return "partial", kept
        return ("interrupted", "nothing kept") if begun else ("not started", "")


def _kept(stage: Stage) -> str:
    """What an unfinished stage has on disk."""
    if stage.spec.distributed:
        step, steps = checkpoints.progress(stage.folder)
        return f"step {step} of {steps}" if step else ""
    shards, count = store.committed(stage.folder)
    return f"{shards}/{count} shards" if shards else ""


def points(config: RunConfig) -> list[Point]:
    """Round and name of every stage that a run may have, in order; the test comes last."""
    all_points: list[Point] = []
    for number in range(config.rounds + 1):
        all_points += [(number, name) for name in rounds.stages_in(config, number)]
    for number in rounds.test_rounds(config):
        all_points += [(number, name) for name in TESTS]
    return all_points


def counted(manifest: store.Manifest) -> str:
    """The number of rows that came out, and of how many if some were dropped."""
    of = f" of {manifest.rows_in:,}" if manifest.rows_in != manifest.rows_out else ""
    return f"{manifest.rows_out:,}{of} {manifest.unit}"


@dataclass(frozen=True)
class RunLine:
    """One run among others."""

    name: str
    rounds: int
    decided: int
    state: str
    report: Path | None


def of_all(runs_dir: Path) -> list[RunLine]:
    """Every run under a folder, by name."""
    return [_run_line(path.parent) for path in sorted(runs_dir.resolve().glob(f"[!.]*/{OF_RUN}"))]


def _run_line(folder: Path) -> RunLine:
    try:
        if is_reward_training(folder):
            return _reward_training_line(folder)
        state = RunState(read_config(folder))
        report = report_path(state.config)
        line = (state.config.run, state.config.rounds, len(state.decisions), state.outcome)
        return RunLine(*line, report if report.exists() else None)
    except PCOError as error:  # the other runs are still shown
        return RunLine(folder.name, 0, 0, f"damaged: {error}", None)


def _reward_training_line(folder: Path) -> RunLine:
    report = folder / "report.html"
    if report.exists():
        return RunLine(folder.name, 0, 0, "reward training, finished", report)
    outcome = "running" if is_held(folder) else "unfinished"
    return RunLine(folder.name, 0, 0, f"reward training, {outcome}", None)
