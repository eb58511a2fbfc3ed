"""A file of JSON lines that is only ever added to, and that a kill at any moment costs at most its last line."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data import store
from data.errors import BadInput


class Journal:
    """What was noted so far, and a way to note more; each line is with the system before `add` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Iterator[dict[str, Any]]:
        """Every whole line, oldest first; a torn one is passed over.

        Raises BadInput when the file may not be read.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise BadInput(
                f"{self._path}: could not be read ({error.strerror}). Mend that, or move it away."
            ) from error
        for line in content.split(b"\n"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                yield found

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one row. It begins a line of its own, whatever a killed process left before it.

        Raises PCOError when the disk is full, BadInput where this user may not write.
        """
        line = f"\n{json.dumps(row)}\n".encode()
        with store.write_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                if os.write(handle, line) != len(line):
                    raise OSError("only a part was written")
            finally:
                os.close(handle)
