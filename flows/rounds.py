"""The multi-round run: generate, score, pair, train, evaluate, decide, and again from the promoted policy."""

import re
from functools import partial
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from pco import policy
from pco.config import DPO, IPO, RunConfig
from pco.prepare import planned as prepared
from pco.rundir import opened
from pco.stage import Artifact, Stage
from tasks.stages import run_stage


@flow(name="pco-rounds", flow_run_name="{config.run}", persist_result=False, validate_parameters=True)
def run_rounds(config: RunConfig) -> str:
    """Run the rounds of a config until they are through or the gate refuses one; returns the report's path.

    What is finished on disk is not done again, so the same call resumes a run that died.
    """
    with opened(config):
        prepare = prepared(config)
        current = start_policy = policy.starting(run_stage(prepare))
        start = previous = _done(Stage("evaluate", 0, config, {"policy": start_policy, "prompts": prepare.artifact}))
        for number in range(1, config.rounds + 1):
            stage = partial(Stage, round=number, config=config)
            candidates = _done(stage("generate", inputs={"policy": current, "prompts": prepare.artifact}))
            scores = _done(stage("score", inputs={"candidates": candidates}))
            pairs = _done(stage("pair", inputs={"candidates": candidates, "scores": scores}))
            learned = {"policy": current, "pairs": pairs}
            if config.prompts.feedback is not None:
                learned["prompts"] = prepare.artifact
            if (reference := _reference(config, current, start_policy)) is not None:
                learned["reference"] = _done(stage("refer", inputs={"policy": reference, "pairs": pairs}))
            train = stage("train", inputs=learned)
            trained = policy.trained(train, run_stage(train))
            measured = {"policy": trained, "prompts": prepare.artifact, "start": start, "previous": previous}
            evaluation = _done(stage("evaluate", inputs=measured))
            judged = {"evaluation": evaluation, "previous": previous, "start": start}
            decision = run_stage(stage("decide", inputs=judged))
            _publish_round(config, number)
            if decision.outputs["promoted"] == "no":
                break
            current, previous = trained, evaluation
        return str(_publish_run(config))


def _reference(config: RunConfig, current: Artifact, start: Artifact) -> Artifact | None:
    """The policy whose log-probabilities the loss needs, if it needs any."""
    loss = config.train.loss
    if not isinstance(loss, DPO | IPO):
        return None
    return current if loss.reference == "previous" else start


def _done(stage: Stage) -> Artifact:
    run_stage(stage)
    return stage.artifact


def _publish_round(config: RunConfig, number: int) -> None:
    from pco import report

    create_markdown_artifact(
        report.round_markdown(config, number), key=_key(config, f"round-{number}"), description=f"Round {number}"
    )


def _publish_run(config: RunConfig) -> Path:
    from pco import report

    path: Path = report.write(config)
    create_markdown_artifact(report.run_markdown(config), key=_key(config, "report"), description=f"Report: {path}")
    return path


def _key(config: RunConfig, name: str) -> str:
    """Prefect allows lower-case letters, digits and dashes in an artifact's key."""
    return re.sub(r"[^a-z0-9]+", "-", f"{config.run}-{name}".lower()).strip("-")
