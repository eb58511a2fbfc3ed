"""Data dropped from a run: where the run holds it, and a fork that is made without it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa

from data import store
from data.errors import BadInput, PCOError
from data.named_rows import Named
from data.prompts import readable
from data.readers import prompt_id, read_jsonl
from pco.config.file import OF_RUN
from pco.config.run import RunConfig
from pco.config.study import FOLDER as STUDIES
from pco.rewards.llm_judge import ANSWERS
from pco.rounds import dated
from pco.runs import fork as forking
from pco.runs import judgements, series, traces
from pco.runs.folder import locked, read_config, report_path
from pco.runs.fork import Fork
from pco.runs.standalone import FOLDER as EVALUATIONS
from pco.runs.status import Point, points
from pco.stage import Stage

_FROZEN: tuple[Point, ...] = ((0, "prepare"), (0, "prepare_test"))
# Which setting names the data of a split, and of a table of its own.
_SETTINGS = {"train": "train", "heldout": "heldout", "text": "heldout_text", "test": "test"}
_TOLD = 5  # rows in a message


@dataclass(frozen=True)
class Holding:
    """A file of a stage that holds rows of dropped prompts."""

    point: Point
    table: str
    path: Path
    rows: int


@dataclass(frozen=True)
class Resolved:
    """The prompts of a run that were named, and the places in the file that name none of it."""

    ids: frozenset[str]
    missing: list[str]


def resolve(config: RunConfig, named: Iterable[Named]) -> Resolved:
    """The prompts and texts of a run that a file names.

    Raises BadInput when none is in the run, or one name fits two.
    """
    known, by_text = _known(config)
    if not known:
        raise BadInput(f"{config.run}: has no data yet. `pco status {config.run}` shows what is done.")
    ids: set[str] = set()
    missing = []
    for row in named:
        fitting = {row.id} & known if row.id is not None else set()
        if row.prompt is not None:
            fitting |= ({prompt_id(row.prompt)} & known) | by_text.get(readable(row.prompt), set())
        if len(fitting) > 1:
            raise BadInput(
                f"{row.where}: fits {len(fitting)} prompts: {', '.join(sorted(fitting))}. Name it by its id."
            )
        if not fitting:
            missing.append(f"{row.where}{_near(row, by_text)}")
        ids |= fitting
    if not ids:
        raise BadInput(f"{config.run}: holds none of these rows:\n{listed(missing)}")
    return Resolved(frozenset(ids), missing)


def listed(lines: list[str]) -> str:
    """The first few lines, and how many more there are."""
    more = [f"  and {len(lines) - _TOLD} more"] if len(lines) > _TOLD else []
    return "\n".join([*(f"  {line}" for line in lines[:_TOLD]), *more])


def _known(config: RunConfig) -> tuple[set[str], dict[str, set[str]]]:
    """The ids of all that was given to a run, and those that a text stands for."""
    ids: set[str] = set()
    by_text: dict[str, set[str]] = defaultdict(set)
    for folder, table, _ in _tables(config, _FROZEN):
        rows = store.read_table(folder, table).to_pylist()
        ids |= {row["prompt_id"] for row in rows}
        for row in rows:
            text = row.get("source_prompt") if table == "preferences" else row["prompt"]
            if text is not None and table != "feedback":  # whose prompts are as the policy reads them
                by_text[text].add(row["prompt_id"])
    return ids, by_text


def _tables(config: RunConfig, of: Iterable[Point]) -> Iterator[tuple[Path, str, Point]]:
    for number, name in of:
        folder = Stage(name, number, config).folder
        manifest = store.read_manifest(folder)
        for table in sorted({part.table for part in manifest.parts} if manifest else set()):
            yield folder, table, (number, name)


def _near(row: Named, by_text: Mapping[str, set[str]]) -> str:
    if row.prompt is None:
        return ""
    plain = _plain(readable(row.prompt))
    near = [prompt for text, prompts in by_text.items() if _plain(text) == plain for prompt in prompts]
    return f" (but for case and whitespace it is {', '.join(near)})" if near else ""


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def holdings(config: RunConfig, ids: frozenset[str]) -> list[Holding]:
    """The files of a run's stages, finished or not, that hold rows of some prompts."""
    found = []
    for point in points(config):
        folder = Stage(point[1], point[0], config).folder
        manifest = store.read_manifest(folder)
        finished = {part.file: part for part in manifest.parts} if manifest else {}
        for path in sorted(folder.glob("*-*.parquet")):
            table, _, shard = path.stem.rpartition("-")
            part = finished.get(path.name)
            content = store.read_part(folder, part) if part else store.read_committed(folder, table, int(shard))
            if rows := _rows_of(content, ids):
                found.append(Holding(point, table, path, rows))
    return found


def _rows_of(content: pa.Table, ids: frozenset[str]) -> int:
    if "prompt_id" not in content.column_names:
        return 0
    return sum(count for prompt, count in Counter(content["prompt_id"].to_pylist()).items() if prompt in ids)


