"""Outside data into one Parquet file of known columns: read row by row, dropped by reason, split by prompt."""

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data import columns, detecting, files, labels, prompts, shapes, sources
from data.answering import CONTRADICTION, NO_PROMPT
from data.conversations import Dropped, Turns
from data.detecting import KNOWN, Kind, Shape
from data.errors import BadInput
from data.labels import Meaning, Notes
from data.ranking import Pairs
from data.readers import prompt_key
from data.schemas import IMPORTED
from data.shapes import Reading

DUPLICATE = "exact duplicate"
ANOTHER_REFERENCE = "the same prompt as before, with another reference"
TEXTS = ("prompt", "chosen", "rejected", "completion")
_BATCH = 1000  # rows in memory before they are written
_PEEKED = 100  # rows whose columns tell the shape; the first of a JSONL file may lack some
_REASONS = 40  # different reasons that are counted apart; a fault may name a new role in each row
OTHER_REASONS = "malformed in yet other ways"


@dataclass(frozen=True)
class Request:
    """What to read, how, and for an import where to."""

    source: str
    kind: Kind
    out: Path | None = None
    names: Mapping[str, str] = field(default_factory=dict)  # column of the source -> name that a shape knows
    ignored: Sequence[str] = ()  # columns of the source that are not looked at
    coding: Mapping[str, Meaning] = field(default_factory=dict)  # value of a label -> what it means
    pairs: Pairs = "best_worst"  # of several answers with scores
    split: str | None = None  # of a hub data set
    subset: str | None = None  # of a hub data set: its config's name
    revision: str | None = None  # of a hub data set: branch, tag or commit
    limit: int | None = None  # rows to read at most
    turns: Turns = "messages"
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
        self.prompts.add(prompt_key(prompts.asked(row)))
        for column in TEXTS:
            if column in row:
                self.lengths.setdefault(column, array("L")).append(len(row[column]))
        if "chosen" in row:
            self.longer_chosen += len(row["chosen"]) > len(row["rejected"])
            self.longer_rejected += len(row["chosen"]) < len(row["rejected"])


@dataclass(frozen=True)
class Outcome:
    """What became of the rows of a source: `considered == kept + sum(dropped.values())`."""

    request: Request
    shape: Shape
    used: tuple[str, ...]  # columns of the source, by the names that the shape knows them by
    unused: tuple[str, ...]
    rows_in: int
    considered: int  # rows that the rows in gave or could have given: as many, but where several answers make pairs
    dropped: dict[str, int]
    notes: Notes
    commit: str | None  # of a hub data set

    @property
    def kept(self) -> int:
        """Rows that came out."""
        return self.considered - sum(self.dropped.values())


@dataclass(frozen=True)
class Imported(Outcome):
    """What an import did."""

    outputs: tuple[Written, ...]  # the file, and the held-out one if there is one


def is_heldout(key: bytes, share: float) -> bool:
    """Whether a prompt is on the held-out side: by its hash alone, so in every file and every import the same."""
    return int.from_bytes(key[:8], "big") < share * 2**64


def import_data(request: Request) -> Imported:
    """Read the source and write the Parquet file, and the held-out one if wanted.

    The files appear whole or not at all. Memory grows by some 200 bytes a row, for duplicates and numbers, not by text.

    Raises BadInput for a request or source that cannot work, and when no row is left.
    """
    paths = _checked_outputs(request)
    reader = Reader(open_request(request))
    with ExitStack() as stack:
        sinks = [stack.enter_context(_opened(path, request.kind)) for path in paths]
        _pour(request, reader, sinks)
    return Imported(**vars(reader.outcome()), outputs=tuple(sink.written for sink in sinks))


@dataclass
class Opened:
    """A source whose columns told its shape; its rows can be read once."""

    request: Request
    source: sources.Source
    columns: dict[str, None]  # by the names that shapes know; those of later rows come to them
    reading: Reading
    rows: sources.Numbered

    def used(self) -> tuple[str, ...]:
        """The columns that rows are read from."""
        return tuple(column for column in dict.fromkeys(self.reading.shape.uses) if column in self.columns)

    def unused(self) -> tuple[str, ...]:
        """The columns that are left."""
        return tuple(column for column in self.columns if column not in self.used())

    def extract(self, number: int, raw: Mapping[str, Any]) -> shapes.Extracted:
        """What a row says. Raises BadInput where it has a column that, seen before, would have told another shape."""
        where = self.source.where(number)
        if not self.columns.keys() >= raw.keys():
            self._refuse_late(raw, where)
        return shapes.extract(self.reading, raw, where=where)

    def _refuse_late(self, raw: Mapping[str, Any], where: str) -> None:
        late = [column for column in raw if column not in self.columns]
        self.columns |= dict.fromkeys(late)
        shape = _shape(self.request, self.columns, where)
        if shape != self.reading.shape:
            raise BadInput(
                f"{where}: the column {', '.join(late)} is first here, and with it the file would be read another way "
                f"({shape.name}, not {self.reading.shape.name}). Put such rows first, or leave the column out with "
                f"--ignore {late[0]}."
            )


def open_request(request: Request) -> Opened:
    """Open the source, and tell its shape by the columns of its first rows. Raises BadInput."""
    source = sources.open_source(request.source, split=request.split, subset=request.subset, revision=request.revision)
    limited = islice(source.rows, request.limit)
    first = list(islice(limited, _PEEKED))
    if not first:
        raise BadInput(f"{request.source}: holds no rows. Expected some {request.kind}.")
    raw_rows = [raw for _, raw in first]
    theirs = dict.fromkeys(chain.from_iterable(raw_rows))
    columns.refuse_absent(request.names, request.ignored, raw_rows, where=request.source)
    named = columns.renamed_columns(theirs, request.names, request.ignored)
    reading = Reading(_shape(request, named, request.source), request.turns, request.pairs, request.coding)
    rows = ((number, columns.renamed(raw, request.names, request.ignored)) for number, raw in chain(first, limited))
    return Opened(request, source, named, reading, rows)


