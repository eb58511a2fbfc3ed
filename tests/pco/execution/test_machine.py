"""Machines as they are: proxies, folders that cannot be written, locales without UTF-8, closed streams."""

import ast
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from data.errors import BadInput
from pco.execution import machine
from tests.processes import as_nobody, let_everyone_enter

DEAD = "http://127.0.0.1:9"
LOOPBACK = "127.0.0.1,localhost,::1"


class _Yes(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def own_server() -> Iterator[str]:
    """A server of this machine."""
    with HTTPServer(("127.0.0.1", 0), _Yes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def behind_a_dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, DEAD)
    for name in ("no_proxy", "NO_PROXY"):  # whatever is set from here on is undone
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("behind_a_dead_proxy")
def test_a_request_of_this_machine_to_itself_goes_past_the_proxy(own_server: str) -> None:
    with pytest.raises(httpx.ConnectError):
        httpx.get(own_server)
    machine.exempt_loopback(os.environ)
    assert httpx.get(own_server).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://192.0.2.1")  # others still go through it


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"NO_PROXY": LOOPBACK, "no_proxy": LOOPBACK}),
        ({"NO_PROXY": "a.org"}, {"NO_PROXY": f"a.org,{LOOPBACK}", "no_proxy": f"a.org,{LOOPBACK}"}),
        (
            {"NO_PROXY": "a.org", "no_proxy": "localhost, b.org"},
            {"NO_PROXY": f"a.org,{LOOPBACK}", "no_proxy": "localhost,b.org,127.0.0.1,::1"},
        ),
        ({"no_proxy": "*"}, {"no_proxy": "*"}),
    ],
    ids=str,
)
def test_hosts_that_are_exempt_already_stay_so(before: dict[str, str], after: dict[str, str]) -> None:
    machine.exempt_loopback(before)
    assert before == after


def refused() -> str:
    with pytest.raises(BadInput) as caught:
        machine.check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("variable", ["HOME", "XDG_CACHE_HOME", "TMPDIR"])
def test_a_folder_that_cannot_be_written_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    machine.check()
    monkeypatch.setenv(variable, "/proc/1")
    told = refused()
    assert "/proc/1" in told
    assert variable in told


def test_a_home_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)

    def look() -> None:
        os.environ.update({"HOME": str(tmp_path / "home")})
        os.environ.pop("XDG_CACHE_HOME", None)
        assert "cannot be written (Permission denied)" in refused()

    let_everyone_enter(tmp_path)
    as_nobody(look)


def test_a_temporary_folder_that_is_not_there_or_too_small_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    assert "TMPDIR" in refused()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(machine, "_TEMPORARY_MIB", 2**40)
    assert "MiB free" in refused()


def test_looking_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    machine.check()
    assert list(tmp_path.iterdir()) == []


_TELL = "import sys; from pco.execution import machine; machine.prepare(); "


def told(program: str, *arguments: str, before: str = "exec", **environment: str) -> str:
    """What a Python program prints that is started by a shell."""
    command = ["sh", "-c", f'{before} "$@"', "sh", sys.executable, "-c", _TELL + program, *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, check=False, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.process
def test_a_locale_without_utf_8_is_none_for_this_program_and_its_children() -> None:
    program = "import os; print(sys.argv[1], sys.getfilesystemencoding(), os.environ['PYTHONUTF8'])"
    for chosen in ("C", "POSIX"):
        assert told(program, "über 河", LC_ALL=chosen, PYTHONUTF8="0") == "über 河 utf-8 1\n"


@pytest.mark.process
@pytest.mark.parametrize("closed", ["<&-", "<&- 2>&-"])
def test_a_standard_stream_that_is_closed_is_no_other_file_s(closed: str) -> None:
    program = "import os; file = open(os.devnull); print(file.fileno() > 2)"
    assert told(program, before=f"exec {closed}; exec") == "True\n"


def _checks_by_assert(path: Path) -> list[str]:
    """The asserts of a file that do more than tell a type checker that something is not None."""
    asserts = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Assert)]
    return [f"{path}: {ast.unparse(node)}" for node in asserts if "is not None" not in ast.unparse(node)]


def test_nothing_is_checked_by_an_assert_which_python_o_leaves_out() -> None:
    root = Path(machine.__file__).parents[2]
    files = [path for package in ("data", "pco", "tasks", "flows") for path in sorted((root / package).rglob("*.py"))]
    assert len(files) > 50
    assert sum(map(_checks_by_assert, files), []) == []
