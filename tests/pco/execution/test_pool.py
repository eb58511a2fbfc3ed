"""Workers on one machine as they are: processes that score, and are killed."""

import importlib.util
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from data import files, schemas, store
from data.errors import BadInput, CorruptArtifact, StageFailed
from data.store import Manifest
from pco import hardware
from pco.execution import at_work, launcher, pool, shares
from pco.execution.driver import Driver
from pco.stage import Artifact, Stage
from pco.stages import score
from tests import builders
from tests.pco.execution.conftest import Clock, ends
from tests.points import Points, until

SHARDS = 5


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder, fingerprint = tmp_path_factory.mktemp("made") / "candidates", "f" * 16
    for shard in range(SHARDS):
        rows = [builders.candidate_row(f"p{shard}", sample, [1, 2, 3 + sample, 1, 2, 3]) for sample in range(3)]
        store.write_part(folder, "candidates", shard, schemas.build("candidates", rows), fingerprint, of=SHARDS)
    rows = 3 * SHARDS
    account: dict[str, Any] = {"unit": "rows", "rows_in": rows, "rows_out": rows, "dropped": {}, "started": 0.0}
    store.finish(folder, stage="generate", fingerprint=fingerprint, inputs={}, settings={}, **account)
    return Artifact(folder, fingerprint)


def scoring(folder: Path, candidates: Artifact, workers: int, **settings: Any) -> Stage:
    """A stage that scores by workers, ready to be launched."""
    executor = {"kind": "pool", "workers": workers}
    stage = builders.stage("score", builders.config(folder, executor=executor, **settings), {"candidates": candidates})
    files.write_text(stage.stage_file, stage.to_json())
    return stage


def run(stage: Stage) -> Manifest:
    """As the stage's process does, in this one."""
    workers = shares.shares(stage.config)
    with pool.Pool(stage, workers) as crew:
        return score.run(replace(stage, sharding=Driver(crew, len(workers))))


def parts(stage: Stage) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in stage.folder.glob("*") if path.name != store.MANIFEST}


@pytest.mark.process
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_write_the_bytes_of_one_process_though_one_is_killed_in_mid_shard(
    tmp_path: Path, candidates: Artifact, points: Points, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    local = builders.stage("score", builders.config(tmp_path / "local"), {"candidates": candidates})
    manifest = score.run(local)
    stage = scoring(tmp_path / "pool", candidates, workers)
    points.kill("scores/scores-00001.parquet", "self")  # all is written but for its name
    by_workers = run(stage)
    assert parts(stage) == parts(local)
    assert by_workers.parts == manifest.parts
    assert (by_workers.fingerprint, by_workers.rows_out) == (manifest.fingerprint, 3 * SHARDS)
    printed = capsys.readouterr().out
    assert "its process was killed by SIGKILL" in printed and "shard 1 of `scores`; starting it again" in printed
    assert len(list(stage.log_file.parent.glob("score.worker-*.log"))) == workers


@pytest.mark.process
def test_nothing_outlives_a_driver_that_is_killed(tmp_path: Path, candidates: Artifact, points: Points) -> None:
    stage = scoring(tmp_path, candidates, 2)
    holds = [points.hold(f"scores/scores-0000{shard}.parquet") for shard in (0, 1)]
    driver = subprocess.Popen([sys.executable, "-m", "pco.execution.worker_main", str(stage.stage_file)])
    workers = [hold.wait() for hold in holds]
    assert {psutil.Process(worker).ppid() for worker in workers} == {driver.pid}
    driver.kill()
    driver.wait()
    for worker in workers:
        ends(worker)
    for hold in holds:
        hold.release()
    assert not list(stage.folder.glob("*.parquet"))
    assert score.run(stage).rows_out == 3 * SHARDS, "one process may go on with what workers began"


@pytest.mark.process
def test_a_shard_that_kills_every_worker_fails_the_stage_after_three_of_them(
    tmp_path: Path, candidates: Artifact
) -> None:
    code = "import os, signal\ndef reward(candidates):\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
    (tmp_path / "deadly.py").write_text(code)
    reward = {"kind": "python", "function": "deadly:reward", "folder": str(tmp_path)}
    stage = scoring(tmp_path, candidates, 1, reward=reward)
    prompts = [builders.prompt_row(f"p{shard}") for shard in range(SHARDS)]
    prepared = builders.finished(tmp_path / "prompts", {"prompts": prompts}, "prepare")
    stage = replace(stage, inputs={**stage.inputs, "prompts": prepared})
    files.write_text(stage.stage_file, stage.to_json())
    with pytest.raises(StageFailed, match="shard 0 of `scores` ended its worker 3 times.* killed by SIGSEGV"):
        run(stage)
    assert store.read_manifest(stage.folder) is None


@pytest.mark.process
def test_an_error_of_a_worker_arrives_through_the_launcher_as_itself_and_is_not_tried_again(
    tmp_path: Path, candidates: Artifact
) -> None:
    stage = scoring(tmp_path, candidates, 1)
    damaged = tmp_path / "candidates"
    damaged.mkdir()
    for path in candidates.folder.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "candidates-00001.parquet").write_bytes(b"not Parquet")
    stage = replace(stage, inputs={"candidates": Artifact(damaged, candidates.fingerprint)})
    lines: list[str] = []
    with pytest.raises(CorruptArtifact, match=r"candidates-00001\.parquet: its content is not what"):
        launcher.run(stage, on_log=lines.append)
    assert not any("starting it again" in line for line in lines)
    assert parts(stage).keys() == {"scores-00000.parquet"}


