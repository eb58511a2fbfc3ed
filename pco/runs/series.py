"""A series of runs on disk: which runs are of it, what the next one begins from, and that no two are at work at once.

What a run comes to is decided when it begins, under a lock of the series, and stands in its `config.yaml` from then on
(`config.series.begun`); its rows are copied to `window.jsonl` beside it. So a resume on another day changes nothing,
and to its stages a run of a series is like any other.
"""

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from data import files, store, windows
from data.errors import BadInput, CorruptArtifact, RunConflict, Skipped
from pco import rounds
from pco.config.file import OF_RUN, of_run
from pco.config.prompts import DataSource
from pco.config.run import RunConfig, in_its_series
from pco.config.series import Begun, Series
from pco.runs import retention
from pco.runs.folder import check_same, is_held, read_config, write_config
from pco.runs.status import RunState
from pco.stage import Artifact, Stage, file_fingerprint, source_fingerprint

WINDOW = "window.jsonl"  # a run's rows, in its folder
_ASK_AGAIN_S = 5.0


@dataclass(frozen=True)
class Member:
    """A run that has begun as one of a series."""

    config: RunConfig
    begun: Begun

    @cached_property
    def promoted(self) -> list[bool]:
        """Whether the gate promoted each round that is decided."""
        return RunState(self.config).promoted

    @property
    def is_over(self) -> bool:
        """Whether all its rounds are decided, or the gate ended it."""
        return bool(self.promoted) and rounds.is_over(self.config, self.promoted)

    @property
    def is_held(self) -> bool:
        """Whether a process writes to it now."""
        return is_held(self.config.folder)

    @property
    def awaits_answer(self) -> bool:
        """Whether it waits for a person to decide about a round."""
        try:
            RunState(self.config).awaited()
        except BadInput:
            return False
        return True

    @property
    def worked_until(self) -> float:
        """When its last round was decided, seconds since the epoch; 0 before that."""
        decided = (
            store.read_manifest(Stage("decide", n, self.config).folder) for n in range(1, self.config.rounds + 1)
        )
        return max((manifest.finished for manifest in decided if manifest), default=0.0)

    @property
    def best_round(self) -> int:
        """The round that trained its best policy; 0 if none was promoted."""
        return max((number for number, yes in enumerate(self.promoted, start=1) if yes), default=0)

    @property
    def best(self) -> tuple[int, Artifact]:
        """The round that trained its best policy, and this policy; 0 and the policy that it began from, if none did.

        Raises CorruptArtifact when the folder of the run does not tell.
        """
        number = self.best_round
        stage = Stage("train" if number else "prepare", number, self.config)
        manifest = store.read_manifest(stage.folder)
        if manifest is None:
            raise CorruptArtifact(f"{stage.folder}: holds no finished `{stage.name}`. {_restore(self.config.run)}")
        return number, stage.saved_model(manifest) if number else stage.starting_policy(manifest)


def members(runs_dir: Path, name: str) -> list[Member]:
    """The runs of a series in their order. A fork of one is none.

    Raises BadInput when a config.yaml in the folder cannot be read: it may be that of a run of the series.
    """
    found = []
    for path in runs_dir.glob(f"[!.]*/{OF_RUN}"):
        series = (of_run(path.parent) or {}).get("series")
        if isinstance(series, dict) and series.get("name") == name:
            config = read_config(path.parent)
            if config.begun is not None:
                found.append(Member(config, config.begun))
    return sorted(found, key=lambda member: member.begun.number)


def names(runs_dir: Path) -> list[str]:
    """The series that runs in a folder are of."""
    series = [(of_run(path.parent) or {}).get("series") for path in runs_dir.glob(f"[!.]*/{OF_RUN}")]
    return sorted({str(section["name"]) for section in series if isinstance(section, dict) and section.get("begun")})


