"""The test set of a run that has ended: the starting and the best policy put to it, once (docs/evaluation.md)."""

from collections.abc import Callable
from pathlib import Path

from data import packaged, store
from data.errors import BadInput
from data.rows import FinalTestRow
from pco import rounds
from pco.config.run import RunConfig
from pco.evaluation import looks
from pco.runs.status import RunState
from pco.specs import TESTS
from pco.stage import Stage


def with_prompts(config: RunConfig, path: Path) -> RunConfig:
    """The config of a run with a test set."""
    prompts = config.prompts.model_copy(update={"test": str(packaged.absolute(path)), "test_share": None})
    return config.model_copy(update={"prompts": prompts})


def check(config: RunConfig) -> None:
    """Raise BadInput where there is nothing to look at yet: no test set is named, or the run has not ended."""
    run, state = config.run, RunState(config)
    if not config.prompts.has_test:
        raise BadInput(f"{run}: has no test set. Name one: `pco test {run} --prompts FILE`.")
    if not (state.promoted and rounds.is_over(config, state.promoted)):
        raise BadInput(
            f"{run}: has not ended: {len(state.promoted)} of {config.rounds} rounds are decided. A test set is looked "
            f"at when nothing more will be decided: `pco resume {run}`, or take fewer rounds (`--set rounds=N`)."
        )


def is_needed(config: RunConfig) -> bool:
    """Whether a run that has ended has a best policy other than the starting one."""
    return any(RunState(config).promoted)


def walk(config: RunConfig, do: Callable[[Stage], store.Manifest], *, again: bool = False) -> None:
    """Hand the stages of the test to `do`, which makes sure that each is finished. All others must be.

    Raises BadInput when the run has not ended, or another policy was put to the test set before and not `again`.
    """
    check(config)
    visited = []

    def visit(stage: Stage) -> store.Manifest:
        visited.append(stage.name)
        if stage.name == "prepare_test" or stage.name in TESTS:
            return do(stage)
        manifest = stage.finished()
        if manifest is None:
            raise BadInput(f"{stage.title}: is not finished. `pco resume {config.run}` first.")
        return manifest

    rounds.walk(config, visit, again=again)
    if is_needed(config) and "test" not in visited:
        count = looks_at(config)
        raise BadInput(
            f"{config.run}: its test set was looked at {times(count)} already, for a policy that was the best before. "
            "Whoever looks, goes on and looks again keeps what the test set happens to like. With `--again` you look "
            f"all the same, and the report says that it was looked at {times(count + 1)}."
        )


def looks_at(config: RunConfig) -> int:
    """How many policies were put to the run's test set, by it and by the runs that it was forked from."""
    frozen = store.read_manifest(Stage("prepare_test", 0, config).folder)
    return looks.count(looks.read(config.folder), frozen.inputs["test"]) if frozen else 0


def times(count: int) -> str:
    """How often, in words."""
    return "once" if count == 1 else f"{count} times"


def tested(config: RunConfig) -> tuple[Path, store.Manifest] | None:
    """The folder and manifest of the last finished test; None if there is none."""
    for number in reversed(rounds.test_rounds(config)):
        folder = Stage("test", number, config).folder
        manifest = store.read_manifest(folder)
        if manifest is not None:
            return folder, manifest
    return None


def rows(config: RunConfig) -> list[FinalTestRow]:
    """The differences of the last finished test; none if there is none."""
    found = tested(config)
    if found is None:
        return []
    content: list[FinalTestRow] = store.read_table(found[0], "tests").to_pylist()
    return content


def tested_round(config: RunConfig) -> int | None:
    """The round that trained the policy of the last finished test."""
    found = tested(config)
    if found is None:
        return None
    for number in range(config.rounds, 0, -1):
        trained = store.read_manifest(Stage("train", number, config).folder)
        if trained is not None and trained.outputs["policy"] == found[1].inputs["policy"]:
            return number
    return None
