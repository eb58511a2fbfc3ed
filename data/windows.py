"""Windows of a JSONL file that grows: each takes the rows after the last one, so none is used twice or left out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from data.errors import BadInput

FORMATS = (".jsonl", ".ndjson")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Mark:
    """How far a file was used: rows and bytes before the mark, and the SHA-256 of these bytes."""

    rows: int = 0
    bytes: int = 0
    digest: str = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class Window:
    """The rows between two marks, as they stand in the file."""

    begin: Mark
    end: Mark
    content: bytes

    @property
    def rows(self) -> int:
        """How many it has."""
        return self.end.rows - self.begin.rows


def after(path: Path, begin: Mark, *, most: int | None = None) -> Window:
    """The next rows after a mark, at most so many; without new ones it is empty.

    A row is a line that holds something and has its line end: one without may still be written.

    Raises BadInput when the file cannot be read, is no JSONL, or is not what it was up to the mark.
    """
    if path.suffix not in FORMATS:
        raise BadInput(f"{path}: cannot be read in windows. Expected a file of one JSON object a line ({FORMATS[0]}).")
    try:
        with path.open("rb") as file:
            digest, left = hashlib.sha256(), begin.bytes
            while left and (chunk := file.read(min(left, _CHUNK))):
                digest.update(chunk)
                left -= len(chunk)
            if left or digest.hexdigest() != begin.digest:
                raise _changed(path, begin, shrank=left > 0)
            lines, pending, rows = [], [], 0
            while rows != most and (line := file.readline()).endswith(b"\n"):
                pending.append(line)
                if line.strip():
                    rows += 1
                    lines += pending
                    pending = []
    except OSError as error:
        raise BadInput(f"{path}: could not be read ({error.strerror}). Name a JSONL file.") from error
    content = b"".join(lines)
    digest.update(content)
    return Window(begin, Mark(begin.rows + rows, begin.bytes + len(content), digest.hexdigest()), content)


def _changed(path: Path, begin: Mark, *, shrank: bool) -> BadInput:
    how = "shrank" if shrank else "changed"
    return BadInput(
        f"{path}: {how} within its first {begin.rows:,} rows, which were used already. Rows may only be added at the "
        "end: restore the file, or begin a new series."
    )
