"""pco from Python, without Prefect: load a config, run it or resume it, read what it made, evaluate policies.

Every function raises an error of `data.errors` that says what was wrong and what to do.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from data import store
from data.errors import BadInput
from data.store import Manifest
from pco import report, rounds
from pco.config import run as run_config
from pco.config.overrides import overridden
from pco.config.run import RunConfig
from pco.execution.executor import Executor, LocalExecutor
from pco.progress import Progress
from pco.runs import final_test, series, standalone
from pco.runs import folder as run_folder
from pco.runs.after_round import keep_best
from pco.runs.status import RunState, points
from pco.specs import TESTS, StageName
from pco.stage import Artifact, Stage
from pco.tracking import following

_APART = ("prepare_test", *TESTS)  # whose tables no one takes for those of a round
OnProgress = Callable[[Stage, Progress], None]
OnLog = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """A run on disk, finished or not. Its folder is read anew whenever something is asked of it."""

    config: RunConfig

    @property
    def folder(self) -> Path:
        """Where everything of the run lies."""
        return self.config.folder

    @property
    def report(self) -> Path | None:
        """The HTML report, once it is written."""
        path = run_folder.report_path(self.config)
        return path if path.exists() else None

    @property
    def best(self) -> Path | None:
        """The folder of the best policy so far, in Hugging Face's format; None before the first round is decided."""
        link = self.folder / run_folder.BEST
        return link.resolve() if link.exists() else None

    @property
    def promoted(self) -> list[bool]:
        """Of each decided round, whether the gate promoted its policy."""
        return RunState(self.config).promoted

    @property
    def reasons(self) -> list[str]:
        """Of each decided round, the gate's sentence on it."""
        return RunState(self.config).reasons

    @property
    def tests(self) -> pa.Table | None:
        """The best policy against the starting one on the test prompts: metric, start, best, difference, low, high.

        None without a finished test. `looks` says how many policies were put to the test set.
        """
        found = final_test.tested(self.config)
        return None if found is None else store.read_table(found[0], "tests")

    @property
    def looks(self) -> int:
        """How many policies were put to the run's test set, by it and by the runs that it was forked from."""
        return final_test.looks_at(self.config)

    def table(self, name: str, *, round: int, stage: StageName | None = None) -> pa.Table:
        """One of the tables of `data/schemas.py` as Arrow, its checksums verified; `.to_pandas()` makes a data frame.

        Args:
            name: E.g. `pairs`, `scores`, `candidates`, `evaluations`, `train_log`, `decisions`.
            round: The round that made it; round 0 holds the prompts and the evaluation of the starting policy.
            stage: Which stage made it, where two of a round have a table of this name: the `candidates` of `generate`
                are for training, those of `evaluate` are held out. Tables of the test prompts are read by their stage
                alone: `prepare_test`, `test_start` or `test`.

        Raises BadInput when no finished stage holds it, or two do; CorruptArtifact when a file was altered.

        """
        folders = {
            step: Stage(step, number, self.config).folder
            for number, step in points(self.config)
            if number == round and (step == stage or (stage is None and (name == "tests" or step not in _APART)))
        }
        holding = {step: folder for step, folder in folders.items() if _holds(folder, name)}
        if len(holding) > 1:
            raise BadInput(f"stage: {' and '.join(holding)} of round {round} both have a table `{name}`; name one.")
        if not holding:
            raise BadInput(
                f"{self.folder}: no finished stage of round {round} holds a table `{name}`. `pco status` shows what is "
                "done."
            )
        (folder,) = holding.values()
        return store.read_table(folder, name)


def _holds(folder: Path, table: str) -> bool:
    manifest = store.read_manifest(folder)
    return manifest is not None and table in {part.table for part in manifest.parts}


