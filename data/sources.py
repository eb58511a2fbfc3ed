"""Rows of outside data, one at a time: JSON, JSONL, CSV and Parquet files, and data sets of the hub."""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data import hub_sources
from data.errors import BadInput
from data.hub_sources import first_line

RawRow = dict[str, Any]
Numbered = Iterator[tuple[int, RawRow]]

FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_CHUNK = 1 << 16  # characters of a JSON array read at a time
_LONGEST = 1 << 26  # characters of one element; a fault early in a large array must not pull all of it into memory
_BATCH = 1000  # rows of a Parquet file or a hub data set in memory at a time
_POINTER = re.compile(rb"version [^\n]*git-lfs[^\n]*\n(ext-[^\n]*\n)*oid ")
_BLANK = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class Source:
    """Numbered rows, to be read once, and what their numbers count: lines or rows, from 1."""

    name: str
    unit: str
    rows: Numbered
    commit: str | None = None  # of a hub data set: that of its repository

    def where(self, number: int) -> str:
        """The place of a row, for messages."""
        return f"{self.name}, {self.unit} {number}"


def open_source(
    source: str, *, split: str | None = None, subset: str | None = None, revision: str | None = None
) -> Source:
    """The rows of a file, of a folder that `datasets` can load, or of a hub data set, in their order.

    Nothing is read yet but what tells the format. `split` and `subset` belong to folders and hub data sets, `revision`
    (branch, tag or commit) to the latter.

    Raises BadInput, here or while the rows are read, naming the file and line of whatever cannot be read.
    """
    path = Path(source)
    if not path.is_file() and not looks_like_file(source):
        opened = hub_sources.open_data_set(source, split=split, subset=subset, revision=revision)
        rows = ((number, decoded(row)) for number, row in opened.rows)
        return Source(source, "row", rows, opened.commit)
    if split or subset or revision:
        raise BadInput(
            f"{source}: split, subset and revision choose within a hub data set or a folder; a file has none."
        )
    return open_file(path)


def open_file(path: Path, *, fallback: str | None = None) -> Source:
    """The rows of a file in their order; `fallback` is the format of a file whose name tells none.

    Raises BadInput, here or while the rows are read, naming the file and line of whatever cannot be read.
    """
    with _reading(path):
        path.stat()
    suffix = fallback if fallback and _suffix(path) not in FORMATS else _format(path)
    _refuse_pointer(path)
    match suffix:
        case ".csv":
            return Source(str(path), "line", _csv_rows(path, ","))
        case ".tsv":
            return Source(str(path), "line", _csv_rows(path, "\t"))
        case ".parquet":
            return Source(str(path), "row", parquet_rows(path))
        case _ if _is_array(path):
            return Source(str(path), "row", _array_rows(path))
        case _:
            return Source(str(path), "line", _json_lines(path))


