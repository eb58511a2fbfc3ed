"""The stack of docker-compose.yml on a real engine: used, killed, restarted, taken down and up again.

The tests are one story in this order; `make test-compose` tells it.
"""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from data import store
from pco.runs.folder import read_config
from pco.runs.status import RunState
from tests import builders, tiny_model
from tests.compose.stack import ROOT, RUNS, Stack
from tests.points import SITE

pytestmark = [pytest.mark.compose, pytest.mark.timeout(6000)]

RUN = "survivor"
CONFIG = {
    "run": RUN,
    "rounds": 2,
    "runs_dir": RUNS,
    "policy": {"model": "/data/tiny", "prompt_format": "raw"},
    "prompts": {name: f"/data/{name}.jsonl" for name in ("train", "heldout", "heldout_text")},
    "generate": {"n": 4, "temperature": 1.0, "max_tokens": 24, "shard_size": 2},
    "engine": {"kv_cache_gib": 0.1, "dtype": "float32"},
    "train": {"learning_rate": 1e-3, "precision": "fp32", "micro_batch_pairs": 4},
    "gate": {
        "require": {"reward": {"min_change": -1.0, "confidence": None}},
        "guards": {"perplexity": {"max_ratio": 10.0}, "length": None, "repetition": None},
    },
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("not tested: no Docker engine answers `docker info`")
    folder = tmp_path_factory.mktemp("compose")
    subprocess.run([ROOT / "docker/init-env.sh", folder / "env"], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Stack(folder / "env", _data(folder / "data"), _points(folder / "points"), port)
    made.call("down", "--volumes", "--remove-orphans")  # of a test that was killed
    made.call("build", timeout_s=1800)
    made.up()
    yield made
    made.call("down", "--volumes")


def _data(folder: Path) -> Path:
    """What a user would put there: a config, prompts, and here a model; for the container's user to read."""
    tiny_model.make(folder / "tiny")
    pairs = zip(tiny_model.sentences(80, 1), tiny_model.sentences(80, 2), strict=True)
    prompts = list(dict.fromkeys(map(" ".join, pairs)))
    prose = [tiny_model.repetitive_text(7), tiny_model.repetitive_text(8)]
    builders.write_prompts(folder, prompts[:24], prompts[24:28], prose)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def _points(folder: Path) -> Path:
    """For the container's user to write into."""
    shutil.copytree(SITE, folder / "site", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "plans").mkdir()
    for path in (folder, folder / "plans"):
        path.chmod(0o777)
    return folder


def test_it_is_there_on_loopback_alone_for_users_without_privileges(stack: Stack) -> None:
    settings = stack.ask("/ui-settings")
    assert settings["api_url"] == f"{stack.url}/api"
    assert settings["available_uis"], "the server could not write its pages"
    secret = next(line for line in stack.env_file.read_text().splitlines() if "PASSWORD" in line).partition("=")[2]
    for container in stack.containers():
        published = [one for ports in container["NetworkSettings"]["Ports"].values() for one in ports or []]
        assert {one["HostIp"] for one in published} <= {"127.0.0.1"}
        assert container["HostConfig"]["Memory"] > 0
        assert container["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert container["State"]["Health"]["Status"] == "healthy"
        history = ["docker", "history", "--no-trunc", container["Image"]]
        assert secret not in subprocess.run(history, check=True, capture_output=True, text=True).stdout
    for service in ("server", "worker"):
        told = stack.inside("sh", "-c", "id --user; grep CapEff /proc/self/status", service=service).split()
        assert told == ["1000", "CapEff:", "0000000000000000"]


def test_the_quickstart_is_ready_without_a_network(stack: Stack) -> None:
    assert "Checked: " in stack.inside("pco", "run", "configs/quickstart.yaml", "--dry-run")


def test_a_run_survives_the_death_of_each_service_and_a_restart_of_all(stack: Stack, tmp_path: Path) -> None:
    hold = stack.points.hold
    generates = hold(f"{RUN}/round-01/candidates/candidates-00002.parquet")
    flow_run = stack.start_run(CONFIG)
    stack.reaches(generates)
    finished = stack.finished(RUN)
    stack.kill("worker")

    pairs = hold(f"{RUN}/round-01/pairs/pairs-00000.parquet")
    generates.release()
    stack.reaches(pairs)
    finished |= stack.finished(RUN)
    stack.inside("sh", "-c", f"kill -9 $(grep -o '\"pid\": [0-9]*' {RUNS}/{RUN}/.lock | cut -d ' ' -f 2)")

    trains = hold(f"{RUN}/round-01/.policy.tmp")
    pairs.release()
    stack.reaches(trains)
    finished |= stack.finished(RUN)
    stack.kill("server")

    evaluates = hold(f"{RUN}/round-01/evaluation/evaluations-00000.parquet")
    trains.release()
    stack.reaches(evaluates)
    finished |= stack.finished(RUN)
    stack.kill("postgres")

    generates = hold(f"{RUN}/round-02/candidates/candidates-00002.parquet")
    evaluates.release()
    stack.reaches(generates)
    finished |= stack.finished(RUN)
    stack.call("restart")
    generates.release()

    row = stack.becomes(flow_run, "Completed")
    assert row["run_count"] == 4, "after the deaths of the worker and of the run's process, and after the restart"
    after = stack.finished(RUN)
    assert {path: after.get(path) for path in finished} == finished
    _is_whole(stack, tmp_path)


def _is_whole(stack: Stack, folder: Path) -> None:
    """All stages are done, and the tables are readable outside, as their manifests say."""
    stack.call("cp", f"worker:{RUNS}/{RUN}", str(folder))
    config = read_config(folder / RUN)
    assert {line.state for line in RunState(config).stages} == {"done"}
    for number in (1, 2):
        rows: dict[str, Any] = {
            name: store.read_table(folder / RUN / f"round-0{number}" / name, name).num_rows
            for name in ("candidates", "scores")
        }
        assert rows == {"candidates": 4 * 24, "scores": 4 * 24}
    assert (folder / RUN / "report.html").exists()


def test_after_down_and_up_runs_and_history_are_there_and_one_variable_asks_for_a_password(stack: Stack) -> None:
    finished = stack.finished(RUN)
    stack.call("down")
    stack.auth = ("admin", "not a word for the world")
    stack.up()
    (row,) = stack.runs()
    assert (row["parameters"]["config"]["run"], row["state_name"]) == (RUN, "Completed")
    assert stack.finished(RUN) == finished
    stranger = httpx.get(f"{stack.url}/api/admin/version")
    assert stranger.status_code == 401


def test_one_command_makes_a_run_that_the_server_shows(stack: Stack) -> None:
    made = stack.call("run", "--rm", "pco", "run", "/data/config.yaml", "--set", "run=single", "--set", "rounds=1")
    assert "round 1 " in made
    assert f"Report: {RUNS}/single/report.html" in made
    states = {row["parameters"]["config"]["run"]: row["state_name"] for row in stack.runs()}
    assert states == {RUN: "Completed", "single": "Completed"}
    assert "Nothing is left to do." in stack.inside("pco", "status", "single")
