"""One table says which metrics there are; what reads it, and what is written elsewhere, agrees with it."""

import re
import warnings
from importlib import import_module, reload
from pathlib import Path
from typing import get_type_hints

import pytest

from data import schemas
from pco.config.metrics import METRICS, TASK, metric
from pco.evaluation import intervals, metrics
from pco.evaluation.rows import TEXT, CandidateRow, EvaluationRow
from tests import builders

DOCS = Path(__file__).parents[3] / "docs" / "evaluation.md"
POLICIES = ("start", "previous", "reference")


def documented() -> list[str]:
    """The names in the first columns of the tables under `## Metrics`, `..._vs_...` once for each policy."""
    section = DOCS.read_text(encoding="utf-8").split("## Metrics")[1].split("\n## ")[0].split("Only in rows")[0]
    names: list[str] = []
    for line in section.splitlines():
        if line.startswith("| `"):
            names += re.findall(r"`([^`]+)`", line.split("|")[1])
    expanded: list[str] = []
    for name in names:
        expanded += [name.replace("...", policy) for policy in POLICIES] if name.endswith("...") else [name]
    return expanded


def test_the_docs_list_the_metrics_of_the_registry_and_no_others() -> None:
    names = documented()
    assert len(names) == len(set(names))
    assert set(names) == {about.key for about in METRICS} | {f"{TASK}NAME"}


def test_each_metric_has_one_entry_with_a_label_and_a_meaning() -> None:
    assert len({about.key for about in METRICS}) == len({about.label for about in METRICS}) == len(METRICS)
    assert all(about.meaning for about in METRICS)
    assert all(metric(about.key) is about for about in METRICS)


def test_a_task_of_lm_eval_is_a_metric_and_any_other_unknown_name_is_none() -> None:
    task = metric("task_arc_easy")
    assert task is not None and (task.label, task.direction, task.paired) == ("Task arc_easy", 1, True)
    assert metric("lenght") is None


def test_everything_that_a_summary_says_is_a_metric() -> None:
    modes = (("greedy", 0), ("sampled", 0), ("sampled", 1))
    candidates = [builders.candidate_row(str(i), sample, mode=mode) for i in range(3) for mode, sample in modes]
    rows = metrics.completion_rows(
        candidates,
        [0.0, 1.0, 2.0] * 3,
        second_rewards=[1.0, 2.0, 3.0] * 3,
        references={row["prompt_id"]: "1 2" for row in candidates},
    )
    texts = metrics.text_rows(["text"], [(-3.0, 2)])
    for policy in POLICIES:
        rows += metrics.rows_against(policy, rows, rows)
    rows += [*texts, *metrics.drift_rows(texts, texts), *metrics.corpus_rows(candidates)]
    rows.append(metrics.kl_row(candidates[1], -2.0))
    summary = metrics.summarise(metrics.with_best_of_n(rows))
    known = {about.key for about in METRICS}
    in_rows_only = {f"length_vs_{policy}" for policy in POLICIES}
    assert {name.partition("/")[0] for name in summary} == known | in_rows_only


def test_what_the_registry_calls_paired_has_rows_of_prompts_or_texts() -> None:
    candidates = [builders.candidate_row("a", mode="sampled")]
    rows = [*metrics.completion_rows(candidates, [0.0]), *metrics.corpus_rows(candidates)]
    for row in rows:
        about = metric(row["measure"])
        assert about is not None and about.paired == (row["prompt_id"] is not None)


@pytest.mark.parametrize(("row_type", "table"), [(EvaluationRow, "evaluations"), (CandidateRow, "candidates")])
def test_the_row_types_have_the_columns_of_their_tables(row_type: type, table: str) -> None:
    assert list(get_type_hints(row_type)) == schemas.SCHEMAS[table].names


def test_rows_are_named_by_the_modes_of_the_table() -> None:
    assert {row["mode"] for row in metrics.text_rows(["text"], [(-3.0, 2)])} == {TEXT}


def test_the_old_name_of_the_intervals_still_works_and_warns() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        old = reload(import_module("pco.statistics"))
    assert any("pco.evaluation.intervals" in str(one.message) for one in caught)
    assert {one.category for one in caught} == {DeprecationWarning}
    assert all(getattr(old, name) is getattr(intervals, name) for name in old.__all__)
    assert "paired_interval" in old.__all__
