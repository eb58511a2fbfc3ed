"""What trackers are told of a run, read from its tables and manifests."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import files, store
from pco.config.run import RunConfig
from pco.evaluation.decision import Decision
from pco.runs.folder import report_path
from pco.runs.status import points
from pco.stage import Stage, flat

LARGEST = 100 * 2**20  # bytes; a larger table stays where it is
_SAMPLING = {"engine_start_s", "sampling_s", "tokens", "tokens_per_s"}


@dataclass(frozen=True)
class Point:
    """A value of a metric at a step; `time` is in seconds since the epoch."""

    name: str
    step: int
    value: float
    time: float


@dataclass(frozen=True)
class Part:
    """What one finished stage adds, or the report.

    `steps` are the `train/` metrics at their optimizer steps; `values` all others, at the round as their step.
    """

    round: int
    stage: str
    fingerprint: str
    steps: tuple[Point, ...] = ()
    values: tuple[Point, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def key(self) -> str:
        """Its name among the parts of the run."""
        return f"{child(self.round)}/{self.stage}"


def child(number: int) -> str:
    """The name of a round among a tracker's runs; round 0 is the evaluation of the starting policy."""
    return f"round-{number:02}"


def parts(config: RunConfig) -> Iterator[Part]:
    """What is finished, in the order in which it was made; the report of the run comes last."""
    for number, name in points(config):
        stage = Stage(name, number, config)
        if (manifest := store.read_manifest(stage.folder)) is not None:
            yield _part(stage, manifest)
    report = report_path(config)
    if report.exists():
        yield Part(0, "report", files.file_digest(report), files=(report,))


def settings(config: RunConfig) -> dict[str, Any]:
    """All settings as `section.key: value`."""
    return flat(config.model_dump(mode="json"))


def _part(stage: Stage, manifest: store.Manifest) -> Part:
    tables = [stage.folder / part.file for part in manifest.parts]
    small = sum(path.stat().st_size for path in tables) <= LARGEST
    return Part(
        stage.round,
        str(stage.name),
        manifest.fingerprint,
        steps=tuple(_steps(stage, manifest)) if stage.name == "train" else (),
        values=tuple(_finite(_values(stage, manifest))),
        files=tuple(tables) if small else (),
    )


def _steps(stage: Stage, manifest: store.Manifest) -> Iterator[Point]:
    log = store.read_table(stage.folder, "train_log").to_pylist()
    time = manifest.finished - sum(row["seconds"] for row in log)
    for row in log:
        time += row["seconds"]
        for name, value in row.items():
            if name != "step" and value is not None and math.isfinite(value):
                yield Point(f"train/{name}", row["step"], float(value), time)


def _values(stage: Stage, manifest: store.Manifest) -> Iterator[Point]:
    yield _value(stage, manifest, f"cost/{stage.name}", "seconds", manifest.seconds)
    for name, value in manifest.metrics.items():
        is_result = stage.name == "evaluate" and name not in _SAMPLING
        yield _value(stage, manifest, "eval" if is_result else f"cost/{stage.name}", name, value)
    if stage.name == "decide":
        yield _value(stage, manifest, "gate", "promoted", Decision.of(manifest).promoted)
        for row in store.read_table(stage.folder, "decisions").to_pylist():
            for name in ("value", "low", "high", "passed"):
                if row[name] is not None:
                    yield _value(stage, manifest, f"gate/{_plain(row['rule'])}", name, row[name])


def _value(stage: Stage, manifest: store.Manifest, group: str, name: str, value: float) -> Point:
    return Point(f"{group}/{_plain(name)}", stage.round, float(value), manifest.finished)


def _plain(name: str) -> str:
    """A name without what some trackers refuse. No `/`: where metrics are files, one cannot lie below another."""
    return re.sub(r"[^\w.-]", "_", name)


def _finite(found: Iterator[Point]) -> Iterator[Point]:
    return (point for point in found if math.isfinite(point.value))