@pytest.mark.process
def test_a_worker_has_its_share_of_the_cores_and_of_the_threads(tmp_path: Path, candidates: Artifact) -> None:
    stage = scoring(tmp_path, candidates, 1)
    core = hardware.cores()[-1]
    with pool.Pool(stage, {0: shares.Share({"OMP_NUM_THREADS": "7"}, (core,))}) as crew:
        crew.start(0)
        worker = psutil.Process(crew._workers[0].process.pid)
        until(lambda: worker.cpu_affinity() == [core], "the worker's affinity")
        assert worker.environ()["OMP_NUM_THREADS"] == "7"
        worker.send_signal(signal.SIGTERM)
        events = until(lambda: list(crew.events(1.0)), "its end")
    assert [(number, event.how) for number, event in events] == [(0, "its process was killed by SIGTERM")]


STARTS_ANOTHER = """
import subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(10000)"], start_new_session=True)
print(f"{other.pid} started", flush=True)
time.sleep(10000)
"""


@pytest.mark.process
def test_what_a_worker_has_started_ends_with_it(tmp_path: Path, candidates: Artifact) -> None:
    (tmp_path / "worker.py").write_text(STARTS_ANOTHER)
    stage = scoring(tmp_path, candidates, 1)
    with pool.Pool(stage, {0: shares.Share({})}, program=(str(tmp_path / "worker.py"),)) as crew:
        crew.start(0)
        log = at_work.log_file(stage, 0)
        until(lambda: "started" in log.read_text(), "the worker's child")
        child = int(log.read_text().splitlines()[-1].split()[0])
        crew.end(0)
        ends(child)


@pytest.mark.process
def test_a_worker_that_hangs_is_ended_with_its_stage_and_where_it_stood_is_told(
    tmp_path: Path, candidates: Artifact, points: Points, clock: Clock
) -> None:
    stage = scoring(tmp_path, candidates, 1, stall_timeout_s=5000)
    hold = points.hold("scores/scores-00000.parquet")
    hanging: list[int] = []

    def hours_pass_once_it_hangs() -> None:
        hanging.append(hold.wait())
        clock.passes(6000)

    thread = threading.Thread(target=hours_pass_once_it_hangs)
    thread.start()
    with pytest.raises(StageFailed, match="stall_timeout_s") as caught:
        launcher.run(stage)
    thread.join()
    assert "in write_part" in str(caught.value), "the worker's stack"
    assert "driver.py" in str(caught.value), "the driver's"
    ends(hanging[0])


@pytest.mark.process
@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_that_is_not_installed_is_told_with_the_command_that_installs_it(
    tmp_path: Path, candidates: Artifact
) -> None:
    config = builders.config(tmp_path, executor={"kind": "ray"})
    with pytest.raises(BadInput, match=r"pip install 'pco-pipeline\[ray\]'"):
        launcher.run(builders.stage("score", config, {"candidates": candidates}))


# Who has what.


def shares_of(folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, cores: int, **executor: Any) -> list[Any]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(hardware, "gpus", lambda: [str(number) for number in range(gpus)])
    monkeypatch.setattr(hardware, "cores", lambda: list(range(cores)))
    config = builders.config(folder, executor={"kind": "pool", **executor})
    return [
        (share.environment.get("CUDA_VISIBLE_DEVICES"), share.cores, share.environment["OMP_NUM_THREADS"])
        for share in shares.shares(config).values()
    ]


def test_each_worker_has_gpus_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares_of(tmp_path, monkeypatch, 8, 16, workers=8) == [(str(number), (), "2") for number in range(8)]
    assert shares_of(tmp_path, monkeypatch, 8, 16, workers=2, gpus_per_worker=4) == [
        ("0,1,2,3", (), "8"),
        ("4,5,6,7", (), "8"),
    ]


def test_more_groups_than_gpus_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"3 workers with 4 GPU\(s\) each need 12.*offers 8.*At most 2 workers"):
        shares_of(tmp_path, monkeypatch, 8, 16, workers=3, gpus_per_worker=4)
    with pytest.raises(BadInput, match="need 1, and this machine offers 0"):
        shares_of(tmp_path, monkeypatch, 0, 16, workers=1, gpus_per_worker=1)


def test_cores_are_divided_and_none_is_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares_of(tmp_path, monkeypatch, 0, 5, workers=2) == [(None, (0, 1), "2"), (None, (2, 3, 4), "2")]
    assert shares_of(tmp_path, monkeypatch, 8, 4, workers=2, gpus_per_worker=0) == [
        ("", (0, 1), "2"),
        ("", (2, 3), "2"),
    ]
    assert [cores for _, cores, _ in shares_of(tmp_path, monkeypatch, 0, 2, workers=4)] == [(0,), (0,), (0,), (1,)]


def test_torch_for_amd_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "is_for_amd", lambda: True)
    with pytest.raises(BadInput, match="AMD"):
        shares_of(tmp_path, monkeypatch, 0, 2, workers=2)
    assert len(shares_of(tmp_path, monkeypatch, 0, 2, workers=2, gpus_per_worker=0)) == 2
