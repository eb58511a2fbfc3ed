"""Tasks of lm-eval in an evaluation, with the real lm-eval on the tiny model: `make test-tasks`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import BadInput
from pco.config.gate import Gate
from pco.evaluation import lm_eval_tasks, metrics
from pco.evaluation.gate import apply_rules
from pco.evaluation.rows import EvaluationRow
from pco.stage import Artifact, Stage
from pco.stages import evaluate
from tests import builders
from tests.fake_sampler import FakeSampler

pytestmark = pytest.mark.tasks

DOCUMENTS = 5
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{target}"
metric_list:
  - {{metric: {metric}, higher_is_better: true}}
"""


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks whose data is at hand: `first`, `second`, and `prose`, whose metric is of all documents together."""
    from lm_eval.tasks import TaskManager

    data = tmp_path / "data.jsonl"
    rows = [{"question": f"the {i}", "choices": ["cat", "dog"], "gold": i % 2} for i in range(DOCUMENTS)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, kind, target, metric in (
        ("first", "multiple_choice", "{{gold}}", "acc"),
        ("second", "multiple_choice", "{{gold}}", "acc"),
        ("prose", "loglikelihood_rolling", "{{question}}", "word_perplexity"),
    ):
        text = TASK.format(name=name, data=data, kind=kind, target=target, metric=metric)
        (tmp_path / f"{name}.yaml").write_text(text)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    monkeypatch.setattr(lm_eval_tasks, "manager", lambda: manager)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def evaluated(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, own_tasks: None) -> Callable[..., Stage]:
    monkeypatch.setattr(evaluate, "Sampler", lambda *_: FakeSampler(2))

    def run(**settings: Any) -> Stage:
        rows = [builders.prompt_row("a", "heldout"), builders.prompt_row("b", "text")]
        prompts: Artifact = builders.finished(tmp_path / "prompts", {"prompts": rows})
        config = builders.config(tmp_path, tiny, **settings)
        stage = builders.stage("evaluate", config, {"policy": builders.model(tiny), "prompts": prompts})
        evaluate.run(stage)
        return stage

    return run


def test_each_document_of_a_task_is_a_row_that_the_gate_can_hold_a_round_to(evaluated: Callable[..., Stage]) -> None:
    stage = evaluated(evaluate__tasks=["first"])
    rows = metrics.read(stage.folder)
    of_task = [row for row in rows if row["measure"] == "task_first"]
    assert [row["prompt_id"] for row in of_task] == [f"first/{i}" for i in range(DOCUMENTS)]
    assert {row["value"] for row in of_task} <= {0.0, 1.0}
    assert metrics.summarise(rows)["task_first"] == sum(row["value"] for row in of_task) / DOCUMENTS
    worse = [{**row, "value": row["value"] - 0.5} if row in of_task else row for row in rows]
    guard = {"task_first": {"min_change": -0.1, "confidence": 0.95}}
    gate = Gate.model_validate({"require": {"reward": None}, "guards": {**dict.fromkeys(Gate().guards), **guard}})
    for now, passes in ((rows, True), (worse, False)):
        (result,) = apply_rules(now, {"start": rows, "previous": rows}, gate)
        assert result.passed == passes, result


def test_no_more_documents_are_read_than_the_limit_says(evaluated: Callable[..., Stage]) -> None:
    rows = metrics.read(evaluated(evaluate__tasks=["first"], evaluate__task_limit=2).folder)
    assert sum(row["measure"] == "task_first" for row in rows) == 2


def test_a_killed_evaluation_goes_on_with_the_task_it_was_at(
    evaluated: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = evaluated(evaluate__tasks=["first", "second"])
    whole = metrics.read(stage.folder)
    (stage.folder / "manifest.json").unlink()
    (stage.folder / "evaluations-00002.parquet").unlink()
    made, real = [], lm_eval_tasks.rows

    def watched(policy: Any, task: str, limit: int | None) -> list[EvaluationRow]:
        made.append(task)
        return real(policy, task, limit)

    monkeypatch.setattr(lm_eval_tasks, "rows", watched)
    evaluate.run(stage)
    assert made == ["second"]
    assert metrics.read(stage.folder) == whole


def test_a_task_that_is_not_known_is_refused_before_anything_is_sampled(
    evaluated: Callable[..., Stage], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="knows no task `frist`"):
        evaluated(evaluate__tasks=["frist"])
    assert not list(tmp_path.rglob("candidates-*.parquet"))


@pytest.mark.parametrize(
    ("task", "message"), [("frist", "knows no task `frist`. Near: first"), ("prose", "no number for each document")]
)
def test_a_task_that_cannot_be_paired_is_refused_by_name(
    evaluated: Callable[..., Stage], task: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        evaluated(evaluate__tasks=[task])
