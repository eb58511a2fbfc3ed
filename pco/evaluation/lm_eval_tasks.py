"""Tasks of lm-eval, the Language Model Evaluation Harness, as a regression suite: an evaluation's rows by document."""

import difflib
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from data.errors import BadInput
from pco.config.gate import TASK
from pco.evaluation.metrics import Row
from pco.models.sampling import GREEDY

_BATCH = 8  # texts at a time


def measure(task: str) -> str:
    """The name under which a task is measured."""
    return f"{TASK}{task}"


def check(tasks: list[str]) -> None:
    """Refuse tasks where lm-eval is not installed; which tasks it has takes it seconds to tell. Raises BadInput."""
    if tasks and find_spec("lm_eval") is None:
        raise BadInput("evaluate.tasks: needs lm-eval, which is not installed: `pip install 'pco-pipeline[tasks]'`.")


def check_names(tasks: list[str]) -> None:
    """Refuse tasks that lm-eval does not know. Raises BadInput."""
    check(tasks)
    for task in tasks:
        if task not in (known := manager().all_tasks):
            near = difflib.get_close_matches(task, known, n=3)
            raise BadInput(f"evaluate.tasks: lm-eval knows no task `{task}`. Near: {', '.join(near) or 'nothing'}.")


@cache
def manager() -> Any:
    """All tasks that lm-eval knows."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def model(folder: Path) -> Any:
    """A policy as lm-eval reads one: through transformers, which it has been proven with."""
    import torch
    from lm_eval.models.huggingface import HFLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return HFLM(pretrained=str(folder), dtype="auto", batch_size=_BATCH, device=device)


def rows(policy: Any, task: str, limit: int | None) -> list[Row]:
    """What the first metric of a task, or of each task of a group, says of its first `limit` documents.

    Raises BadInput for a task whose metric has no number for each document.
    """
    from lm_eval import simple_evaluate

    found = simple_evaluate(policy, tasks=[task], limit=limit, bootstrap_iters=0, task_manager=manager())
    return [_row(task, name, sample) for name, samples in found["samples"].items() for sample in _first(samples)]


def _first(samples: list[Row]) -> list[Row]:
    """Where a task reads the same answers in several ways, the first of them."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _row(task: str, name: str, sample: Row) -> Row:
    value = sample[sample["metrics"][0]]
    if not isinstance(value, int | float):
        raise BadInput(
            f"evaluate.tasks: `{name}` has no number for each document ({sample['metrics'][0]}), so nothing could be "
            "paired. Choose a task that is scored document by document."
        )
    where = {"mode": GREEDY, "prompt_id": f"{name}/{sample['doc_id']}", "sample": 0}
    return {"measure": measure(task), **where, "value": float(value)}
