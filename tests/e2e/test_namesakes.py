"""Whole runs in a folder with a `data.py`, a `tasks.py`, a `pco.py` and a `flows` of the user's.

`pco quickstart` in such a folder: test_wheel.py. What takes no engine: tests/test_pco_pipeline.py.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests import namesakes
from tests.e2e.conftest import ENVIRONMENT, asked
from tests.e2e.small import OVERRIDES
from tests.pco.reward_training.conftest import training_config

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


def _environment(folder: Path, **variables: str) -> dict[str, str]:
    return {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(folder / ".prefect"), **variables}


def test_a_reward_training_imports_none_of_them(tmp_path: Path, tiny: Path) -> None:
    folder = namesakes.write(tmp_path)
    config = training_config(folder, tiny, train__processes=2)
    (folder / "reward.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "pco_pipeline", "reward", "train", "reward.yaml"]
    done = subprocess.run(command, cwd=folder, env=_environment(folder), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (config.folder / "model/model.safetensors").exists()


def test_the_form_of_a_deployment_runs_there_and_imports_none_of_them(tmp_path: Path, roomy: Path, server: str) -> None:
    folder = namesakes.write(tmp_path)
    environment = _environment(folder, PREFECT_API_URL=server, PREFECT_WORKER_QUERY_SECONDS="1")
    deploy = [sys.executable, "-m", "pco_pipeline", "deploy", "--pool", "user"]
    subprocess.run(deploy, cwd=folder, env=environment, check=True)
    deployment = asked("GET", f"{server}/deployments/name/pco-rounds/rounds")
    parameters = {
        "run": "formed",
        "preset": "quickstart",
        "policy": {"model": str(roomy)},
        "extent": {"rounds": 1, "seed": 0},
        "overrides": "\n".join(OVERRIDES),
    }
    run = asked("POST", f"{server}/deployments/{deployment['id']}/create_flow_run", json={"parameters": parameters})
    log = folder / "worker.log"
    worker = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", "user"]
    with log.open("w") as output:
        process = subprocess.Popen(worker, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        while (state := asked("GET", f"{server}/flow_runs/{run['id']}")["state"])["type"] not in ENDED:
            assert process.poll() is None, log.read_text()
            time.sleep(0.5)
    finally:
        process.kill()  # asked politely it stays
        process.wait()
    assert state["type"] == "COMPLETED", (state["message"], log.read_text())
    assert (folder / "runs" / "formed" / "report.html").exists()