@contextmanager
def entered(
    config: RunConfig, *, due: datetime | None = None, queue: Callable[[str], None] | None = None
) -> Iterator[RunConfig]:
    """The config with what the run comes to in its series, begun if it has not; any other config as it is.

    No other run of the series begins within the block, which takes hold of the run's folder. `due` is when the run was
    to start; now by default. `queue` is told what a run waits for that is not to be skipped; it returns when to look
    again, or raises. By default it waits a few seconds.

    Raises Skipped when the run is not to begin; BadInput, RunConflict or CorruptArtifact when it cannot.
    """
    series = config.series
    if series is None or _is_of_a_fork(config):
        yield config
        return
    due = due or datetime.now(UTC)
    while True:
        with _locked(config, series):
            config = in_its_series(config, of_run(config.folder))
            busy = "" if config.begun else _busy(config, series, due)
            if not busy:
                yield _resumed(config, config.begun) if config.begun else _begun(config, series)
                return
        if series.on_overlap == "skip":
            raise Skipped(f"{config.run}: not begun: {busy} (series.on_overlap: skip).")
        (queue or _wait)(f"{config.run} waits: {busy}.")


def _is_of_a_fork(config: RunConfig) -> bool:
    """A fork keeps the policy and the rows that its origin began with, and is a run of no series."""
    return config.series is not None and config.series.begun is not None and config.begun is None


@dataclass(frozen=True)
class Plan:
    """What a run comes to: the policy that it begins from, None for the series' first run, and its rows."""

    begun: Begun
    start: Artifact | None
    window: windows.Window


def plan(config: RunConfig, series: Series) -> Plan:
    """What a run of a series would come to if it began now.

    Raises Skipped where there is too little to learn from, BadInput where the config does not fit the series or the
    file of prompts changed, CorruptArtifact where the policy to begin from is gone or damaged.
    """
    earlier = members(Path(config.runs_dir), series.name)
    last = next((member for member in reversed(earlier) if member.is_over), None)
    if last is not None:
        _check_fits(config, last)
    begin = windows.Mark() if last is None else windows.Mark(last.begun.end_row, last.begun.end_byte, last.begun.digest)
    window = windows.after(Path(config.prompts.train), begin, most=series.prompts)  # type: ignore[arg-type]  # a path
    if window.rows < series.at_least:
        raise Skipped(
            f"{config.run}: not begun: {config.prompts.train} has {window.rows:,} rows after the {begin.rows:,} that "
            f"the series `{series.name}` has used, fewer than {series.at_least:,} (series.at_least)."
        )
    start: Artifact | None = None
    trained_by: tuple[str | None, int] = (None, 0)
    if last is not None:
        number, start = last.best
        # A run that promoted nothing hands on what it began from, which is named for the round that trained it.
        trained_by = (last.config.run, number) if number else (last.begun.from_run, last.begun.from_round)
        _check_whole(start, trained_by[0])
    begun = Begun(
        by=config.run,
        number=max((member.begun.number for member in earlier), default=0) + 1,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        model=config.policy.model,
        revision=config.policy.revision,
        train=str(config.prompts.train),
        from_run=trained_by[0],
        from_round=trained_by[1],
        policy=start.fingerprint if start else "",
        first_row=begin.rows,
        end_row=window.end.rows,
        end_byte=window.end.bytes,
        digest=window.end.digest,
        window=hashlib.sha256(window.content).hexdigest(),
    )
    return Plan(begun, start, window)


def start_of(begun: Begun) -> str:
    """The policy that a run begins from, in words."""
    if begun.from_run is None:
        return Path(begun.model).name if Path(begun.model).is_absolute() else begun.model
    return f"{begun.from_run}, round {begun.from_round}"


def rows_of(begun: Begun) -> str:
    """The rows of its window, counted from 1 as people do."""
    return f"{begun.first_row + 1:,} to {begun.end_row:,}"


def _wait(_: str) -> None:
    time.sleep(_ASK_AGAIN_S)


@contextmanager
def _locked(config: RunConfig, series: Series) -> Iterator[None]:
    """Only one run of a series at a time decides what it comes to. The lock of a process that dies is gone."""
    path = Path(config.runs_dir) / f".series-{series.name}.lock"
    with files.write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a", encoding="utf-8")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _busy(config: RunConfig, series: Series, due: datetime) -> str:
    """What keeps a run of a series from beginning; empty if nothing does."""
    for member in members(Path(config.runs_dir), series.name):
        if member.is_held:
            return f"{member.config.run} is still at work"
        if not member.is_over and member.awaits_answer:
            return f"{member.config.run} waits for a person's answer"
        if series.on_overlap == "skip" and member.worked_until > due.timestamp():
            return f"{member.config.run} was at work after {due.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, when it was due"
    return ""


