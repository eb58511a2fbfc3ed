"""A stack of containers of its own, with the tiny model mounted, and what one does to it."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.points import PATIENCE_S, Hold, Points

ROOT = Path(__file__).parents[2]
RUNS = "/app/runs"
Row = dict[str, Any]


@dataclass
class Stack:
    """The services of docker-compose.yml under a project name of their own."""

    env_file: Path
    data: Path
    points_folder: Path
    port: int
    auth: tuple[str, str] | None = None

    def call(self, *words: str, check: bool = True, timeout_s: float = PATIENCE_S) -> str:
        """What `docker compose ...` prints."""
        files = ["-f", str(ROOT / "docker/docker-compose.yml"), "-f", str(Path(__file__).with_name("points.yml"))]
        command = ["docker", "compose", "-p", "pco-test", *files, "--env-file", str(self.env_file), *words]
        done = subprocess.run(
            command, env=self._environment, check=False, timeout=timeout_s, capture_output=True, text=True
        )
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(words)}: status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    @property
    def _environment(self) -> dict[str, str]:
        own = {
            "DATA": str(self.data),
            "POINTS": str(self.points_folder),
            "PORT": str(self.port),
            "WORKER_MEMORY": "6g",
            "RECOVER_SECONDS": "5",
        }
        wheels = {"WHEELS": os.environ["PIP_FIND_LINKS"]} if os.environ.get("PIP_FIND_LINKS") else {}
        auth = {"PREFECT_SERVER_API_AUTH_STRING": ":".join(self.auth)} if self.auth else {}
        return {**os.environ, "BUILD_NETWORK": "host", "OMP_NUM_THREADS": "1", **wheels, **own, **auth}

    def inside(self, *words: str, service: str = "worker", check: bool = True) -> str:
        """What a command prints in a service's container."""
        return self.call("exec", "-T", service, *words, check=check)

    def up(self) -> None:
        self.call("up", "--wait", "--no-build")

    def containers(self) -> list[Row]:
        ids = self.call("ps", "--quiet").split()
        told = subprocess.run(["docker", "inspect", *ids], capture_output=True, text=True, check=True)
        rows: list[Row] = json.loads(told.stdout)
        return rows

    def container(self, service: str) -> Row:
        labelled = "com.docker.compose.service"
        return next(one for one in self.containers() if one["Config"]["Labels"][labelled] == service)

    def kill(self, service: str) -> None:
        """Kill all its processes, as the system may; then the engine starts it again, and it gets well."""
        before = self.container(service)["RestartCount"]
        self.inside("sh", "-c", "kill -9 -1", service=service, check=False)
        self.until(lambda: self._is_well_again(service, before), f"{service} back after its death")

    def _is_well_again(self, service: str, restarts: int) -> bool:
        now = self.container(service)
        return bool(now["RestartCount"] > restarts and now["State"].get("Health", {}).get("Status") == "healthy")

    def ask(self, path: str, body: Row | None = None) -> Any:
        """What the server's API answers."""
        with httpx.Client(base_url=self.url, auth=self.auth, timeout=PATIENCE_S) as client:
            answer = client.get(path) if body is None else client.post(path, json=body)
            return answer.raise_for_status().json()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start_run(self, config: Row) -> str:
        """A flow run of the deployment for scripts; returns its id."""
        deployment = self.ask("/api/deployments/name/pco-rounds/config")["id"]
        made = self.ask(f"/api/deployments/{deployment}/create_flow_run", {"parameters": {"config": config}})
        return str(made["id"])

    def runs(self) -> list[Row]:
        """The flow runs of rounds."""
        found: list[Row] = self.ask("/api/flow_runs/filter", {"flows": {"name": {"any_": ["pco-rounds"]}}})
        return found

    def becomes(self, flow_run: str, state: str) -> Row:
        def there() -> Row | None:
            row: Row = self.ask(f"/api/flow_runs/{flow_run}")
            return row if row["state_name"] == state else None

        found: Row = self.until(there, f"{flow_run} {state}")
        return found

    @property
    def points(self) -> Points:
        """Where stages in the worker's container wait."""
        return Points(self.points_folder / "plans")

    def reaches(self, hold: Hold) -> None:
        """Wait until a stage's process waits there."""
        self.until(hold.arrived, f"a process at {hold.before}")

    def finished(self, run: str) -> dict[str, str]:
        """All that a run has committed, with inode and time of writing."""
        command = f"find {RUNS}/{run} -name '*.parquet' -o -name manifest.json | xargs stat --format '%n %i %y'"
        return dict(line.split(" ", 1) for line in self.inside("sh", "-c", command).splitlines())

    def until(self, come: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if found := come():
                    return found
            except httpx.HTTPError:  # the server may just be away
                pass
            if time.monotonic() > deadline:
                pytest.fail(f"not within {PATIENCE_S} s: {what}\n{self.call('logs', '--tail', '40')}")
            time.sleep(1)
