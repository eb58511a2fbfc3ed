"""The private Prefect server of a command that was given no other."""

import os

import psutil

from pco.execution.process_group import namespace

_OWNER = "PCO_SERVER_OWNER"  # in the environment of a private server: the process that started it


def end_orphaned_servers() -> None:
    """A `pco run` that was killed could not stop its private Prefect server: end those whose run is gone."""
    for process in psutil.process_iter(["cmdline"]):
        try:
            is_server = "prefect.server.api.server:create_app" in (process.info["cmdline"] or [])
            is_near = namespace(process.pid) == namespace(os.getpid())  # or the owner's id is another's here
            owner = process.environ().get(_OWNER) if is_server and is_near else None
            if owner is not None and not psutil.pid_exists(int(owner)):
                process.terminate()
        except psutil.Error:  # it ended by itself, or is another user's
            continue


def set_defaults(in_terminal: bool) -> None:
    """Set before prefect is first imported; whatever the user has set wins."""
    os.environ[_OWNER] = str(os.getpid())
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    if in_terminal:  # the bars say what Prefect's console lines would; the lines still reach the server
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "ERROR")
