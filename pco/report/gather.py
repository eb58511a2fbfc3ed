"""Read a run's manifests and tables into the numbers of a report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data import store
from data.errors import BadInput, CorruptArtifact
from data.rows import DecisionRow, PromptRow
from data.store import Manifest
from pco import rounds
from pco.config.run import RunConfig
from pco.evaluation import metrics
from pco.evaluation.gate import RuleResult
from pco.evaluation.rows import EvaluationRow
from pco.report import intervals, samples, timings
from pco.report.numbers import (
    FinalTest,
    Funnel,
    GateReport,
    HeldoutChanges,
    Outcome,
    RoundReport,
    RunReport,
    StageReport,
    Status,
)
from pco.report.samples import Prompts
from pco.runs import final_test, traces
from pco.runs.status import RunState, StageState
from pco.specs import StageName
from pco.stage import Stage

_SAMPLING: tuple[StageName, ...] = ("generate", "evaluate")
_CURVES = ("step", "loss", "margin", "gate")


def run_report(config: RunConfig) -> RunReport:
    """All that is known of a run, finished or not.

    Raises BadInput when the run's folder holds no finished stage, CorruptArtifact when a table is not what its
    manifest says: a report over damaged files would be believed.
    """
    stages = _stages(config)
    done = [stage.manifest for stage in stages if stage.manifest is not None]
    if not done and not config.folder.is_dir():
        raise BadInput(
            f"{config.folder}: nothing to report: no such folder. Check `run` and `runs_dir`, or start the run."
        )
    if not done:
        raise BadInput(
            f"{config.folder}: nothing to report: no stage of this run is finished yet. Resume the run, then ask again."
        )
    prompt_rows: list[PromptRow] = _rows(config, 0, "prepare", "prompts")
    prompts = {row["prompt_id"]: row for row in prompt_rows}
    reports = [_round(config, number, prompts) for number in range(config.rounds + 1)]
    return RunReport(
        config=config,
        outcome=_outcome(reports, stages),
        rounds=reports,
        stages=stages,
        train_prompts=sum(row["split"] == "train" for row in prompts.values()) if prompts else None,
        timings=timings.of(stages),
        changes=_changes(config, reports, prompts),
        test=final_test_of(config),
    )


def final_test_of(config: RunConfig) -> FinalTest | None:
    """What is known of the test; None for a run without test prompts."""
    if not config.prompts.has_test:
        return None
    promoted = RunState(config).promoted
    is_over = bool(promoted) and rounds.is_over(config, promoted)
    best = max((number for number, yes in enumerate(promoted, start=1) if yes), default=0)
    rows, number, looks = final_test.rows(config), final_test.tested_round(config), final_test.looks_at(config)
    note = ""
    if is_over and not best:
        note = "No test is needed: the best policy is the starting one"
    elif not is_over:
        note = "The test prompts are answered when the run has ended"
    elif number != best and looks and not rounds.test_rounds(config):
        note = f"A test of the best policy would be another look at the test set: `pco test {config.run} --again`"
    elif number != best:
        note = f"The test is not finished yet: `pco test {config.run}`"
    return FinalTest(rows, number, bool(rows) and number == best, looks, note)


def _outcome(rounds: Sequence[RoundReport], stages: Sequence[StageReport]) -> Outcome:
    decisions = [report.decision for report in rounds if report.decision is not None]
    if decisions and not decisions[-1].promoted and not any(stage.status in {"begun", "not begun"} for stage in stages):
        return "refused"
    return "finished" if all(stage.status == "done" for stage in stages) else "unfinished"


def _stages(config: RunConfig) -> list[StageReport]:
    """Every stage that the config asks for, in order; after a refused round no more may follow."""
    state = RunState(config)
    is_over = bool(state.promoted) and rounds.is_over(config, state.promoted)
    return [_stage(config, stage, stopped=is_over and stage.round > len(state.promoted)) for stage in state.stages]


def _stage(config: RunConfig, stage: StageState, *, stopped: bool) -> StageReport:
    if stage.state == "damaged":
        raise CorruptArtifact(stage.note)
    if stage.manifest is not None:
        return StageReport(stage.round, stage.stage, "done", stage.manifest)
    if stopped:
        return StageReport(stage.round, stage.stage, "not run", None)
    status: Status = "not begun" if stage.state == "not started" else "begun"
    folder = _folder(config, stage.round, stage.stage)
    committed = store.read_parts(folder, "candidates").num_rows if stage.stage in _SAMPLING else 0
    return StageReport(stage.round, stage.stage, status, None, committed)


def _folder(config: RunConfig, number: int, name: StageName) -> Path:
    return Stage(name, number, config, {}).folder


def _manifest(config: RunConfig, number: int, name: StageName) -> Manifest | None:
    return store.read_manifest(_folder(config, number, name))


def _rows(config: RunConfig, number: int, name: StageName, table: str) -> list[Any]:
    """A finished stage's rows; none if it is not finished."""
    if _manifest(config, number, name) is None:
        return []
    rows: list[Any] = store.read_table(_folder(config, number, name), table).to_pylist()
    return rows


