"""The flows that people start by a form in the Prefect UI. Their parameters are the form: flat groups, no unions.

No fractions either: the pages at /v2 of Prefect 3.7.7 take whole numbers only, whatever the default of the field is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from data import packaged
from data.errors import BadInput
from flows import reward
from flows.recover import FLOW, REWARD_FLOW
from flows.rounds import work
from pco.config import names, reward_training
from pco.config.run import RunConfig, load
from pco.config.section import Section
from pco.rounds import is_over
from pco.runs.folder import read_config
from pco.runs.status import RunState

Preset = Literal["quickstart", "repetition", "instructions"]
RunName = Annotated[str, Field(pattern=RunConfig.model_fields["run"].metadata[0].pattern)]
NewRunName = Annotated[str, Field(pattern=names.PATTERN)]
RequiredText = Annotated[str, Field(pattern=r"\S")]  # a required text that is left empty is sent as ""


class PolicyChoice(Section):
    """The model to improve."""

    model: str = ""
    """A local Hugging Face folder or a hub id. Empty: the preset's."""


class PromptFiles(Section):
    """JSONL or Parquet files on the worker's machine. Empty: the preset's. For data of the hub or a mixture, write
    `prompts.train={dataset: owner/name, split: train}` into the overrides.
    """

    train: str = ""
    """Prompts that candidates are generated for in every round."""
    heldout: str = ""
    """Prompts that only the evaluation sees."""
    heldout_text: str = ""
    """Human prose on which the policy's perplexity is watched."""
    test: str = ""
    """Prompts that decide nothing: the starting and the best policy answer them once, at the end. Empty: no test."""


class Extent(Section):
    """How much is made."""

    rounds: int = Field(0, ge=0)
    """Rounds of generate, score, pair, train, evaluate, decide. 0: as many as the preset's."""
    seed: int = Field(0, ge=0)
    """Every random choice follows from it."""


class SeriesChoice(Section):
    """For a schedule: each run begins from the best policy of the last one, and takes prompts that none has used. Its
    name needs a date then, such as `nightly-{date}`.
    """

    name: str = ""
    """Name of the series. Empty: the run is of none."""
    prompts: int = Field(0, ge=0)
    """How many rows of the training prompts each run takes. 0: all that are new."""
    on_overlap: Literal["skip", "queue"] = "skip"
    """What becomes of a run while another one of the series is at work."""


@flow(name=FLOW, flow_run_name="{run}", persist_result=False)
def start(
    run: NewRunName,
    preset: Preset = "quickstart",
    policy: PolicyChoice = PolicyChoice(),  # noqa: B008  frozen
    prompts: PromptFiles = PromptFiles(),  # noqa: B008
    extent: Extent = Extent(),  # noqa: B008
    series: SeriesChoice = SeriesChoice(),  # noqa: B008
    overrides: str = "",  # not a list: the pages at /v2 of Prefect 3.7.7 send the items of a list as null
    runs_dir: str = "runs",
) -> str | State[str]:
    """Run the rounds of a preset with your changes, or resume them; returns the report's path.

    Args:
        run: Name of the run and of its folder. The name of a run that is there resumes it, with the same settings.
            `{date}` and `{time}` in it (UTC) are those at which the schedule has it start, also when it is retried.
        preset: What to begin with: a file of `configs/`, named the same.
        policy: The model to improve.
        prompts: JSONL or Parquet files on the worker's machine. Empty: the preset's.
        extent: How much is made.
        series: Begin from the best policy of the last run of a series, with new prompts.
        overrides: Any other settings as KEY=VALUE, one a line, e.g. train.learning_rate=1e-5. They have the last word.
        runs_dir: Folder that holds all runs, from the folder that `pco deploy` named.

    """
    fields = {
        "run": run,
        "runs_dir": runs_dir,
        "policy.model": policy.model,
        **{f"prompts.{name}": path for name, path in prompts},
        "rounds": extent.rounds or "",
        "seed": extent.seed,
        **_of_series(series),
    }
    return work(load(preset_file(preset), sets(fields, overrides), due=flow_run.scheduled_start_time))