def _shape(request: Request, names: Collection[str], where: str) -> Shape:
    return detecting.detect(request.kind, names, where=where, mapped=request.names.values())


def _nothing_kept(opened: Opened, rows_in: int, dropped: Mapping[str, int]) -> str:
    """Why an import kept nothing, and what would help."""
    request = opened.request
    said = f"{request.source}: no row of {rows_in:,} can be kept ({told(dropped)})."
    if dropped.keys() <= {DUPLICATE, ANOTHER_REFERENCE}:
        return f"{said} The sources before it have them all: leave this one out."
    if CONTRADICTION in dropped:
        return f"{said} If `{opened.reading.shape.prompt}` is not the prompt: --ignore {opened.reading.shape.prompt}."
    if NO_PROMPT in dropped and opened.unused():
        return f"{said} Name the prompt's column, such as --map {opened.unused()[0]}=prompt."
    return f"{said} Known shapes of {request.kind}: {KNOWN[request.kind]}. --ignore leaves a column out of account."


def told(dropped: Mapping[str, int]) -> str:
    """The drops in one line."""
    return ", ".join(f"{reason}: {count:,}" for reason, count in sorted(dropped.items())) or "none"


def _checked_outputs(request: Request) -> list[Path]:
    """The files to write, checked before anything is read. Raises BadInput."""
    share, heldout = request.heldout_share, request.heldout_out
    if (share is None) != (heldout is None):
        raise BadInput("--heldout-share and --heldout-out belong together: give both or neither.")
    if share is not None and not 0 < share < 1:
        raise BadInput(f"--heldout-share {share}: expected a share between 0 and 1, such as 0.1.")
    outs = [out for out in (request.out, heldout) if out is not None]
    for out in outs:
        if out.suffix != ".parquet":
            raise BadInput(f"{out}: the output is Parquet. Name it so: {out.with_suffix('.parquet')}.")
        _check_writable(out)
    files = [path.resolve() for path in (Path(request.source), *outs)]
    if len(set(files)) < len(files):
        raise BadInput(f"{request.out}: source and outputs must be different files. Name another output.")
    return outs


def _check_writable(out: Path) -> None:
    folder = next(path for path in out.absolute().parents if files.exists(path))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK) or out.is_dir():
        raise BadInput(f"{out}: cannot be written by this user. Name another output.")


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
        files.atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        sink = _Sink(Written(path), schema, writer)
        yield sink
        sink.flush()


@dataclass
class Reader:
    """What turns raw rows into rows of the schema, or counts why not.

    `considered == rows that `rows` gave + sum(dropped.values())`. Readers that share `seen` drop each other's rows as
    duplicates.
    """

    opened: Opened
    seen: dict[bytes, str | None] = field(default_factory=dict)  # content of rows, and the right answer
    rows_in: int = 0
    considered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows that are kept, as of the schema `IMPORTED[kind]`, to be read once.

        Raises BadInput at the end when none is, or when labels can only be read the other way.
        """
        for number, raw in self.opened.rows:
            self.rows_in += 1
            yield from self._read(number, raw)
        request, notes = self.opened.request, self.opened.reading.notes
        shape = self.opened.reading.shape
        if shape.name == "output pairs" and not request.coding:
            labels.refuse_zero_based(notes, one_is_first=shape.one_is_first, where=request.source)
        if self.considered == self.dropped.total():
            raise BadInput(_nothing_kept(self.opened, self.rows_in, self.dropped))

    def outcome(self) -> Outcome:
        """What became of the rows that were read."""
        opened = self.opened
        return Outcome(
            opened.request,
            opened.reading.shape,
            opened.used(),
            opened.unused(),
            self.rows_in,
            self.considered,
            dict(sorted(self.dropped.items())),
            opened.reading.notes,
            opened.source.commit,
        )

    def _read(self, number: int, raw: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows that are kept of what a row says."""
        kept = []
        for row in self.opened.extract(number, raw):
            self.considered += 1
            if isinstance(row, Dropped):
                reason = str(row)
                self.dropped[reason if reason in self.dropped or len(self.dropped) < _REASONS else OTHER_REASONS] += 1
                continue
            repeats = self._repeats(row)
            if repeats:
                self.dropped[repeats] += 1
            else:
                kept.append(row)
        return kept

    def _repeats(self, row: Mapping[str, Any]) -> str | None:
        """Why a row is one too many, if it is."""
        key, reference = content_key(row), row.get(detecting.REFERENCE)
        if key not in self.seen:
            self.seen[key] = reference
            return None
        return DUPLICATE if self.seen[key] == reference else ANOTHER_REFERENCE


def content_key(row: Mapping[str, Any]) -> bytes:
    """The same for rows that say the same, whatever their ids."""
    said = [row[column] for column in (*TEXTS, "messages", "good") if column in row]
    return hashlib.sha256(json.dumps(said).encode()).digest()[:16]


def _pour(request: Request, reader: Reader, sinks: Sequence[_Sink]) -> None:
    """Every row into its file."""
    share = request.heldout_share
    for row in reader.rows():
        side = share is not None and is_heldout(prompt_key(prompts.asked(row)), share)
        sinks[side].add(row)
