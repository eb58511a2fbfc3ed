"""The Prefect server of a run that names none, and the check of one that is named."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from data.errors import BadInput
from flows import private_server
from flows.cli import app
from tests import builders

DEAD = "http://127.0.0.1:9"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(builders.raw_config(tmp_path)))
    return path


@pytest.mark.parametrize("variable", ["HOME", "PREFECT_HOME"])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_home_that_cannot_be_written_is_one_line_before_any_work(
    config_file: Path, variable: str, dry: list[str]
) -> None:
    environment = {"PREFECT_HOME": "", "XDG_CACHE_HOME": "", "COLUMNS": "200", variable: "/proc/1"}
    result = CliRunner(env=environment).invoke(app, ["run", str(config_file), *dry])
    assert result.exit_code == 2
    assert "/proc/1" in result.output
    assert f"set {variable} to" in result.output
    assert len(result.output.splitlines()) == 1
    assert list(config_file.parent.iterdir()) == [config_file]


@pytest.mark.parametrize("url", [f"{DEAD}/api", "http://no-such-host.invalid/api"])
def test_a_server_that_does_not_answer_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", url)
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(BadInput) as caught:
        private_server.check_answers(url)
    assert str(caught.value).startswith(f"PREFECT_API_URL: no Prefect server answers at {url} (")


@pytest.mark.parametrize("url", ["http://[::1", "127.0.0.1:4200/api", "http://", "ftp://host/api"])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_is_no_address_of_a_server_is_refused_by_the_variable(config_file: Path, url: str, dry: list[str]) -> None:
    result = CliRunner(env={"PREFECT_API_URL": url}).invoke(app, ["run", str(config_file), *dry])
    assert result.exit_code == 2
    assert f"PREFECT_API_URL: {url} is no address of a server" in result.output


@pytest.mark.process
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_run_for_a_dead_server_ends_before_any_work(config_file: Path, tmp_path: Path, dry: list[str]) -> None:
    environment = {**os.environ, "PREFECT_API_URL": f"{DEAD}/api", "PREFECT_HOME": str(tmp_path / "prefect")}
    command = [sys.executable, "-m", "flows.cli", "run", str(config_file), *dry]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "PREFECT_API_URL" in done.stderr
    assert f"{DEAD}/api" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


_BEGIN = (
    "import os, sys; from flows import private_server; from pco.execution import machine; "
    "machine.prepare(); private_server.begin(False); "
    "print(os.environ['PREFECT_API_URL'], flush=True); sys.stdin.read()"
)


def begun(home: Path) -> "subprocess.Popen[str]":
    """A process behind a dead proxy with a private server, which it has until its standard input ends."""
    dead = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), DEAD)
    environment = {**os.environ, **dead, "PREFECT_HOME": str(home)}
    environment.pop("PREFECT_API_URL", None)
    return subprocess.Popen(
        [sys.executable, "-c", _BEGIN],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def url_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False, timeout=30).is_success
    except httpx.TransportError:
        return False


def until(true: Callable[[], bool], patience_s: float = 60) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.process
def test_two_runs_at_once_on_a_new_machine_have_a_server_each_that_ends_with_its_run(tmp_path: Path) -> None:
    first, second = begun(tmp_path), begun(tmp_path)  # both would make the database
    urls = [url_of(first), url_of(second)]
    assert urls[0] != urls[1]
    assert [answers(url) for url in urls] == [True, True]
    first.kill()
    second.communicate("")
    assert second.returncode == 0
    assert not answers(urls[1])
    first.communicate()
    until(lambda: not answers(urls[0]))


@pytest.mark.process
def test_a_ctrl_c_is_for_the_run_and_not_for_its_server(tmp_path: Path) -> None:
    process = begun(tmp_path)
    url = url_of(process)
    os.killpg(process.pid, signal.SIGSTOP)  # the run itself must not end first
    os.killpg(process.pid, signal.SIGINT)
    assert answers(url)
    os.killpg(process.pid, signal.SIGCONT)
    process.communicate()
    until(lambda: not answers(url))
