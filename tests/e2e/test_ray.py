"""Workers on a Ray cluster of one and two nodes (all on this machine): the bytes of one process, whoever dies."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.errors import BadInput, StageFailed
from pco.execution import launcher
from pco.stage import Artifact, Stage
from pco.stages import score
from tests import builders
from tests.pco.execution.conftest import ends
from tests.pco.execution.test_pool import SHARDS, candidates, parts  # noqa: F401  a fixture
from tests.points import SITE, Points

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

GCS_S = "5"  # without its head a driver gives up after so long; by default 60 s
StartCluster = Callable[[int], Any]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, points: Points) -> Iterator[StartCluster]:
    """Starts a cluster of so many nodes with two cores each. Its processes know the test's points."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", GCS_S)
    assert str(SITE) in os.environ["PYTHONPATH"]
    started: list[Any] = []

    def start(nodes: int) -> Any:
        resources = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
        found = Cluster(initialize_head=True, head_node_args=resources)
        started.append(found)
        for _ in range(nodes - 1):
            found.add_node(**resources)
        found.wait_for_nodes()
        return found

    yield start
    for found in started:
        found.shutdown()


@pytest.fixture
def local(tmp_path: Path, candidates: Artifact) -> dict[str, bytes]:  # noqa: F811
    """What one process writes."""
    stage = builders.stage("score", builders.config(tmp_path / "local"), {"candidates": candidates})
    score.run(stage)
    return parts(stage)


def scoring(folder: Path, candidates: Artifact, address: str, workers: int = 2) -> Stage:  # noqa: F811
    executor = {"kind": "ray", "workers": workers, "address": address}
    return builders.stage("score", builders.config(folder / "ray", executor=executor), {"candidates": candidates})


@pytest.mark.parametrize(("nodes", "workers"), [(1, 2), (2, 4)])
def test_workers_on_a_cluster_write_the_bytes_of_one_process_though_one_is_killed(
    tmp_path: Path,
    candidates: Artifact,  # noqa: F811
    local: dict[str, bytes],
    cluster: StartCluster,
    points: Points,
    nodes: int,
    workers: int,
) -> None:
    stage = scoring(tmp_path, candidates, cluster(nodes).address, workers)
    points.kill("ray/runs/test/round-01/scores/scores-00001.parquet", "self")
    lines: list[str] = []
    assert launcher.run(stage, on_log=lines.append).rows_out == 3 * SHARDS
    assert parts(stage) == local
    assert any("killed by SIGKILL, as" in line and "starting it again" in line for line in lines)


def test_an_actor_that_is_killed_is_replaced_and_its_child_dies_with_it(
    tmp_path: Path,
    candidates: Artifact,  # noqa: F811
    local: dict[str, bytes],
    cluster: StartCluster,
    points: Points,
) -> None:
    stage = scoring(tmp_path, candidates, cluster(1).address)
    hold = points.hold("ray/runs/test/round-01/scores/scores-00000.parquet")
    driver = launched(stage)
    child = hold.wait(lambda: alive(driver))
    psutil.Process(psutil.Process(child).ppid()).kill()
    ends(child)
    hold.release()
    assert driver.wait() == 0
    assert parts(stage) == local


def test_nothing_of_ours_outlives_a_driver_that_is_killed(
    tmp_path: Path,
    candidates: Artifact,  # noqa: F811
    cluster: StartCluster,
    points: Points,
) -> None:
    stage = scoring(tmp_path, candidates, cluster(1).address)
    hold = points.hold("ray/runs/test/round-01/scores/scores-00000.parquet")
    driver = launched(stage)
    child = hold.wait(lambda: alive(driver))
    actor = psutil.Process(child).ppid()
    driver.kill()
    driver.wait()
    for process in (child, actor):
        ends(process)


def test_without_its_head_a_stage_fails_with_a_message_and_goes_on_elsewhere(
    tmp_path: Path,
    candidates: Artifact,  # noqa: F811
    local: dict[str, bytes],
    cluster: StartCluster,
    points: Points,
) -> None:
    found = cluster(1)
    stage = scoring(tmp_path, candidates, found.address)
    hold = points.hold("ray/runs/test/round-01/scores/scores-00003.parquet")
    failed: list[StageFailed] = []

    def watched() -> None:
        try:
            launcher.run(stage)
        except StageFailed as error:
            failed.append(error)

    thread = threading.Thread(target=watched)
    thread.start()
    child = hold.wait()
    found.head_node.kill_gcs_server()
    thread.join()
    ends(child)
    hold.release()
    assert "round 1/2 · score" in str(failed[0])
    one = replace(stage, config=builders.changed(stage.config, executor={"kind": "local"}))
    assert launcher.run(one).rows_out == 3 * SHARDS
    assert parts(stage) == local


def test_workers_that_do_not_fit_and_a_cluster_that_is_not_there_are_refused(
    tmp_path: Path,
    candidates: Artifact,  # noqa: F811
    cluster: StartCluster,
) -> None:
    with pytest.raises(BadInput, match="3 workers .* 2 core"):
        launcher.run(scoring(tmp_path, candidates, cluster(1).address, workers=3))
    with pytest.raises(BadInput, match=r"executor\.address.*ray start"):
        launcher.run(scoring(tmp_path, candidates, "127.0.0.1:9"))


def launched(stage: Stage) -> subprocess.Popen[bytes]:
    """The stage's process, without the launcher around it."""
    from data import files

    files.write_text(stage.stage_file, stage.to_json())
    return subprocess.Popen([sys.executable, "-m", "pco.execution.worker_main", str(stage.stage_file)])


def alive(process: subprocess.Popen[bytes]) -> None:
    assert process.poll() is None