def _begun(config: RunConfig, series: Series) -> RunConfig:
    """Decide what a run comes to, and write it down with the run's rows."""
    check_same(config)  # a run of this name that is there was made without a series, or in another one
    planned = plan(config, series)
    policy = config.policy
    if planned.start is not None:
        policy = policy.model_copy(update={"model": str(planned.start.folder), "revision": None})
    prompts = config.prompts.model_copy(update={"train": str(config.folder / WINDOW)})
    series = series.model_copy(update={"begun": planned.begun})
    config = config.model_copy(update={"series": series, "policy": policy, "prompts": prompts})
    with files.atomic_path(config.folder / WINDOW) as path:
        path.write_bytes(planned.window.content)
    write_config(config, config.folder)
    return config


def _resumed(config: RunConfig, begun: Begun) -> RunConfig:
    """The same, after a check that what it came to still holds."""
    check_same(config)
    for later in members(Path(config.runs_dir), config.series.name if config.series else ""):
        if later.begun.number > begun.number and later.begun.first_row < begun.end_row:
            raise RunConflict(
                f"{config.run}: was not finished when {later.config.run} began, which has taken its place in the "
                f"series, and its rows {rows_of(begun)}. To go on with it all the same, outside of the series: "
                f"`pco fork {config.run} NEW`."
            )
    if store.read_manifest(Stage("prepare", 0, config).folder) is None:
        if begun.policy:
            _check_whole(Artifact(Path(config.policy.model), begun.policy), begun.from_run)
        window = config.folder / WINDOW
        if not window.exists() or files.file_digest(window) != begun.window:
            raise CorruptArtifact(f"{window}: is not what it was when {config.run} began. Restore it from a copy.")
    return config


def _check_fits(config: RunConfig, last: Member) -> None:
    """Raise BadInput where a run could not be held against the best of the series, or would not begin from it."""
    begun, prepared = last.begun, store.read_manifest(Stage("prepare", 0, last.config).folder)
    if (config.policy.model, config.policy.revision) != (begun.model, begun.revision):
        raise BadInput(
            f"policy.model: {config.policy.model}, but the series `{_name(last)}` began from {begun.model}, and "
            "goes on from its best policy. Leave it as it was, or begin a new series."
        )
    heldout = config.prompts.heldout
    recorded = prepared.inputs.get("heldout") if prepared else None
    if isinstance(heldout, DataSource):
        now = source_fingerprint(heldout, recorded, key="prompts.heldout")
    else:
        now = file_fingerprint(Path(heldout), recorded, key="prompts.heldout")
    settings = [
        (prompts.heldout_limit, prompts.test_share, prompts.exclude)
        for prompts in (config.prompts, last.config.prompts)
    ]
    if recorded != now or settings[0] != settings[1]:
        raise BadInput(
            f"prompts.heldout: are not those of {last.config.run}, and a run is held against the best policy of its "
            f"series `{_name(last)}` on the same prompts. Restore them (and `heldout_limit`, `test_share`, `exclude`), "
            "or begin a new series."
        )


def _name(member: Member) -> str:
    return member.config.series.name if member.config.series else ""


def _check_whole(policy: Artifact, run: str | None) -> None:
    """Raise CorruptArtifact where the policy to begin from is not as its run left it; None: as the series found it."""
    named = f"the best policy of {run}" if run else "the policy that the series began from"
    if not policy.folder.is_dir():
        why = "was removed to save room (`keep_last`)" if retention.was_removed(policy.folder) else "is gone"
        raise CorruptArtifact(f"{policy.folder}: {named} {why}. {_restore(run)}")
    if files.folder_digest(policy.folder) != policy.fingerprint:
        raise CorruptArtifact(f"{policy.folder}: {named} is not what it was. {_restore(run)}")


def _restore(run: str | None) -> str:
    if run is None:
        return "Restore it from a copy."
    return (
        f"Restore the folder of {run} from a copy. Without one, remove what is left of it: the next run of the series "
        "begins from the run before it, with the same rows."
    )
