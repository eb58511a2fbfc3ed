"""Tasks of lm-eval, the Language Model Evaluation Harness, as a regression suite: an evaluation's rows by document."""

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from data.errors import BadInput
from pco import installed
from pco.config.metrics import TASK
from pco.evaluation.rows import EvaluationRow
from pco.models.sampling import GREEDY

_BATCH = 8  # texts at a time


def check(tasks: list[str]) -> None:
    """Refuse tasks where lm-eval is not installed. Its list of tasks takes seconds to load. Raises BadInput."""
    if tasks and not installed.has("lm_eval"):
        raise BadInput("evaluate.tasks: needs lm-eval, which is not installed: `pip install 'pco-pipeline[tasks]'`.")


def check_names(tasks: list[str]) -> None:
    """Refuse tasks that lm-eval does not know. Raises BadInput."""
    check(tasks)
    if not tasks:
        return
    known = manager().all_tasks
    for task in tasks:
        if task not in known:
            near = difflib.get_close_matches(task, known, n=3)
            raise BadInput(f"evaluate.tasks: lm-eval knows no task `{task}`. Near: {', '.join(near) or 'nothing'}.")


@cache
def manager() -> Any:
    """All tasks that lm-eval knows."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def model(folder: Path) -> Any:
    """A policy as lm-eval reads it: through transformers, with which it is tested."""
    import torch
    from lm_eval.models.huggingface import HFLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return HFLM(pretrained=str(folder), dtype="auto", batch_size=_BATCH, device=device)


def rows(policy: Any, task: str, limit: int | None) -> list[EvaluationRow]:
    """What the first metric of a task, or of each task of a group, says of its first `limit` documents.

    Raises BadInput for a task whose metric has no number for each document.
    """
    from lm_eval import simple_evaluate

    results = simple_evaluate(policy, tasks=[task], limit=limit, bootstrap_iters=0, task_manager=manager())
    written: list[EvaluationRow] = []
    for name, samples in results["samples"].items():
        # Where a task reads the same answers in several ways, the first of them counts.
        first = [sample for sample in samples if sample["filter"] == samples[0]["filter"]]
        written += [_row(task, name, sample) for sample in first]
    return written


def _row(task: str, name: str, sample: Mapping[str, Any]) -> EvaluationRow:
    value = sample[sample["metrics"][0]]
    if not isinstance(value, int | float):
        raise BadInput(
            f"evaluate.tasks: `{name}` has no number for each document ({sample['metrics'][0]}), so nothing could be "
            "paired. Choose a task that is scored document by document."
        )
    return {
        "measure": f"{TASK}{task}",
        "mode": GREEDY,
        "prompt_id": f"{name}/{sample['doc_id']}",
        "sample": 0,
        "value": float(value),
    }
