"""The flows that people start by a form in the Prefect UI. Their parameters are the form: flat groups, no unions."""

import json
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from flows.deployments import home
from flows.recover import FLOW
from flows.rounds import work
from pco.config import RunConfig, load
from pco.rundir import read_config
from pco.section import Section
from pco.status import verdicts

Preset = Literal["quickstart", "repetition", "instructions"]
RunName = Annotated[str, Field(pattern=RunConfig.model_fields["run"].metadata[0].pattern)]


class PolicyChoice(Section):
    """The model to improve."""

    model: str = ""
    """A local Hugging Face folder or a hub id. Empty: the preset's."""


class PromptFiles(Section):
    """JSONL or Parquet files on the worker's machine. Empty: the preset's."""

    train: str = ""
    """Prompts that candidates are generated for in every round."""
    heldout: str = ""
    """Prompts that only the evaluation sees."""
    heldout_text: str = ""
    """Human prose on which the policy's perplexity is watched."""


class Extent(Section):
    """How much is made."""

    rounds: int = Field(2, ge=1)
    """Rounds of generate, score, pair, train, evaluate, decide."""
    seed: int = Field(0, ge=0)
    """Every random choice follows from it."""


@flow(name=FLOW, flow_run_name="{run}", persist_result=False)
def start(
    run: RunName,
    preset: Preset = "quickstart",
    policy: PolicyChoice = PolicyChoice(),  # noqa: B008  frozen
    prompts: PromptFiles = PromptFiles(),  # noqa: B008
    extent: Extent = Extent(),  # noqa: B008
    overrides: str = "",  # not a list: the pages at /v2 of Prefect 3.7.7 send the items of a list as null
    runs_dir: str = "runs",
) -> str:
    """Run the rounds of a preset with your changes, or resume them; returns the report's path.

    Args:
        run: Name of the run and of its folder. The name of a run that is there resumes it, with the same settings.
        preset: What to begin with: a file of `configs/`, named the same.
        policy: The model to improve.
        prompts: JSONL or Parquet files on the worker's machine. Empty: the preset's.
        extent: How much is made.
        overrides: Any other settings as KEY=VALUE, one a line, e.g. train.learning_rate=1e-5. They have the last word.
        runs_dir: Folder that holds all runs, from the folder that `pco deploy` named.

    """
    said = {
        "run": run,
        "runs_dir": runs_dir,
        "policy.model": policy.model,
        **{f"prompts.{name}": path for name, path in prompts},
        "rounds": extent.rounds,
        "seed": extent.seed,
    }
    return work(configured(preset, said, overrides.split("\n")))


def configured(preset: Preset, said: dict[str, str | int], overrides: list[str]) -> RunConfig:
    """The preset, then what the form says and does not leave empty, then the overrides.

    Raises BadInput that names each fault with its key.
    """
    sets = [f"{key}={json.dumps(value)}" for key, value in said.items() if value != ""]
    return load(home() / "configs" / f"{preset}.yaml", [*sets, *filter(None, map(str.strip, overrides))])


@flow(name=FLOW, flow_run_name="{run}", persist_result=False)
def next_round(run: RunName, runs_dir: str = "runs") -> str:
    """Make one more round of a run that is there, and its report; returns the report's path.

    Args:
        run: Name of the run.
        runs_dir: Folder that holds all runs, from the folder that `pco deploy` named.

    """
    config = read_config((Path(runs_dir) / run).resolve())
    number = len(verdicts(config)) + 1
    return work(config.model_copy(update={"rounds": max(config.rounds, number)}), until=number)
