"""A run on disk as its stages leave it, small and without a model, up to whatever stage a test wants."""

import time
from pathlib import Path
from typing import Any

from data import schemas, store
from pco.config.gate import Gate
from pco.config.run import RunConfig
from pco.evaluation import gate, metrics
from pco.evaluation.decision import Decision
from pco.rewards.programs import repeated_share
from pco.specs import StageName, stages_of
from pco.stage import Artifact, Stage
from tests import builders

Row = dict[str, Any]

REPEATING = [1, 2, 3] * 8
VARIED = list(range(24))


def stage_of(config: RunConfig, number: int, name: StageName) -> Stage:
    return Stage(name, number, config, {"policy": Artifact(Path("policy"), f"digest-{number}")})


def finish(config: RunConfig, number: int, name: StageName, table: str, rows: list[Row], **account: Any) -> None:
    """Commit rows and the manifest as the stage itself would."""
    stage = stage_of(config, number, name)
    store.write_part(stage.folder, table, 0, schemas.build(table, rows), stage.fingerprint)
    account = {"unit": "rows", "rows_in": len(rows), "rows_out": len(rows), "dropped": {}, **account}
    stage.finish(started=time.time() - 2, **account)


def candidate(prompt: str, mode: str, sample: int, tokens: list[int], text: str) -> Row:
    row = builders.candidate_row(prompt, sample, tokens, mode)
    return {**row, "prompt_id": prompt, "prompt": f"rendered {prompt}", "completion": f"{text} {tokens[:3]}"}


def prepare(config: RunConfig, text: str) -> None:
    rows = [
        {"split": split, "prompt_id": f"{split}{i}", "source_id": None, "prompt": f"{split} prompt {i} {text}"}
        for split in ("train", "heldout", "text")
        for i in range(4)
    ]
    finish(config, 0, "prepare", "prompts", rows)


def evaluate(config: RunConfig, number: int, text: str, perplexity_logprob: float) -> None:
    """Round r's policy repeats itself on 4 - r of the 4 held-out prompts."""
    rows = [
        candidate(f"heldout{i}", mode, sample, VARIED if i < number else REPEATING, text)
        for i in range(4)
        for mode, sample in (("greedy", 0), ("sampled", 0))
    ]
    stage = stage_of(config, number, "evaluate")
    store.write_part(stage.folder, "candidates", 0, schemas.build("candidates", rows), stage.fingerprint)
    rewards = [-repeated_share(row["token_ids"], 3) for row in rows]
    second = [-0.1 * number] * len(rows) if config.evaluate.second_reward else None  # ever worse, whatever is written
    values = metrics.completion_rows(rows, rewards, second_rewards=second)
    values += metrics.text_rows(["text0"], [(perplexity_logprob, 10)])
    for name, other in (("start", 0), ("previous", number - 1)) if number else ():
        against = store.read_table(stage_of(config, other, "evaluate").folder, "evaluations").to_pylist()
        values += metrics.rows_against(name, values, against)
    if number:
        values += metrics.drift_rows(values, against)
    values += metrics.corpus_rows(rows)
    speed = {"engine_start_s": 0.5, "sampling_s": 1.0, "tokens": 192, "tokens_per_s": 192.0}
    marked = [{**row, "policy": "digest"} for row in values]
    finish(config, number, "evaluate", "evaluations", marked, metrics=speed)


def generate(config: RunConfig, number: int, text: str) -> None:
    rows = [candidate(f"train{i}", "sampled", j, VARIED, text) for i in range(4) for j in range(2)]
    finish(config, number, "generate", "candidates", rows)


def score(config: RunConfig, number: int) -> None:
    rows = [
        {"prompt_id": f"train{i}", "sample": j, "reward": -j / 2, "reward_model": "m"}
        for i in range(4)
        for j in range(2)
    ]
    finish(config, number, "score", "scores", rows)


def pair(config: RunConfig, number: int, text: str) -> None:
    sides = {
        f"{side}{suffix}": value
        for side in ("chosen", "rejected")
        for suffix, value in (("", f"{side} {text}"), ("_token_ids", VARIED), ("_sample", 0))
    }
    rewards = [(0.0, -0.25), (-0.125, -0.25), (0.0, -0.75)]
    rows = [
        {
            "prompt_id": f"train{i}",
            "prompt": "rendered",
            "prompt_token_ids": [1],
            **sides,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "policy": "digest",
        }
        for i, (chosen, rejected) in enumerate(rewards)
    ]
    finish(config, number, "pair", "pairs", rows, unit="prompts", rows_in=4, dropped={"all candidates tie": 1})


def train(config: RunConfig, number: int) -> None:
    curves = {"margin": None, "gate": None, "ce": 1.0, "cringe": None}
    if config.train.loss.kind == "pairwise_cringe":
        curves = dict.fromkeys(curves, 0.5)
    fixed = {
        "epoch": 0,
        "pairs": 3,
        "feedback": 0,
        "tokens": 100,
        "learning_rate": 1e-5,
        "grad_norm": 1.0,
        "seconds": 0.1,
    }
    rows = [{"step": step, "loss": 1.0 / (step + 1), **fixed, **curves} for step in range(3)]
    metrics = {"training_s": 1.0, "tokens": 300, "tokens_per_s": 300.0}
    finish(config, number, "train", "train_log", rows, unit="pairs", rows_in=3, rows_out=3, metrics=metrics)


def decide(config: RunConfig, number: int) -> None:
    new, previous, start = (metrics.read(stage_of(config, i, "evaluate").folder) for i in (number, number - 1, 0))
    results = gate.apply_rules(new, {"previous": previous, "start": start}, _of_means(config.gate))
    promoted = all(result.passed for result in results)
    rows = [{"round": number, **vars(result), "promoted": promoted} for result in results]
    finish(config, number, "decide", "decisions", rows, outputs=Decision(promoted, f"round {number}").outputs)


def _of_means(rules: Gate) -> Gate:
    """The gate without the confidence of its requirement: four prompts are too few to be sure of a gain."""
    raw = rules.model_dump()
    if raw["require"]["reward"]:
        raw["require"]["reward"]["confidence"] = None
    return Gate.model_validate(raw)


def write_stage(config: RunConfig, number: int, name: StageName, text: str, *, ruined: bool = False) -> None:
    """One stage of a round, its models saying `text`; a ruined policy has lost all sense for human text."""
    match name:
        case "prepare":
            prepare(config, text)
        case "generate":
            generate(config, number, text)
        case "score":
            score(config, number)
        case "pair":
            pair(config, number, text)
        case "train":
            train(config, number)
        case "evaluate":
            evaluate(config, number, text, -90.0 if ruined else -40.0)
        case "decide":
            decide(config, number)


def make_run(
    config: RunConfig, *, rounds: int = 2, last: StageName = "decide", text: str = "", refuse: int = 0
) -> RunConfig:
    """A run up to stage `last` of round `rounds`; the policy of round `refuse` is ruined."""
    for name in stages_of(config, 0):
        write_stage(config, 0, name, text)
    for number in range(1, rounds + 1):
        names = stages_of(config, number)
        for name in names[: names.index(last) + 1] if number == rounds else names:
            write_stage(config, number, name, text, ruined=number == refuse)
    return config
