"""Outside data into one Parquet file of known columns: read row by row, dropped by reason, split by prompt."""

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data import shapes, sources, store
from data.conversations import Dropped, Turns
from data.errors import BadInput
from data.readers import prompt_key
from data.schemas import IMPORTED
from data.shapes import Kind, Shape

DUPLICATE = "exact duplicate"
TEXTS = ("prompt", "chosen", "rejected", "completion")
_BATCH = 1000  # rows in memory before they are written
_VALUES = 4  # more different preferences than a file that counts from 0 can have
_PEEKED = 100  # rows whose columns tell the shape; the first of a JSONL file may lack some


@dataclass(frozen=True)
class Request:
    """What to import, how, and where to."""

    source: str
    kind: Kind
    out: Path
    names: Mapping[str, str] = field(default_factory=dict)  # column of the source -> name that a shape knows
    split: str | None = None  # of a hub data set
    subset: str | None = None  # of a hub data set: its config's name
    limit: int | None = None  # rows to read at most
    turns: Turns = "single"
    heldout_share: float | None = None  # of the prompts, about
    heldout_out: Path | None = None


@dataclass
class Written:
    """One output file, and what is in it."""

    path: Path
    rows: int = 0
    lengths: "dict[str, array[int]]" = field(default_factory=dict)  # characters, by column
    prompts: set[bytes] = field(default_factory=set)  # keys of the normalised prompts
    longer_chosen: int = 0
    longer_rejected: int = 0

    def count(self, row: Mapping[str, Any]) -> None:
        """Take a row into the numbers."""
        self.rows += 1
        self.prompts.add(prompt_key(row["prompt"]))
        for column in TEXTS:
            if column in row:
                self.lengths.setdefault(column, array("L")).append(len(row[column]))
        if "chosen" in row:
            self.longer_chosen += len(row["chosen"]) > len(row["rejected"])
            self.longer_rejected += len(row["chosen"]) < len(row["rejected"])


@dataclass(frozen=True)
class Imported:
    """What an import did: `rows_in == sum of the outputs' rows + sum(dropped.values())`."""

    request: Request
    shape: Shape
    used: tuple[str, ...]  # columns of the source, by the names that the shape knows them by
    unused: tuple[str, ...]
    rows_in: int
    dropped: dict[str, int]
    outputs: tuple[Written, ...]  # the file, and the held-out one if there is one


def is_heldout(key: bytes, share: float) -> bool:
    """Whether a prompt is on the held-out side: by its hash alone, so in every file and every import the same."""
    return int.from_bytes(key[:8], "big") < share * 2**64


def import_data(request: Request) -> Imported:
    """Read the source and write the Parquet file, and the held-out one if wanted.

    The files appear whole or not at all. Memory grows by some 200 bytes a row, for duplicates and numbers, not by text.

    Raises BadInput for a request or source that cannot work, and when no row is left.
    """
    _check(request)
    source = sources.open_source(request.source, split=request.split, subset=request.subset)
    columns, rows = _peek(request, source)
    shape = shapes.detect(request.kind, columns, where=request.source)
    paths = [request.out] if request.heldout_out is None else [request.out, request.heldout_out]
    dropped: Counter[str] = Counter()
    with ExitStack() as stack:
        sinks = [stack.enter_context(_opened(path, request.kind)) for path in paths]
        reader = _Reader(source, shape, request.turns, dropped)
        rows_in = _pour(request, rows, reader, sinks)
        shapes.refuse_zero_based(reader.preferences, where=request.source)
        if rows_in == sum(dropped.values()):
            raise BadInput(f"{request.source}: no row of {rows_in:,} can be kept ({told(dropped)}). Look at the file.")
    used = tuple(column for column in shape.uses() if column in columns)
    unused = tuple(column for column in columns if column not in used)
    written = tuple(sink.written for sink in sinks)
    return Imported(request, shape, used, unused, rows_in, dict(sorted(dropped.items())), written)


def told(dropped: Mapping[str, int]) -> str:
    """The drops in one line."""
    return ", ".join(f"{reason}: {count:,}" for reason, count in sorted(dropped.items())) or "none"


