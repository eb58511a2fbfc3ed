"""The Prefect server that a command reports to: the one that is named, or a private one of its own."""

import atexit
import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import psutil

from data import files
from data.errors import BadInput, PCOError
from pco.execution import machine
from pco.execution.process_group import namespace

_OWNER = "PCO_SERVER_OWNER"  # in the environment of a private server: the process that started it
_APP = "prefect.server.api.server:create_app"
_MAIN = Path(__file__).with_name("private_server_main.py")
_URL = "PREFECT_API_URL"
_HEALTH_S = 5.0  # a server that is named must answer within it
_POLL_S = 0.05
_ATTEMPTS = 3  # another program may take the port before the server does


def begin(in_terminal: bool) -> None:
    """Have a Prefect server to report to, before prefect is first imported.

    Raises BadInput when the one that is named does not answer, or a folder that is needed cannot be written; PCOError
    when the private one does not start.
    """
    _check_machine()
    end_orphaned_servers()
    _set_defaults(in_terminal)
    if not _named_answers():
        _start()


def check() -> None:
    """Raises BadInput where what this machine must offer is missing, or no server answers where one is named."""
    _check_machine()
    # Else none is named, and Prefect, which makes its folder when it is imported, need not be.
    if os.environ.get(_URL) or files.exists(_home() / "profiles.toml"):
        _named_answers()


def _check_machine() -> None:
    machine.check()
    machine.check_writable(_home(), "Prefect's settings and database", _home_variable())


def _named_answers() -> bool:
    """Whether a server is named; raises BadInput where that does not answer."""
    _check_address(os.environ.get(_URL, ""))
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if url:
        check_answers(url)
    return bool(url)


def _home_variable() -> str:
    return "PREFECT_HOME" if os.environ.get("PREFECT_HOME") else "HOME"


def _home() -> Path:
    named = os.environ.get("PREFECT_HOME")
    return Path(named).expanduser() if named else machine.home() / ".prefect"


def _check_address(url: str) -> None:
    """Prefect's settings cannot even be read with some that are none."""
    try:
        is_address = not url or (urlsplit(url).scheme in {"http", "https"} and bool(urlsplit(url).hostname))
    except ValueError:
        is_address = False
    if not is_address:
        raise BadInput(f"{_URL}: {url} is no address of a server. Expected http://HOST:4200/api, or unset it.")


def check_answers(url: str) -> None:
    """Raises BadInput where no Prefect server answers at an address."""
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(httpx_settings={"timeout": _HEALTH_S}, sync_client=True) as client:
            # Prefect's own client sends again and again; its settings for TLS are what is wanted of it.
            answer = httpx.Client.send(client._client, client._client.build_request("GET", "/health"))
        if answer.is_success:
            return
        reason = f"it answered {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
    named = "" if os.environ.get(_URL) else ", of the active Prefect profile"
    raise BadInput(
        f"{_URL}: no Prefect server answers at {url} ({reason}){named}. Start it (`prefect server start`), mend the "
        f"address (http://HOST:4200/api), or unset {_URL}: then a private server runs for as long as the run does."
    ) from None


def end_orphaned_servers() -> None:
    """A `pco run` that was killed could not stop its private Prefect server: end those whose run is gone."""
    for process in psutil.process_iter(["cmdline"]):
        try:
            is_server = _APP in (process.info["cmdline"] or [])
            is_near = namespace(process.pid) == namespace(os.getpid())  # or the owner's id is another's here
            owner = process.environ().get(_OWNER) if is_server and is_near else None
            if owner is not None and not psutil.pid_exists(int(owner)):
                process.terminate()
        except psutil.Error:  # it ended by itself, or is another user's
            continue


def _set_defaults(in_terminal: bool) -> None:
    """Set before prefect is first imported; whatever the user has set wins."""
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    if in_terminal:  # the bars say what Prefect's console lines would; the lines still reach the server
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "ERROR")


def _start() -> None:
    """Start a private server and name it to prefect, in this process and those that it starts.

    One at a time on a machine: they share a database, which the first of all has to make.
    """
    home = _home()
    with files.write_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        turn = (home / ".pco-server-starts").open("a", encoding="utf-8")
    with turn, (home / "pco-server.log").open("ab") as log:
        fcntl.flock(turn, fcntl.LOCK_EX)
        url = next((url for _ in range(_ATTEMPTS) if (url := _answering(log))), None)
    if url is None:
        raise PCOError(f"The private Prefect server did not start. {log.name} tells why; or set {_URL} to another.")
    from prefect.context import refresh_global_settings_context

    os.environ[_URL] = url
    os.environ.setdefault("PREFECT_UI_URL", "")  # it has none
    refresh_global_settings_context()


def _answering(log: IO[bytes]) -> str | None:
    """The address of a new server once it answers; None if it ends before, or takes too long."""
    import httpx
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS as PATIENCE

    port = _free_port()
    process = _process(port, log)
    atexit.register(_end, process)
    import prefect.client.orchestration  # noqa: F401  takes as long as the server's start: both at once

    deadline = time.monotonic() + PATIENCE.value()
    url = f"http://127.0.0.1:{port}/api"
    with httpx.Client(trust_env=False, timeout=_HEALTH_S) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(f"{url}/health").is_success and process.poll() is None:
                    return url
            except httpx.HTTPError:
                pass
            time.sleep(_POLL_S)
    _end(process)
    return None


def _process(port: int, log: IO[bytes]) -> "subprocess.Popen[bytes]":
    """In a process group of its own: a Ctrl-C is for the run, which has the server note how it ended."""
    # As Prefect's own temporary server: without UI, schedules and other services.
    extra = {_OWNER: str(os.getpid()), "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", str(_MAIN), _APP, str(port)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **extra, "PREFECT_UI_ENABLED": "0"},
        process_group=0,
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_HEALTH_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