def looks_like_file(source: str) -> bool:
    """Whether a name can be nothing but that of a file, there or not: no folder, and no data set of the hub."""
    path = Path(source)
    if path.is_dir():
        return False
    return path.is_absolute() or source.startswith(".") or source.count("/") > 1 or _suffix(path) in FORMATS


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def _format(path: Path) -> str:
    suffix = _suffix(path)
    if suffix not in FORMATS:
        raise BadInput(f"{path}: unknown kind of file. Expected one of {', '.join(FORMATS)}, also with .gz.")
    if suffix == ".parquet" and path.suffix == ".gz":
        raise BadInput(f"{path}: Parquet is compressed within. Unpack it with gunzip first.")
    return suffix


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong below the format into an error that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise BadInput(
            f"{path}: no such file. Name an existing file, or a data set of the hub as `owner/name`."
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{path}: not whole gzip ({error}). Copy or download it again.") from None
    except OSError as error:
        raise BadInput(f"{path}: could not be read ({error.strerror or error}).") from None


def _refuse_pointer(path: Path) -> None:
    """Raises BadInput for what Git leaves in the place of a large file that it did not fetch."""
    with _reading(path), path.open("rb") as file:
        start = file.read(1000)
    if _POINTER.match(start):
        raise BadInput(f"{path}: a pointer of Git LFS, not the data. Fetch the file itself with `git lfs pull`.")


def decoded(value: Any) -> Any:
    """A value with its bytes as text, where they are UTF-8, also within lists and objects."""
    match value:
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return value
        case list():
            return [decoded(item) for item in value]
        case dict():
            return {key: decoded(item) for key, item in value.items()}
    return value


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines with their numbers. Only a line feed ends one: JSON allows U+2028 inside a string."""
    with _reading(path), _open(path) as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(
                    f"{path}, line {number}: not UTF-8 (byte {error.start} of the line). Convert it to UTF-8."
                ) from None


def _json_lines(path: Path) -> Numbered:
    for number, line in _lines(path):
        if line.strip():
            yield number, parse_object(line, f"{path}, line {number}")


def parse_object(line: str, where: str) -> RawRow:
    """One line of JSONL. Raises BadInput naming `where` when it is no object, or no text can hold it."""
    try:
        raw = json.loads(line)
        _refuse_half_characters(line, raw)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not valid JSON ({error}). Expected one object a line.") from None
    if not isinstance(raw, dict):
        raise BadInput(f"{where}: expected one JSON object; found {type(raw).__name__}.")
    return raw


def _refuse_half_characters(written: str, value: object) -> None:
    """An escaped half of a surrogate pair is valid JSON and no text. Raises UnicodeEncodeError, a ValueError."""
    if "\\u" in written:
        json.dumps(value, ensure_ascii=False).encode()


def _is_array(path: Path) -> bool:
    with _reading(path), _open(path) as file:
        return file.read(_CHUNK).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _array_rows(path: Path) -> Numbered:
    with _reading(path), _open(path) as file:
        yield from enumerate(_elements(path, _chunks(path, file)), start=1)


def _chunks(path: Path, file: IO[bytes] | gzip.GzipFile) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    at = 0
    while True:
        raw = file.read(_CHUNK)
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: not UTF-8 (near byte {at + error.start}). Convert it to UTF-8.") from None
        if not raw:
            return
        yield text
        at += len(raw)


def _elements(path: Path, chunks: Iterator[str]) -> Iterator[RawRow]:
    """The objects of a JSON array, held in memory one by one."""
    buffer = next(chunks).lstrip()
    at, number, growth = 1, 0, 1
    while True:
        try:
            value, end = _element(buffer, at, first=number == 0)
        except (ValueError, RecursionError) as error:
            more = "".join(islice(chunks, growth)) if len(buffer) - at < _LONGEST else ""
            if not more:
                raise BadInput(
                    f"{path}, row {number + 1}: not valid JSON, or cut short ({_without_place(error)}). Expected "
                    "an array of objects."
                ) from None
            buffer, at, growth = buffer[at:] + more, 0, 2 * growth
            continue
        if end is None:
            _refuse_rest(path, buffer[at:], chunks)
            return
        number, growth = number + 1, 1
        if not isinstance(value, dict):
            raise BadInput(f"{path}, row {number}: expected an array of objects; found {type(value).__name__}.")
        _refuse_in_array(path, number, buffer[at:end], value)
        yield value
        at = end


def _without_place(error: Exception) -> str:
    return getattr(error, "msg", str(error))  # its line and column count from the chunk's beginning


def _element(buffer: str, at: int, *, first: bool) -> tuple[Any, int | None]:
    """The array's next element and where it ends; no end when the array is over. ValueError when more is needed."""
    at = _skip_blank(buffer, at)
    if buffer[at : at + 1] == "]":
        return None, None
    if not first:
        if buffer[at : at + 1] != ",":
            raise ValueError("expected , or ] after an element")
        at = _skip_blank(buffer, at + 1)
    value, end = _decode(buffer, at)
    return value, end


def _skip_blank(buffer: str, at: int) -> int:
    found = _BLANK.match(buffer, at)
    return found.end() if found else at


def _refuse_rest(path: Path, rest: str, chunks: Iterator[str]) -> None:
    if rest.strip()[1:].strip() or any(chunk.strip() for chunk in chunks):
        raise BadInput(f"{path}: there is text after the JSON array's end. Expected one array of objects.")


def _refuse_in_array(path: Path, number: int, written: str, value: RawRow) -> None:
    try:
        _refuse_half_characters(written, value)
    except ValueError as error:
        raise BadInput(f"{path}, row {number}: holds half a character ({error}).") from None


def _csv_rows(path: Path, delimiter: str) -> Numbered:
    """Rows by the names in the first line; every value is text."""
    csv.field_size_limit(_LONGEST)  # the library's own limit of 128 KiB is below some answers
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) != len(header):
            raise BadInput(f"{path}, line 1: a column's name is there twice. Found {', '.join(header)}.")
        for values in reader:
            if values and len(values) != len(header):
                raise BadInput(
                    f"{path}, line {reader.line_num}: {len(values)} values for {len(header)} columns. Quote values "
                    "that hold the delimiter or a line end."
                )
            if values:
                yield reader.line_num, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num}: not valid CSV, or cut short ({error}).") from None


def parquet_rows(path: Path) -> Numbered:
    """The rows of a Parquet file, a batch in memory at a time.

    Raises BadInput when it is missing, no Parquet, or cut short.
    """
    number = 0
    with _reading(path):
        try:
            with pq.ParquetFile(path) as file:
                binary = "binary" in str(file.schema_arrow)
                for batch in file.iter_batches(batch_size=_BATCH):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, decoded(row) if binary else row
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: not whole Parquet ({first_line(error)}). Copy it again.") from None
