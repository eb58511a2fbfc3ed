"""What a machine must offer before any work: folders that can be written, and a way to itself past a proxy."""

import os
import shutil
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

from data.errors import BadInput

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TEMPORARY_MIB = 64  # the engine compiles small functions there
_TEMPORARY = ("TMPDIR", "TEMP", "TMP")  # in the order in which Python looks


def prepare() -> None:
    """Bring this process to what all that follows takes for granted: standard streams, UTF-8, loopback without proxy.

    To be called first. It starts the process anew where the locale is one without UTF-8: that is decided as Python
    starts.
    """
    _open_standard_streams()
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # stage processes inherit it
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    exempt_loopback(os.environ)


def _open_standard_streams() -> None:
    """A closed one leaves its number to the next file that is opened, which others then write to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def exempt_loopback(environment: MutableMapping[str, str]) -> None:
    """No request of this machine to itself goes to a proxy: add loopback to `no_proxy` and `NO_PROXY`.

    Programs read either, and prefer the one in small letters: it begins as a copy of the other.
    """
    said = {name: environment.get(name) for name in ("NO_PROXY", "no_proxy")}
    for name, other in (("NO_PROXY", "no_proxy"), ("no_proxy", "NO_PROXY")):
        hosts = [host.strip() for host in (said[name] or said[other] or "").split(",") if host.strip()]
        if "*" not in hosts:
            environment[name] = ",".join([*hosts, *(host for host in _LOOPBACK if host not in hosts)])


def check() -> str:
    """What was looked at; raises BadInput where a folder that engines and trainers need cannot be written."""
    cache, temporary = _cache(), _temporary()
    free = shutil.disk_usage(temporary).free / 2**20
    if free < _TEMPORARY_MIB:
        raise BadInput(
            f"{temporary}: only {free:.0f} MiB free, and engines compile there: at least {_TEMPORARY_MIB} MiB are "
            "wanted. Make room, or set TMPDIR to a folder with more."
        )
    return f"{cache} and {temporary} can be written"


def home() -> Path:
    """The user's home folder; raises BadInput where the system knows none."""
    try:
        return Path.home()
    except RuntimeError:
        raise BadInput("HOME: not set, and this user has no home folder. Set it to one that can be written.") from None


def _cache() -> Path:
    named = os.environ.get("XDG_CACHE_HOME")
    folder = Path(named) if named else home() / ".cache"
    check_writable(folder, "the engines' caches", "XDG_CACHE_HOME" if named else "HOME")
    return folder


def _temporary() -> Path:
    variable = next((name for name in _TEMPORARY if os.environ.get(name)), None)
    if variable is None:
        try:
            return Path(tempfile.gettempdir())
        except FileNotFoundError as error:
            raise BadInput(f"TMPDIR: not set, and no usual place can be written ({error.strerror}). Set it.") from None
    folder = Path(os.environ[variable])
    if not folder.is_dir():
        raise BadInput(f"{variable}: {folder} is no folder. Make it, or set {variable} to one that can be written.")
    check_writable(folder, "temporary files", variable)
    return folder


def check_writable(folder: Path, what: str, variable: str) -> None:
    """Raises BadInput where a folder, or the nearest above it that is there, cannot be written; leaves nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be written ({error.strerror}), and {what} lie there. Give this user the right, or set "
            f"{variable} to a folder that can be."
        ) from None
