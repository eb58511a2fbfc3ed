"""The tables of a study, from the tables of its runs: what each measured, and what it cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data import files, schemas, store
from data.rows import StudyResultRow, StudyRunRow
from pco.config.metrics import metric
from pco.config.run import RunConfig
from pco.config.study import Study
from pco.evaluation import metrics
from pco.evaluation.differences import drifts_by_text, means_by_prompt
from pco.evaluation.rows import EvaluationRow, Summary
from pco.rounds import decisions, stages_in
from pco.runs.study import RunLine, lines
from pco.stage import Stage

RESULTS, RUNS = "results.parquet", "runs.parquet"


@dataclass(frozen=True)
class RoundCost:
    """What one round of a run took; of the start it is what all rounds need: the prompts and the first evaluation."""

    tokens_sampled: int = 0
    tokens_trained: int = 0
    seconds: float = 0.0
    judge_requests: int | None = None

    def __add__(self, other: "RoundCost") -> "RoundCost":
        asked = [cost.judge_requests for cost in (self, other) if cost.judge_requests is not None]
        return RoundCost(
            self.tokens_sampled + other.tokens_sampled,
            self.tokens_trained + other.tokens_trained,
            self.seconds + other.seconds,
            sum(asked) if asked else None,
        )


@dataclass(frozen=True)
class Evaluated:
    """An evaluated policy of one run of a study; round 0 is the starting policy. Read from disk when asked for."""

    config: RunConfig
    variant: str
    seed: int
    round: int
    promoted: bool | None
    kept: bool

    @property
    def folder(self) -> Path:
        """That of its evaluation."""
        return Stage("evaluate", self.round, self.config).folder

    @cached_property
    def _rows(self) -> list[EvaluationRow]:
        return metrics.read(self.folder)

    @cached_property
    def summary(self) -> Summary:
        """Its metrics, without those of a single mode."""
        summary = metrics.summarise(self._rows)
        return {name: value for name, value in summary.items() if metric(name) is not None}

    @cached_property
    def means(self) -> dict[str, dict[str, float]]:
        """By metric, the mean of each prompt or human text by its id; greedy and sampled completions weigh alike."""
        names = dict.fromkeys(row["measure"] for row in self._rows)
        means = {name: means_by_prompt(self._rows, name) for name in names if metric(name) is not None}
        means["drift"] = drifts_by_text(self._rows)
        return {name: of_metric for name, of_metric in means.items() if of_metric}

    @cached_property
    def texts(self) -> list[str]:
        """The ids of the human texts that it has read."""
        return [str(row["prompt_id"]) for row in self._rows if row["measure"] == "text_logprob"]

    @cached_property
    def cost(self) -> RoundCost:
        """What its round took."""
        total = RoundCost()
        for name in stages_in(self.config, self.round) if self.round else ["prepare", "evaluate"]:
            total += _cost(Stage(name, self.round, self.config))  # type: ignore[arg-type]
        return total


def _cost(stage: Stage) -> RoundCost:
    manifest = store.read_manifest(stage.folder)
    if manifest is None:
        return RoundCost()
    sampled = trained = 0
    if stage.name == "generate":
        lengths = pc.list_value_length(store.read_table(stage.folder, "candidates").column("token_ids"))
        sampled = int(pc.sum(lengths).as_py() or 0)
    if stage.name == "train":
        trained = int(pc.sum(store.read_table(stage.folder, "train_log").column("tokens")).as_py() or 0)
    asked = manifest.metrics.get("judge_requests")
    return RoundCost(sampled, trained, manifest.seconds, None if asked is None else int(asked))


def evaluated(study: Study) -> list[Evaluated]:
    """The evaluated policies of all runs, in the order of variants, seeds and rounds."""
    return [policy for variant in study.variants for seed in study.seeds for policy in _of_run(study, variant, seed)]


def _of_run(study: Study, variant: str, seed: int) -> Iterator[Evaluated]:
    config = study.config(variant, seed)
    promoted = {number: decision.promoted for number, decision in decisions(config).items()}
    kept = max((number for number, yes in promoted.items() if yes), default=0)
    for number in range(config.rounds + 1):
        policy = Evaluated(config, variant, seed, number, promoted.get(number), number == kept)
        if store.read_manifest(policy.folder) is not None:
            yield policy


def results(study: Study) -> pa.Table:
    """The table `study_results`, of what is finished.

    Raises CorruptArtifact when a table of a run is not what its manifest says.
    """
    rows = [row for policy in evaluated(study) for row in _result_rows(study, policy)]
    return schemas.build("study_results", cast(list[dict[str, object]], rows))


def _result_rows(study: Study, policy: Evaluated) -> Iterator[StudyResultRow]:
    cost = policy.cost
    for name, value in sorted(policy.summary.items()):
        yield {
            "study": study.name,
            "variant": policy.variant,
            "seed": policy.seed,
            "run": policy.config.run,
            "round": policy.round,
            "measure": name,
            "value": value,
            "promoted": policy.promoted,
            "kept": policy.kept,
            "tokens_sampled": cost.tokens_sampled,
            "tokens_trained": cost.tokens_trained,
            "seconds": cost.seconds,
            "judge_requests": cost.judge_requests,
        }


def runs(study: Study) -> pa.Table:
    """The table `study_runs`."""
    rows = [_run_row(study, line) for line in lines(study)]
    return schemas.build("study_runs", cast(list[dict[str, object]], rows))


def _run_row(study: Study, line: RunLine) -> StudyRunRow:
    return {
        "study": study.name,
        "variant": line.variant,
        "seed": line.seed,
        "run": line.run,
        "state": line.state,
        "note": line.note,
        "decided": line.decided,
        "kept": line.kept,
        "made": line.made,
        "shared": line.shared,
    }


def is_written(study: Study) -> bool:
    """Whether the tables on disk, which are written after the report, are of what the runs have finished by now."""
    try:
        written = [pq.read_table(study.folder / name) for name in (RUNS, RESULTS)]
    except (OSError, pa.ArrowInvalid):
        return False
    return bool(written[0].equals(runs(study)) and written[1].equals(results(study)))


def write(study: Study) -> None:
    """Write both tables into the study's folder, each whole or not at all; the report comes before them."""
    for name, table in ((RESULTS, results(study)), (RUNS, runs(study))):
        path = study.folder / name
        with files.write_errors(path), files.atomic_path(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
