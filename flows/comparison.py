"""Two policies side by side as a flow, so that a form or a schedule can ask for it."""

from dataclasses import asdict
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_table_artifact
from pydantic import Field

from pco import compare, evaluate, status
from pco.rundir import read_config
from pco.section import Section


class Evaluated(Section):
    """A policy that a run has evaluated."""

    run: str
    """Name of the run."""
    round: int = Field(ge=0)
    """The round that trained the policy; 0 is the starting policy."""


@flow(
    name="pco-compare", flow_run_name="{first.run}:{first.round} and {second.run}:{second.round}", persist_result=False
)
def compare_policies(first: Evaluated, second: Evaluated, level: float = 0.95, runs_dir: str = "runs") -> None:
    """Compare two evaluated policies on the held-out prompts that both have answered; the table is an artifact.

    Args:
        first: The policy to compare with.
        second: The policy that may be better.
        level: Confidence level of the intervals.
        runs_dir: Folder that holds all runs, from the folder that `pco deploy` named.

    """
    rows = [evaluate.read(_folder(one, Path(runs_dir))) for one in (first, second)]
    lines = compare.compare(rows[0], rows[1], level=level)
    create_table_artifact([asdict(line) for line in lines], key="pco-compare", description="Second less first, paired")


def _folder(one: Evaluated, runs_dir: Path) -> Path:
    config = read_config((runs_dir / one.run).resolve())
    return status.folders_with(config, "evaluations", one.round)[-1][1]
