"""What a run's folder says of the run, without starting anything."""

from dataclasses import dataclass
from pathlib import Path

from data import store
from data.errors import BadInput
from pco.config import RunConfig
from pco.launcher import error_path
from pco.rundir import CONFIG, is_held, read_config
from pco.stage import Stage, StageName, stages_of


@dataclass(frozen=True)
class RunLine:
    """One run among others."""

    name: str
    rounds: int
    decided: int
    state: str
    report: Path | None


@dataclass(frozen=True)
class StageLine:
    """One stage of a run.

    `state` is `done`, `running`, `failed: why`, `interrupted` or `not started`.
    """

    round: int
    stage: StageName
    state: str
    rows: str = ""
    dropped: str = ""
    time: str = ""


def of_all(runs_dir: Path) -> list[RunLine]:
    """Every run under a folder, by name."""
    return [_run_line(read_config(path.parent)) for path in sorted(runs_dir.resolve().glob(f"*/{CONFIG}"))]


def _run_line(config: RunConfig) -> RunLine:
    decisions = _decisions(config)
    refused = any(manifest.outputs["promoted"] == "no" for manifest in decisions)
    done = len(decisions) >= config.rounds
    report = config.folder / "report.html"
    running = "running" if is_held(config.folder) else "unfinished"
    state = "refused by the gate" if refused else "finished" if done else running
    return RunLine(config.run, config.rounds, len(decisions), state, report if report.exists() else None)


def _decisions(config: RunConfig) -> list[store.Manifest]:
    manifests = [store.read_manifest(_folder(config, number, "decide")) for number in range(1, config.rounds + 1)]
    return [manifest for manifest in manifests if manifest is not None]


def verdicts(config: RunConfig) -> list[str]:
    """The gate's sentence on each round."""
    return [manifest.outputs["reason"] for manifest in _decisions(config)]


def of_run(config: RunConfig) -> list[StageLine]:
    """Every stage of every round, in the order in which they run."""
    numbers = range(config.rounds + 1)
    return [_stage_line(config, number, name) for number in numbers for name in stages_of(config, number)]


def _stage_line(config: RunConfig, number: int, name: StageName) -> StageLine:
    folder = _folder(config, number, name)
    manifest = store.read_manifest(folder)
    if manifest is not None:
        dropped = "; ".join(f"{count} {reason}" for reason, count in manifest.dropped.items() if count)
        return StageLine(number, name, "done", counted(manifest), dropped, f"{manifest.seconds:,.0f} s")
    committed = len(list(folder.glob("*.parquet")))
    return StageLine(number, name, _unfinished(config, number, name), f"{committed} shards" if committed else "")


def _unfinished(config: RunConfig, number: int, name: StageName) -> str:
    """A stage that has failed may be running again: its error file is gone then."""
    error = error_path(config, number, name)
    if error.exists():
        return f"failed: {error.read_text(encoding='utf-8').partition(chr(10))[0]}"
    if not error.with_suffix(".log").exists():
        return "not started"
    return "running" if is_held(config.folder) else "interrupted"


def counted(manifest: store.Manifest) -> str:
    """How many rows came out, and of how many where some were dropped."""
    of = f" of {manifest.rows_in:,}" if manifest.rows_in != manifest.rows_out else ""
    return f"{manifest.rows_out:,}{of} {manifest.unit}"


def folders_with(config: RunConfig, table: str, number: int | None) -> list[tuple[str, Path]]:
    """The finished stage folders that hold a table, with words for where they are.

    Raises BadInput when there is none.
    """
    found = []
    for line in of_run(config):
        folder = _folder(config, line.round, line.stage)
        manifest = store.read_manifest(folder)
        if manifest and number in {None, line.round} and table in {part.table for part in manifest.parts}:
            found.append((f"round {line.round}, {line.stage}", folder))
    if not found:
        where = "" if number is None else f" in round {number}"
        raise BadInput(
            f"{config.folder}: no finished stage holds a `{table}` table{where}. `pco status` shows what is done."
        )
    return found


def _folder(config: RunConfig, number: int, name: StageName) -> Path:
    return Stage(name, number, config, {}).folder
