"""The real trackers, each on a finished run, read back by their own means: `make test-trackers`."""

import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from data.errors import PCOError
from pco import tracking
from pco.config.file import OF_RUN
from pco.config.run import RunConfig
from pco.config.trackers import Tracker
from pco.runs.folder import read_config
from pco.tracking import facts
from pco.tracking.facts import Part
from tests import made_before
from tests.points import PATIENCE_S, until

BLOCK, FULL, LAST = 32 * 1024, 1, 4  # of LevelDB's log

pytestmark = [pytest.mark.trackers, pytest.mark.timeout(PATIENCE_S)]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A finished run of two rounds with a report."""
    made = read_config(made_before.runs(tmp_path) / "finished")
    (made.folder / "report.html").write_text("<p>a report</p>")
    return made


@pytest.fixture
def parts(config: RunConfig) -> dict[str, Part]:
    return {part.key: part for part in facts.parts(config)}


def losses(part: Part) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in part.steps if point.name == "train/loss"]


def over_rounds(parts: dict[str, Part], name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for part in parts.values() for point in part.values if point.name == name]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """An MLflow server on SQLite that may go and come back."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self._port), "--workers", "1"]
        store = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--serve-artifacts"]
        places = ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *store, *places], cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        until(self._answers, "MLflow's server", every_s=0.5)

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self._folder / "mlflow.log").read_text()
        try:
            return httpx.get(f"{self.url}/health").is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "mlflow").mkdir()
    made = Server(tmp_path / "mlflow")
    made.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.url)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "trials")
    yield made
    made.stop()


def test_mlflow_has_a_run_with_a_nested_run_for_each_round(
    config: RunConfig, parts: dict[str, Part], server: Server
) -> None:
    from mlflow import MlflowClient

    assert tracking.sync(config, "mlflow") == len(parts)
    client = MlflowClient(server.url)
    experiment = client.get_experiment_by_name("trials")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"finished", *(f"finished round-{number:02}" for number in range(3))}
    whole, second = runs["finished"], runs["finished round-02"]
    assert second.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert {run.info.status for run in (whole, second)} == {"FINISHED"}
    assert whole.data.params["train.loss.kind"] == config.train.loss.kind

    def history(run: Any, name: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]

    assert history(second, "train/loss") == losses(parts["round-02/train"])
    assert history(whole, "eval/reward_greedy") == over_rounds(parts, "eval/reward_greedy")
    names = {file.path for file in client.list_artifacts(second.info.run_id, "pair")}
    assert "pair/pairs-00000.parquet" in names
    assert [file.path for file in client.list_artifacts(whole.info.run_id, "report")] == ["report/report.html"]
    assert tracking.sync(config, "mlflow") == 0
    assert len(client.search_runs([experiment.experiment_id])) == 4


def test_a_server_that_is_gone_costs_an_error_and_is_told_all_once_it_is_back(
    config: RunConfig, parts: dict[str, Part], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.stop()
    with pytest.raises(PCOError, match=r"mlflow: could not be told: .*`pco track finished`"):
        tracking.sync(config, "mlflow")
    server.start()
    assert tracking.sync(config, "mlflow") == len(parts)
    client = MlflowClient(server.url)
    found = client.search_runs([client.get_experiment_by_name("trials").experiment_id])
    assert len(found) == 4


def test_tensorboard_reads_the_event_files_back(config: RunConfig, parts: dict[str, Part]) -> None:
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    tracking.sync(config, "tensorboard")
    read = EventMultiplexer()
    read.AddRunsFromDirectory(str(config.folder / "tensorboard"))
    read.Reload()
    assert set(read.Runs()) == {".", "round-01", "round-02"}

    def history(run: str, name: str) -> list[tuple[int, float]]:
        return [(event.step, float(event.tensor_proto.float_val[0])) for event in read.Tensors(run, name)]

    expected = losses(parts["round-01/train"])
    assert history("round-01", "train/loss") == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    expected = over_rounds(parts, "eval/perplexity")
    assert history(".", "eval/perplexity") == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]


def test_weights_and_biases_offline_keeps_a_group_of_runs(
    config: RunConfig, parts: dict[str, Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking.sync(config, "wandb")
    runs = {}
    for path in config.folder.glob("tracking/wandb/offline-run-*/*.wandb"):
        records = wandb_records(path)
        (begun,) = [record.run for record in records if record.HasField("run")][:1]
        rows = [
            {item.key or "/".join(item.nested_key): yaml.safe_load(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        runs[begun.display_name] = (begun.run_group, rows)
    assert set(runs) == {"finished", *(f"finished round-{number:02}" for number in range(3))}
    assert {group for group, _ in runs.values()} == {"finished"}
    rows = runs["finished round-02"][1]
    found = [(row["train/step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert found == losses(parts["round-02/train"])
    whole = runs["finished"][1]
    found = [(row["round"], row["eval/perplexity"]) for row in whole if "eval/perplexity" in row]
    assert found == over_rounds(parts, "eval/perplexity")


def wandb_records(path: Path) -> list[Any]:
    """Of an offline run: protocol buffers in LevelDB's log format, behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, records, message = path.read_bytes(), 7, [], b""
    while at < len(content):
        if BLOCK - at % BLOCK < 7:  # no header fits: the rest of the block is empty
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)  # behind the checksum
        message += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in {FULL, LAST}:
            record = Record()
            record.ParseFromString(message)
            records.append(record)
            message = b""
    return records


def test_trackio_keeps_the_runs_in_its_database(config: RunConfig, parts: dict[str, Part], tmp_path: Path) -> None:
    # In a process of its own: trackio reads TRACKIO_DIR when it is imported.
    _sync_in_a_process(config, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    (database,) = (tmp_path / "trackio").rglob("pco.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by id").fetchall()
    found = [(step, yaml.safe_load(metrics)) for name, step, metrics in rows if name.endswith("round-02")]
    assert [(step, row["train/loss"]) for step, row in found] == losses(parts["round-02/train"])


def _sync_in_a_process(config: RunConfig, tracker: Tracker, **environment: str) -> str:
    path = config.folder / OF_RUN
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "track": [tracker]}))
    command = [sys.executable, "-m", "pco.tracking.main", str(config.folder)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, text=True, check=False, stdout=subprocess.PIPE, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
