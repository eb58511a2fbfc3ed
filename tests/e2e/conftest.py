"""Whole runs with the real engines on the tiny model, through the command line."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from pco.config.file import OF_RUN
from pco.config.run import RunConfig
from pco.runs.folder import read_config
from tests import builders, tiny_model
from tests.points import PATIENCE_S, Points, until

EPOCHS = 3
LENIENT = {
    "require": {"reward": {"min_change": -1.0, "confidence": None}},
    "guards": {"perplexity": {"max_ratio": 10.0}, "length": None, "repetition": None},
}
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "COLUMNS": "200",
}


@dataclass(frozen=True)
class Case:
    """A config file of a tiny run, and how to call the command on it."""

    file: Path
    environment: dict[str, str]
    points: Points

    def under(self, **environment: str) -> "Case":
        """The same with more in the environment of its commands."""
        return replace(self, environment={**self.environment, **environment})

    @property
    def folder(self) -> Path:
        raw = yaml.safe_load(self.file.read_text())
        return Path(raw["runs_dir"]) / raw["run"]

    @property
    def config(self) -> RunConfig:
        return read_config(self.folder)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *arguments]

    def start(self, *sets: str) -> subprocess.Popen[str]:
        """Start `pco run`; its output goes to a file, since a killed run's private server would hold a pipe open."""
        settings = [word for setting in sets for word in ("--set", setting)]
        with self.output.open("w") as output:
            return subprocess.Popen(
                self.command("run", str(self.file), *settings),
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )

    @property
    def output(self) -> Path:
        """What the last `pco run` printed."""
        return self.file.with_name("output.txt")

    def kill_before(self, file: str) -> None:
        """Run until a stage is about to write a file of the run, and kill the command there.

        As the system does when memory runs out; the stage's process must not outlive it.
        """
        hold = self.points.hold(self.folder / file)
        process = self.start()

        def check() -> None:
            assert process.poll() is None, self.output.read_text()

        hold.wait(check)
        process.kill()
        process.wait()
        until(lambda: not stage_processes(self.folder), "the end of a stage's process whose parent was killed")
        hold.release()

    def forked(self, name: str, *words: str) -> "Case":
        """A new run that shares the stages of this one, not yet begun; `words` are those of `pco fork`."""
        self.tell("fork", str(self.folder), name, *words)
        return replace(self, file=self.folder.with_name(name) / OF_RUN)

    def tell(self, *arguments: str) -> str:
        """What a command prints that ends well."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            check=False,
            timeout=PATIENCE_S,
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, *sets: str) -> tuple[int, str]:
        status = self.start(*sets).wait(timeout=PATIENCE_S)
        return status, self.output.read_text()


def worker_is_done(api: str, run: str, attempts: int) -> bool:
    """Whether the worker has told all that it tells of a flow run's attempts.

    A process that ended with an error is reported as Crashed after it is gone, and the worker forgets the flow run
    then: an attempt that begins sooner is reported Crashed while it works, and cannot be cancelled.
    """
    told = {"event": {"name": ["prefect.worker.executed-flow-run"]}, "related": {"id": [f"prefect.flow-run.{run}"]}}
    return int(asked("POST", f"{api}/events/filter", json={"filter": told})["total"]) >= attempts


def stage_processes(folder: Path) -> list[int]:
    """The ids of the processes of a run's stages."""
    # -ww: under pytest a terminal's width is in the environment (readline puts it there), and ps cuts its lines to it.
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    lines = [line for line in listed.stdout.splitlines() if str(folder) in line and "pco.execution.worker_main" in line]
    return [int(line.split()[0]) for line in lines]


@pytest.fixture(scope="session")
def make_case(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """Make the config of a tiny run: two rounds, 24 training prompts, 8 held-out ones."""

    def make(**changes: Any) -> Case:
        folder = tmp_path_factory.mktemp("case")
        texts = [
            f"{first} {second}"
            for first, second in zip(tiny_model.sentences(40, 1), tiny_model.sentences(40, 2), strict=True)
        ]
        unique = list(dict.fromkeys(texts))
        builders.write_prompts(
            folder, unique[:24], unique[24:32], [tiny_model.repetitive_text(7), tiny_model.repetitive_text(8)]
        )
        raw = builders.raw_config(folder, tiny)
        raw["policy"]["prompt_format"] = "raw"
        raw |= {
            "generate": {"n": 4, "temperature": 1.0, "max_tokens": 24, "shard_size": 8},
            "engine": {"kv_cache_gib": 0.1, "dtype": "float32"},
            "train": {"learning_rate": 1e-3, "epochs": EPOCHS, "precision": "fp32", "micro_batch_pairs": 4},
            "gate": LENIENT,
        }
        raw = json.loads(json.dumps(raw))
        for dotted, value in changes.items():
            *parents, last = dotted.split("__")
            section = raw
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = value
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(raw))
        points = Points(folder / "points")
        return Case(file, {**ENVIRONMENT, **points.environment, "PREFECT_HOME": str(folder / "prefect")}, points)

    return make


@pytest.fixture(scope="session")
def roomy(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context that the prompts and texts which come with pco fit into."""
    folder = tmp_path_factory.mktemp("models") / "roomy"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prefect server's API: a server of its own for each file of tests."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home: Path = tmp_path_factory.mktemp("prefect-server")
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/api"
    environment = {**ENVIRONMENT, "PREFECT_HOME": str(home), "PREFECT_SERVER_UI_API_URL": url}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: _healthy(url, process, home / "log"), "the server")
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(PATIENCE_S)


def asked(method: str, url: str, **body: Any) -> Any:
    """What a Prefect server answers; while its database is busy it says 503, and its own client asks again too."""

    def served() -> httpx.Response | None:
        answer = httpx.request(method, url, timeout=PATIENCE_S, **body)
        return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

    answer = until(served, f"{url}, whose database is busy", every_s=0.5)
    answer.raise_for_status()
    return answer.json() if answer.content else None


def _healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    try:
        return httpx.get(f"{url}/health", timeout=PATIENCE_S).is_success
    except httpx.TransportError:
        return False
