"""A file of JSON lines that only grows. A kill at any moment loses at most its last line."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data import files
from data.errors import BadInput


class Journal:
    """Reads the rows and appends more. The system has each line before `add` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Iterator[dict[str, Any]]:
        """The rows of all whole lines, oldest first; a torn line is skipped.

        Raises BadInput when the file may not be read.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise BadInput(
                f"{self._path}: could not be read ({error.strerror}). Correct that, or move the file away."
            ) from error
        for line in content.split(b"\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row

    def add(self, row: Mapping[str, object]) -> None:
        """Append one row. It starts a new line, even after the torn line of a killed process.

        Raises PCOError when the disk is full, BadInput where this user may not write.
        """
        line = f"\n{json.dumps(row)}\n".encode()
        with files.write_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                if os.write(handle, line) != len(line):
                    raise OSError("only a part was written")
            finally:
                os.close(handle)