def _evaluation(config: RunConfig, number: int) -> list[EvaluationRow]:
    finished = _manifest(config, number, "evaluate") is not None
    return metrics.read(_folder(config, number, "evaluate")) if finished else []


def _round(config: RunConfig, number: int, prompts: Prompts) -> RoundReport:
    rows = _evaluation(config, number)
    summary = metrics.summarise(rows) if rows else None
    if number == 0:
        return RoundReport(number, summary)
    start = _evaluation(config, 0) if rows else []
    paired = _manifest(config, number, "pair") is not None
    log = _rows(config, number, "train", "train_log")
    return RoundReport(
        number,
        summary,
        intervals.against_start(rows, start),
        _decision(config, number),
        _funnel(config, number),
        samples.statistics(_folder(config, number, "pair"), prompts) if paired else None,
        [{column: row[column] for column in _CURVES} for row in log],
    )


def _decision(config: RunConfig, number: int) -> GateReport | None:
    rows: list[DecisionRow] = _rows(config, number, "decide", "decisions")
    results = [
        RuleResult(row["rule"], row["value"], row["bound"], row["passed"], row["reason"], doubt=row["doubt"])
        for row in rows
    ]
    return GateReport(rows[0]["promoted"], results) if rows else None


def _funnel(config: RunConfig, number: int) -> Funnel | None:
    manifests = [_manifest(config, number, name) for name in ("generate", "score", "pair", "train")]
    done = [manifest for manifest in manifests if manifest is not None]
    if not done:
        return None
    dropped: dict[tuple[str, str, str], int] = {}
    for manifest in done:
        counts = {reason: count for reason, count in manifest.dropped.items() if count}
        dropped |= {(manifest.stage, manifest.unit, reason): count for reason, count in counts.items()}
    generated, scored, paired, trained = manifests
    return Funnel(
        candidates=generated.rows_out if generated else None,
        scored=scored.rows_out if scored else None,
        prompts=paired.rows_in if paired else None,
        pairs=paired.rows_out if paired else None,
        trained=trained.rows_out if trained else None,
        dropped=dropped,
    )


def _changes(config: RunConfig, rounds: Sequence[RoundReport], prompts: Prompts) -> HeldoutChanges | None:
    """From the start to the policy promoted last, or else to the one evaluated last."""
    evaluated = [report.number for report in rounds if report.summary is not None]
    if len(evaluated) < 2 or evaluated[0] != 0:
        return None
    promoted = [report.number for report in rounds if report.decision is not None and report.decision.promoted]
    shown = [*evaluated, *promoted][-1]
    before, after = (_folder(config, number, "evaluate") for number in (0, shown))
    return samples.changes(shown, before, after, prompts, traces.finished(config, shown))
