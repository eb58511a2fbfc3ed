"""Files and folders that appear whole or not at all, synced to disk, and hashes of what they hold.

Whatever a run's folder holds is written through here: tables and manifests (`data.store`), the config and the lock
(`pco.runs.folder`), logs and errors (`pco.execution`), trained models and checkpoints (`pco.training`). Reads need no
such care, and happen where they are needed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from data.errors import BadInput, PCOError


def digest(value: object) -> str:
    """Hash of any JSON value, independent of key order: the base of every fingerprint."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """Hash of the names and contents of the files directly in a model folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return digest({path.name: file_digest(path) for path in files})


def tree_digest(folder: Path) -> str:
    """Hash of the names and contents of all files in a folder, at any depth. Raises BadInput when one is unreadable."""
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    visible = {name: path for name, path in files.items() if not any(part.startswith(".") for part in name.parts)}
    try:
        return digest({name.as_posix(): file_digest(path) for name, path in sorted(visible.items())})
    except OSError as error:
        raise BadInput(f"{error.filename}: could not be read ({error.strerror}). Give this user the right.") from error


def exists(path: Path) -> bool:
    """Whether there is a file or folder at this path that this user may see."""
    try:
        return path.exists()
    except OSError:
        return False


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into an error that says what to do. Nothing that was committed is lost."""
    try:
        yield
    except PermissionError as error:
        raise BadInput(f"{path}: no permission to write here. Give this user the right, or set `runs_dir`.") from error
    except OSError as error:
        raise PCOError(
            f"{path}: could not be written ({error.strerror or error}). All that was committed is intact; resume the "
            "run once the cause is gone."
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path`, synced to disk, if the block ends without an error; else it is removed."""
    # A name of its own: process ids repeat on other machines that write to the same folder.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    with write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces `folder`, synced to disk, if the block ends without an error.

    At every moment `folder` is the old one, the new one, or absent; never a part of either.
    """
    temporary, replaced = folder.with_name(f".{folder.name}.tmp"), _replaced(folder)
    for leftover in (temporary, replaced):  # of an attempt that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with write_errors(folder):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            sync_tree(temporary)
            if folder.exists():
                folder.rename(replaced)
            temporary.rename(folder)
            _sync(folder.parent)
        finally:
            for leftover in (temporary, replaced):
                shutil.rmtree(leftover, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder. At every moment it is whole or absent."""
    replaced = _replaced(folder)
    with write_errors(folder):
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
        shutil.rmtree(replaced)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder. Only its writer may call this."""
    for path in folder.glob(".*.tmp"):
        if path.is_file():
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Add a line to a small file that is never rewritten, synced to disk before this returns."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as file:
            if path.stat().st_size and not path.read_bytes().endswith(b"\n"):  # a machine that lost power tore a line
                file.write(b"\n")
            file.write(f"{line}\n".encode())
            os.fsync(file.fileno())
        _sync(path.parent)


def link(path: Path, target: Path) -> None:
    """Make `path` a symbolic link to `target`, atomically; a relative one where both lie in the same folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    with write_errors(path):
        temporary.unlink(missing_ok=True)  # of an attempt that was killed
        temporary.symlink_to(target.relative_to(path.parent) if target.is_relative_to(path.parent) else target)
        temporary.replace(path)


def sync_tree(folder: Path) -> None:
    """Sync a folder and everything in it to disk, names included."""
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move(folder: Path, target: Path) -> None:
    """Move a folder within a run, whole or not at all."""
    with write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
        _sync(target.parent)
        _sync(folder.parent)