def _of_series(choice: SeriesChoice) -> dict[str, str | float]:
    if not choice.name:
        return {}
    settings = {"name": choice.name, "prompts": choice.prompts or "", "on_overlap": choice.on_overlap}
    return {f"series.{name}": value for name, value in settings.items()}


def preset_file(name: str) -> Path:
    """A config of `configs/`, as it comes with pco."""
    return packaged.absolute(f"package:presets/{name}.yaml")


def sets(fields: Mapping[str, str | float], overrides: str) -> list[str]:
    """The fields of a form that are not empty, then its overrides, as of `pco run --set`."""
    return [
        *(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in fields.items() if value != ""),
        *lines(overrides),
    ]


def lines(text: str) -> list[str]:
    """The lines of a field that holds several values."""
    return list(filter(None, map(str.strip, text.splitlines())))


class Learning(Section):
    """How it learns. Everything else: overrides."""

    epochs: int = Field(1, ge=1)
    """Passes over the pairs."""
    length_penalty: str = Field("", pattern=r"^\d*\.?\d*$")
    """How much of what length alone tells is kept out of the reward: 0 nothing, 1 all of it. Empty: the preset's."""


@flow(name=REWARD_FLOW, flow_run_name="{run}", persist_result=False)
def train_reward(
    run: NewRunName,
    preferences: RequiredText,
    heldout: str = "",
    model: str = "",
    train: Learning = Learning(),  # noqa: B008  frozen
    overrides: str = "",
    runs_dir: str = "runs",
) -> str:
    """Train a reward model and test it on held-out pairs, or resume that; returns the report's path.

    Args:
        run: Name of the training and of its folder. The name of one that is there resumes it, with the same settings.
            `{date}` and `{time}` in it (UTC) are those at which the schedule has it start, also when it is retried.
        preferences: JSONL or Parquet file on the worker's machine with `prompt`, `chosen`, `rejected` a row.
        heldout: Such a file that only the test sees. Empty: a tenth of the prompts is held out.
        model: What it begins as: folder or hub id of a language, encoder or reward model. Empty: that of
            configs/reward.yaml.
        train: How it learns.
        overrides: Any other settings as KEY=VALUE, one a line, e.g. train.learning_rate=1e-5. They have the last word.
        runs_dir: Folder that holds all runs, from the folder that `pco deploy` named.

    """
    files = {"preferences": preferences, "heldout": heldout}
    learning = {f"train.{name}": value for name, value in train}
    fields = {"run": run, "runs_dir": runs_dir, "model": model, **files, **learning}
    due = flow_run.scheduled_start_time
    return reward.work(reward_training.load(preset_file("reward"), sets(fields, overrides), due=due))


@flow(name=FLOW, flow_run_name="{run}", persist_result=False)
def next_round(run: RunName, runs_dir: str = "runs") -> str | State[str]:
    """Make one more round of a run that is there, and its report; returns the report's path.

    Raises BadInput where the gate has ended the run: no round follows a refused one, or as many as it is patient with.

    Args:
        run: Name of the run.
        runs_dir: Folder that holds all runs, from the folder that `pco deploy` named.

    """
    config = read_config((Path(runs_dir) / run).resolve())
    promoted = RunState(config).promoted
    number = len(promoted) + 1
    config = config.model_copy(update={"rounds": max(config.rounds, number)})
    if is_over(config, promoted):
        change = "otherwise=roll_back" if config.gate.otherwise in {"stop", "ask"} else "patience=N"
        raise BadInput(
            f"{config.folder}: {RunState(config).reasons[-1]}. The gate lets no round follow. To go on "
            f"all the same: `pco resume {config.folder} --set gate.{change}`."
        )
    return work(config, until=number)