def load(config: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """A config from a YAML file, from `package:presets/NAME.yaml`, or from a mapping, with `a.b=value` overrides.

    Raises BadInput that lists every fault with its key.
    """
    if isinstance(config, Mapping):
        return run_config.parse(overridden(RunConfig, dict(config), list(overrides)), source="config")
    return run_config.load(Path(config), list(overrides))


def run(
    config: RunConfig,
    *,
    executor: Executor = LocalExecutor(),  # noqa: B008  frozen
    on_progress: OnProgress = lambda *_: None,
    on_log: OnLog = lambda _: None,
) -> Run:
    """Run all rounds of a config, or those that are missing: the same call resumes a run that died.

    A failed stage is not tried again; what is finished is kept.

    Args:
        config: What `load` returns.
        executor: Where stages run; by default each in a process of its own on this machine, which ends with this one.
        on_progress: Called with the stage at work and how far it is, at most twice a second.
        on_log: Called with each line that the engines print, and with a warning where a tracker cannot be told.

    Raises RunConflict when another process writes to this run, or it was made with another config; StageFailed when a
    stage's process died; AwaitsAnswer when the gate leaves a refused round to a person; Skipped when a run of a series
    does not begin; what a stage itself raises.

    """

    def decided(number: int, best: Artifact) -> None:
        keep_best(config, number, best)

    with ExitStack() as stack:
        with series.entered(config) as begun:
            config = begun
            stack.enter_context(run_folder.opened(config))
        told = stack.enter_context(following(config, on_log))
        rounds.walk(config, told(_doing(executor, on_progress, on_log)), decided=decided)
        report.write(config)
    return Run(config)


def find(name: str | Path, *, runs_dir: str | Path = "runs") -> Run:
    """A run on disk by its name under `runs_dir`, or by the path of its folder.

    Raises BadInput when there is none.
    """
    if isinstance(name, Path):
        return Run(run_folder.read_config(name.resolve()))
    return Run(run_folder.find(name, Path(runs_dir)))


def test(
    name: str | Path,
    *,
    prompts: str | Path | None = None,
    again: bool = False,
    runs_dir: str | Path = "runs",
    executor: Executor = LocalExecutor(),  # noqa: B008
    on_progress: OnProgress = lambda *_: None,
    on_log: OnLog = lambda _: None,
) -> Run:
    """Put the starting and the best policy of a run that has ended to its test set, as `pco test` does.

    Args:
        name: Name of the run, or the path of its folder.
        prompts: JSONL or Parquet file of the test prompts, for a run without `prompts.test`.
        again: Look at the test set although another policy was put to it before. The report counts it.
        runs_dir: As for `find`.
        executor: As for `run`.
        on_progress: As for `run`.
        on_log: As for `run`.

    Raises BadInput when the run has not ended, has no test set, or has looked at it before; what `run` raises.

    """
    found = find(name, runs_dir=runs_dir).config
    config = found if prompts is None else final_test.with_prompts(found, Path(prompts))
    final_test.check(config)
    with run_folder.opened(config):
        final_test.walk(config, _doing(executor, on_progress, on_log), again=again)
        report.write(config)
    return Run(config)


def evaluate(
    policies: Sequence[str],
    *,
    config: str | Path | None = None,
    prompts: str | Path | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    runs_dir: str | Path = "runs",
    executor: Executor = LocalExecutor(),  # noqa: B008
    on_progress: OnProgress = lambda *_: None,
    on_log: OnLog = lambda _: None,
) -> dict[str, pa.Table]:
    """Evaluate policies outside of a run, all on the same prompts and seeds, as `pco evaluate` does.

    Args:
        policies: Model folders, hub ids, or `RUN:ROUND`.
        config: YAML file whose settings are used; by default that of the first policy's run.
        prompts: JSONL or Parquet file with a `prompt` a row; by default the config's held-out prompts.
        overrides: `a.b=value` strings for the config.
        out: Folder for the results; by default `evaluations` in `runs_dir`. What is finished there is not done again.
        runs_dir: Folder that holds all runs.
        executor: As for `run`.
        on_progress: As for `run`.
        on_log: As for `run`.

    Returns the table `evaluations` of each policy by its name: measure, mode, prompt_id, sample, value, policy.

    """
    names, folder = list(policies), Path(runs_dir)
    settings = standalone.settings(Path(config) if config else None, names, folder, list(overrides))
    plans = standalone.plans(
        settings,
        names,
        prompts=Path(prompts) if prompts else None,
        out=Path(out) if out else folder / standalone.FOLDER,
        runs_dir=folder,
    )
    tables = {}
    for name, plan in plans.items():
        with run_folder.opened(plan):
            tables[name] = store.read_table(standalone.walk(plan, _doing(executor, on_progress, on_log)), "evaluations")
    return tables


def _doing(executor: Executor, on_progress: OnProgress, on_log: OnLog) -> Callable[[Stage], Manifest]:
    return lambda stage: executor.run(stage, on_progress=partial(on_progress, stage), on_log=on_log)
