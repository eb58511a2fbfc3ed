"""MLflow: a run with a nested run for each round, in the experiment of MLFLOW_EXPERIMENT_NAME (`pco` if not set).

MLFLOW_TRACKING_URI and the variables of its credentials say where.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from pco.tracking.facts import Part, Point, child
from pco.tracking.tracked import Tracked

_BATCH = 1000  # metrics in one request, MLflow's limit
_SETTINGS = 100  # settings in one request
_LONGEST = 6000  # characters of a setting


def send(run: Tracked, parts: list[Part], note: Callable[[Part], None]) -> None:
    """Tell MLflow; `note` is called after each part."""
    # A server that is gone should cost seconds, not minutes: what it misses it is told later.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    client = MlflowClient()
    for part in parts:
        ids = [_run_id(client, run, ""), _run_id(client, run, child(part.round))]
        for run_id in ids:
            _log(client, run_id, part.values)
        _log(client, ids[-1], part.steps)
        for path in part.files:
            client.log_artifact(ids[0 if part.stage == "report" else -1], str(path), part.stage)
        if part.stage == "decide":
            client.set_terminated(ids[-1])
        if part.stage == "report":
            client.set_terminated(ids[0])
        note(part)


def _run_id(client: Any, run: Tracked, name: str) -> str:
    """The id of the run, or of the round of that name; it is made when it is first asked for."""
    from mlflow.entities import Param

    if name not in run.children:
        nested = {"mlflow.parentRunId": run.children[""]} if name else {}
        tags = {**nested, "pco.run": run.name, "pco.folder": str(run.folder), "pco.id": run.id}
        made = client.create_run(_experiment(client), tags=tags, run_name=f"{run.name} {name}".strip())
        run.children[name] = made.info.run_id
        settings = [Param(key, str(value)[:_LONGEST]) for key, value in run.settings.items()]
        for start in range(0, 0 if name else len(settings), _SETTINGS):
            client.log_batch(made.info.run_id, params=settings[start : start + _SETTINGS])
    return run.children[name]


def _experiment(client: Any) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "pco")
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _log(client: Any, run_id: str, points: Sequence[Point]) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(point.name, point.value, int(1000 * point.time), point.step) for point in points]
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