def _check(request: Request) -> None:
    """Refuse before anything is read. Raises BadInput."""
    share, heldout = request.heldout_share, request.heldout_out
    if (share is None) != (heldout is None):
        raise BadInput("--heldout-share and --heldout-out belong together: give both or neither.")
    if share is not None and not 0 < share < 1:
        raise BadInput(f"--heldout-share {share}: expected a share between 0 and 1, such as 0.1.")
    outs = [request.out] if heldout is None else [request.out, heldout]
    for out in outs:
        if out.suffix != ".parquet":
            raise BadInput(f"{out}: the output is Parquet. Name it so: {out.with_suffix('.parquet')}.")
        _check_writable(out)
    files = [path.resolve() for path in (Path(request.source), *outs)]
    if len(set(files)) < len(files):
        raise BadInput(f"{request.out}: source and outputs must be different files. Name another output.")


def _check_writable(out: Path) -> None:
    folder = next(path for path in out.absolute().parents if store.exists(path))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK) or out.is_dir():
        raise BadInput(f"{out}: cannot be written by this user. Name another output.")


def _peek(request: Request, source: sources.Source) -> tuple[tuple[str, ...], sources.Numbered]:
    """The columns by the names that shapes know, and all rows with their columns so named."""
    limited = islice(source.rows, request.limit)
    first = list(islice(limited, _PEEKED))
    if not first:
        raise BadInput(f"{request.source}: holds no rows. Expected some {request.kind}.")
    columns = dict.fromkeys(column for _, raw in first for column in raw)
    for column in request.names:
        if column not in columns:
            raise BadInput(f"{request.source}: --map names `{column}`, but the columns are {', '.join(columns)}.")
    named = shapes.renamed(columns, request.names)
    rows = ((number, shapes.renamed(raw, request.names)) for number, raw in chain(first, limited))
    return tuple(named), rows


@dataclass
class _Sink:
    """A Parquet file in the making, a batch of rows in memory."""

    written: Written
    schema: pa.Schema
    writer: pq.ParquetWriter
    waiting: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: dict[str, Any]) -> None:
        self.written.count(row)
        self.waiting.append(row)
        if len(self.waiting) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self.waiting, schema=self.schema))
        self.waiting.clear()


@contextmanager
def _opened(path: Path, kind: Kind) -> Iterator[_Sink]:
    schema = IMPORTED[kind]
    with (
        store.atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        sink = _Sink(Written(path), schema, writer)
        yield sink
        sink.flush()


@dataclass
class _Reader:
    """What turns raw rows into rows of the schema, or counts why not."""

    source: sources.Source
    shape: Shape
    turns: Turns
    dropped: Counter[str]
    seen: set[bytes] = field(default_factory=set)
    preferences: set[str] = field(default_factory=set)  # the first few values that were there

    def read(self, number: int, raw: Mapping[str, Any]) -> dict[str, Any] | None:
        """The row; None when it is dropped."""
        if self.shape.name == "output pairs" and len(self.preferences) < _VALUES:
            self.preferences.add(str(raw.get("preference")))
        try:
            row = shapes.extract(self.shape, raw, self.turns, where=self.source.where(number))
        except Dropped as drop:
            self.dropped[str(drop)] += 1
            return None
        key = content_key(row)
        if key in self.seen:
            self.dropped[DUPLICATE] += 1
            return None
        self.seen.add(key)
        return row


def content_key(row: Mapping[str, Any]) -> bytes:
    """The same for rows that say the same, whatever their ids."""
    said = [row[column] for column in (*TEXTS, "good") if column in row]
    return hashlib.sha256(json.dumps(said).encode()).digest()[:16]


def _pour(request: Request, rows: sources.Numbered, reader: _Reader, sinks: Sequence[_Sink]) -> int:
    """Every row into its file; returns how many there were."""
    rows_in = 0
    for number, raw in rows:
        rows_in += 1
        row = reader.read(number, raw)
        if row is not None:
            share = request.heldout_share
            side = share is not None and is_heldout(prompt_key(row["prompt"]), share)
            sinks[side].add(row)
    return rows_in
