"""A real run that is followed by trackers, one of which is gone: `make test-trackers`."""

from collections.abc import Callable

import pytest

from pco.runs.status import RunState
from tests.e2e.conftest import Case

pytestmark = [pytest.mark.trackers, pytest.mark.timeout(6000)]

NOWHERE = "http://127.0.0.1:9"  # nothing listens there


def test_a_run_tells_its_trackers_and_a_server_that_is_gone_costs_one_warning(make_case: Callable[..., Case]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    case = make_case(run="followed", rounds=1, track=["mlflow", "tensorboard"])
    case = case.under(MLFLOW_TRACKING_URI=NOWHERE, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    status, output = case.run()
    assert status == 0, output
    assert RunState(case.config).is_finished
    assert output.count("mlflow: could not be told") == 1, output
    assert "`pco track followed` tells it what is missing" in output
    read = EventAccumulator(str(case.folder / "tensorboard"))
    read.Reload()
    assert [event.step for event in read.Tensors("eval/reward")] == [0, 1]
    assert [event.step for event in read.Tensors("gate/promoted")] == [1]
    assert "tensorboard: knows all of it" in case.tell("track", str(case.folder), "--to", "tensorboard")
