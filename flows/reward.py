"""The training of a reward model as a Prefect flow: every stage a task, the report at the end."""

import re

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.ask import asking
from flows.holding import holding
from flows.recover import REWARD_FLOW
from pco.config.reward_training import RewardTraining
from pco.reward_training import order
from tasks.stages import run_stage, shown_if_possible


@flow(name=REWARD_FLOW, flow_run_name="{config.run}", persist_result=False, validate_parameters=True)
def train_reward(config: RewardTraining) -> str:
    """Train a reward model and test it on held-out pairs; returns the report's path.

    What is finished on disk is not done again, so the same call resumes a training that died.
    """
    return work(config)


def work(config: RewardTraining) -> str:
    """The body of every flow that trains a reward model."""
    with holding(config):
        order.walk(config, asking(run_stage))
        return _publish(config)


def _publish(config: RewardTraining) -> str:
    from pco.report import reward

    path = str(reward.write(config))
    with shown_if_possible("the report"):
        key = re.sub(r"[^a-z0-9]+", "-", f"{config.run}-report".lower()).strip("-")
        create_markdown_artifact(reward.as_markdown(config), key=key, description=f"Report: {path}")
    return path
