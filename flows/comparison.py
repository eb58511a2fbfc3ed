"""Policies side by side as flows, so that a form or a schedule can ask for it: evaluated before, or now."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import Field

from data.store import Manifest
from flows.form import RequiredText, lines
from flows.holding import holding
from flows.recover import EVALUATE_FLOW
from pco.config.section import Section
from pco.evaluation import metrics
from pco.report import comparison, markdown
from pco.runs import standalone, verify
from pco.runs.folder import read_config
from pco.stage import Stage
from tasks.stages import run_stage

Level = Literal["0.9", "0.95", "0.99"]


class Evaluated(Section):
    """A policy that a run has evaluated."""

    run: str
    """Name of the run."""
    round: int = Field(ge=0)
    """The round that trained the policy; 0 is the starting policy."""

    def __str__(self) -> str:
        return f"{self.run}:{self.round}"


@flow(name="pco-compare", flow_run_name="{first} and {second}", persist_result=False)
def compare_policies(first: Evaluated, second: Evaluated, level: Level = "0.95", runs_dir: str = "runs") -> None:
    """Compare two evaluated policies on the held-out prompts that both have answered; the tables are an artifact.

    Args:
        first: The policy to compare with.
        second: The policy that may be better.
        level: Confidence level of the intervals.
        runs_dir: Folder that holds all runs, from the folder that `pco deploy` named.

    """
    _publish("pco-compare", {str(policy): _folder(policy, Path(runs_dir)) for policy in (first, second)}, level)


def _folder(policy: Evaluated, runs_dir: Path) -> Path:
    config = read_config((runs_dir / policy.run).resolve())
    return verify.evaluation(config, policy.round)


def _publish(key: str, folders: dict[str, Path], level: Level) -> None:
    evaluations = {name: metrics.read(folder) for name, folder in folders.items()}
    text = comparison.as_markdown(evaluations, level=float(level))
    create_markdown_artifact(text, key=key, description=markdown.escape(" and ".join(folders)))


def _named_after_policies() -> str:
    return " and ".join(lines(flow_run.parameters["policies"]))


@flow(name=EVALUATE_FLOW, flow_run_name=_named_after_policies, persist_result=False)
def evaluate_policies(
    policies: RequiredText,
    config: str = "",
    prompts: str = "",
    overrides: str = "",
    level: Level = "0.95",
    out: str = "",
    runs_dir: str = "runs",
) -> None:
    """Evaluate policies outside of a run, all on the same prompts and seeds; the tables are an artifact.

    Args:
        policies: RUN:ROUND, model folders or hub ids, one a line; the others are compared with the first.
        config: YAML file whose settings are used, e.g. configs/quickstart.yaml. Empty: that of the first policy's run.
        prompts: JSONL or Parquet file with a `prompt` a row. Empty: the config's held-out prompts.
        overrides: Other settings as KEY=VALUE, one a line, e.g. evaluate.samples=4. They replace what the config says.
        level: Confidence level of the intervals.
        out: Folder for the results. Empty: `evaluations` in the folder that holds all runs.
        runs_dir: Folder that holds all runs, from the folder that `pco deploy` named.

    """
    named, folder = lines(policies), _path(out) or Path(runs_dir) / standalone.FOLDER
    settings = standalone.settings(_path(config), named, Path(runs_dir), lines(overrides))
    plans = standalone.plans(settings, named, prompts=_path(prompts), out=folder, runs_dir=Path(runs_dir))
    with holding(*plans.values()):
        folders = {name: standalone.walk(plan, _task_for(name)) for name, plan in plans.items()}
        _publish("pco-evaluate", folders, level)


def _task_for(policy: str) -> Callable[[Stage], Manifest]:
    """A task for each stage, named after the policy."""

    def do(stage: Stage) -> Manifest:
        named = run_stage.with_options(task_run_name=lambda: f"{policy} · {stage.name}")
        return cast(Manifest, named(stage))  # only `decide` may await an answer

    return do


def _path(text: str) -> Path | None:
    return Path(text) if text else None