def first_touched(config: RunConfig, found: Iterable[Holding]) -> Point | None:
    """The first stage after the frozen data that holds the rows, or learns from them; None where there is none."""
    found = list(found)
    touched = {holding.point for holding in found} - set(_FROZEN)
    if any(holding.table == "feedback" for holding in found):
        touched.add((1, "train"))  # every training reads all feedback, and keeps no table of it
    return next((point for point in points(config) if point in touched), None)


def check_leaves_enough(config: RunConfig, ids: frozenset[str]) -> None:
    """Raise BadInput where nothing would be left to train on or to hold out."""
    left: dict[str, bool] = {}
    for folder, table, _ in _tables(config, _FROZEN):
        if table == "prompts":
            for row in store.read_table(folder, table).to_pylist():
                left[row["split"]] = left.get(row["split"], False) or row["prompt_id"] not in ids
    for split, some in left.items():
        if not some:
            raise BadInput(
                f"{config.run}: nothing would be left of prompts.{_SETTINGS[split]}. Begin a run with other data."
            )


def fork(origin: RunConfig, new: RunConfig, ids: frozenset[str], found: Iterable[Holding]) -> Fork:
    """Make the run `new`, whose config excludes the prompts. It shares every stage before the first that held them.

    The frozen data are made anew without them, and chat templates are told the date that they were told in `origin`,
    which stays as it is.

    Raises RunConflict when `new` exists or a process writes to `origin`, BadInput when nothing would be left.
    """
    found = list(found)
    check_leaves_enough(origin, ids)
    prepared = store.read_manifest(Stage("prepare", 0, origin).folder)
    new = dated(new, prepared.outputs if prepared else {})
    without = [(0, "prepare"), *{holding.point for holding in found if holding.point in _FROZEN}]
    with locked(origin.folder):
        at = first_touched(origin, found)
        is_begun = at is not None and not any(
            store.read_manifest(Stage(name, number, origin).folder) is None
            for number, name in points(origin)[: points(origin).index(at)]
        )
        return forking.fork(origin, new, at if is_begun else None, without=without)


def others(config: RunConfig, ids: frozenset[str]) -> tuple[list[Path], list[str]]:
    """What to delete in other runs beside a run, and evaluations outside of them; and which are unreadable."""
    paths: list[Path] = []
    unreadable = []
    for folder in (Path(config.runs_dir), Path(config.runs_dir) / EVALUATIONS):
        for path in sorted(folder.glob(f"[!.]*/{OF_RUN}")):
            if path.parent == config.folder:
                continue
            try:
                other = read_config(path.parent)
                paths += to_delete(other, holdings(other, ids), ids)
            except PCOError as error:
                unreadable.append(f"{path.parent}: {error}")
    return paths, unreadable


def to_delete(config: RunConfig, found: Iterable[Holding], ids: frozenset[str]) -> list[Path]:
    """What of a run must go so that nothing is left: files with the rows, policies they trained, what quotes them."""
    found = list(found)
    windows = _windows(config, ids)
    if not found and not windows:
        return []
    first = first_touched(config, found)
    order = points(config)
    learned = [
        Stage("train", number, config)
        for number, name in order
        if name == "train" and first is not None and order.index((number, name)) >= order.index(first)
    ]
    paths = [*(holding.path for holding in found), *windows]
    for stage in learned:
        paths += [stage.model_folder, stage.folder / "checkpoints"]
    quoting = ("set-aside", traces.FOLDER, judgements.FOLDER, ANSWERS)
    paths += [*(config.folder / name for name in quoting), report_path(config)]
    for folder in sorted((config.folder.parent / STUDIES).glob("*")):
        if config.run.startswith(f"{folder.name}-"):  # a run of this study, whose page quotes answers
            paths += [folder / "report.html", folder / "report.md"]
    paths += sorted(chain(*(config.folder.rglob(name) for name in (".*.tmp", ".*.old"))))  # of killed processes
    return [path for path in paths if path.exists()]


def _windows(config: RunConfig, ids: frozenset[str]) -> list[Path]:
    """The copy of its training prompts that a run of a series has, if it holds the rows."""
    path = config.folder / series.WINDOW
    if not path.exists():
        return []
    return [path] if any(row["prompt_id"] in ids for row in read_jsonl(path, key="prompt")) else []


def given_by(config: RunConfig, found: Iterable[Holding], ids: frozenset[str]) -> list[str]:
    """The user's own data that hold the rows, as the config names them."""
    tables = {holding.table for holding in found if holding.point in _FROZEN}
    settings: list[str] = sorted(tables & {"preferences", "feedback"})
    for folder, table, _ in _tables(config, _FROZEN):
        if table == "prompts":
            rows = store.read_table(folder, table).to_pylist()
            settings += [_SETTINGS[row["split"]] for row in rows if row["prompt_id"] in ids]
    if config.prompts.test_share is not None:  # which takes test prompts from the held-out ones
        settings = ["heldout" if name == "test" else name for name in settings]
    named = [f"prompts.{name}" for name in dict.fromkeys(settings)]
    begun = config.series.begun if config.series else None
    if begun is not None:  # its own prompts are a copy of rows of this file
        named = [f"{name} ({begun.train})" if name == "prompts.train" else name for name in named]
    return named
