"""The canary: a training that changes nothing, its policy in the engine, and what that samples before the trainer.

Real stages of a run in a temporary folder, each in a process of its own as always: `train` saves the policy, `generate`
verifies and loads it, `refer` reads the samples as the trainer does, under the policy that training began with. All
three agree only if the weights survive saving and loading, tied ones included, and if both engines read them alike.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import schemas, store
from pco.config.run import Replay, RunConfig
from pco.doctor.checks import Inputs, existing_folder
from pco.doctor.finding import Seen
from pco.doctor.resources import engine_format
from pco.execution.executor import Executor
from pco.models.rendering import render
from pco.stage import Artifact, Stage

Row = dict[str, Any]

_PROMPTS, _TOKENS = 4, 16
_NO_CHANGE = 1e-30  # a learning rate that moves no weight of any number format
# Nats a token between engine and trainer, in the mean over all tokens: several times what was measured.
_TOLERANCE, _TOLERANCE_FLOAT32 = 0.05, 1e-3


@dataclass(frozen=True)
class Sung:
    """What the canary brought back: the trainer's and the engine's word on the same completions."""

    saved: str  # digest of the policy as training saved it
    candidates: list[Row]
    logps: list[float]  # under the trainer, nats


def examine(inputs: Inputs, executor: Executor) -> Iterator[Seen]:
    """Let the canary sing in a temporary folder beside the runs, and compare.

    Raises PCOError when a stage fails.
    """
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing_folder(inputs)) as folder:
        sung = sing(inputs, Path(folder), executor)
    yield from compared(sung, inputs.tokenizer, tolerance(inputs))


def sing(inputs: Inputs, folder: Path, executor: Executor) -> Sung:
    """Train without learning, generate from what was saved, read the samples as the trainer does."""
    config = _small(inputs.config, folder)
    config.folder.mkdir()
    start = Artifact(inputs.model, store.folder_digest(inputs.model))
    asked = [{"split": "train", **row} for row in inputs.train[:_PROMPTS]]
    prompts = _given(Stage("prepare", 0, config, {}), "prompts", asked)
    lesson = _given(Stage("pair", 1, config, {}), "pairs", _lesson(inputs))
    train = Stage("train", 1, config, {"policy": start, "pairs": lesson})
    trained = train.saved_model(executor.run(train))
    generate = Stage("generate", 2, config, {"policy": trained, "prompts": prompts})
    executor.run(generate)
    candidates = store.read_table(generate.folder, "candidates").to_pylist()
    pairs = _given(Stage("pair", 2, config, {}), "pairs", _pairs(candidates))
    refer = Stage("refer", 2, config, {"policy": start, "pairs": pairs})
    executor.run(refer)
    rows = store.read_table(refer.folder, "reference_logps").to_pylist()
    logps = [row[side] for row in rows for side in ("chosen_logp", "rejected_logp")]
    return Sung(trained.fingerprint, candidates, logps)


def _small(config: RunConfig, folder: Path) -> RunConfig:
    generate = {"n": 2, "min_tokens": 0, "max_tokens": min(_TOKENS, config.generate.max_tokens), "stop": []}
    return config.model_copy(
        update={
            "run": "canary",
            "runs_dir": str(folder),
            "prompts": config.prompts.model_copy(update={"preferences": None, "feedback": None}),
            "replay": Replay(),
            "generate": config.generate.model_copy(update=generate),
            "train": config.train.model_copy(
                update={"learning_rate": _NO_CHANGE, "epochs": 1, "max_pair_tokens": 2**20}
            ),
        }
    )


def _given(stage: Stage, table: str, rows: Sequence[Row]) -> Artifact:
    """Rows as if a stage had made them."""
    store.write_part(stage.folder, table, 0, schemas.build(table, rows), stage.fingerprint)
    count = len(rows)
    return stage.result(stage.finish(unit="rows", rows_in=count, rows_out=count, dropped={}, started=time.time()))


def _lesson(inputs: Inputs) -> list[Row]:
    """A pair to train on; what it says does not matter."""
    prompt = render(inputs.tokenizer, str(inputs.train[0]["prompt"]), inputs.config.policy)
    tokens = prompt.token_ids[-_TOKENS:]
    row = {"prompt_id": inputs.train[0]["prompt_id"], "prompt": prompt.text, "prompt_token_ids": prompt.token_ids}
    sides = [row | {"completion": "", "token_ids": ids, "policy": ""} for ids in (tokens, tokens[::-1])]
    return _pairs([{**side, "sample": i} for i, side in enumerate(sides)])


def _pairs(candidates: Sequence[Row]) -> list[Row]:
    """Two samples each as a pair, so that whoever reads pairs reads them."""
    rows = []
    for sides in zip(candidates[::2], candidates[1::2], strict=True):
        row = {name: sides[0][name] for name in ("prompt_id", "prompt", "prompt_token_ids", "policy")}
        for name, side in zip(("chosen", "rejected"), sides, strict=True):
            row |= {name: side["completion"], f"{name}_token_ids": side["token_ids"]}
            row |= {f"{name}_sample": side["sample"], f"{name}_reward": 0.0}
        rows.append(row)
    return rows


def tolerance(inputs: Inputs) -> float:
    """By how much engine and trainer may differ, nats a token."""
    exact = engine_format(inputs) == "float32" and inputs.config.train.precision == "fp32"
    return _TOLERANCE_FLOAT32 if exact else _TOLERANCE


def compared(sung: Sung, tokenizer: Any, tolerance: float) -> Iterator[Seen]:
    """The policy's digest, the text that is scored, and the log-probabilities."""
    made_by = sorted({row["policy"] for row in sung.candidates})
    if made_by == [sung.saved]:
        yield "ok", f"the engine loaded policy {sung.saved}, as training had saved it"
    else:
        yield "fault", f"the engine loaded policy {', '.join(made_by)}, but training had saved {sung.saved}"
    if strange := [row for row in sung.candidates if row["completion"] != _text(tokenizer, row)]:
        text, meant = strange[0]["completion"], _text(tokenizer, strange[0])
        yield "fault", f"the reward would read {text!r}, but training learns the tokens of {meant!r}"
    else:
        yield "ok", f"the text of all {len(sung.candidates)} completions is that of the tokens that are trained on"
    yield _agreement(sung, tolerance)


def _text(tokenizer: Any, row: Row) -> str:
    text: str = tokenizer.decode(row["token_ids"], skip_special_tokens=True)
    return text


def _agreement(sung: Sung, tolerance: float) -> Seen:
    tokens = sum(len(row["token_ids"]) for row in sung.candidates)
    rows = zip(sung.candidates, sung.logps, strict=True)
    off = sum(abs(row["logprob"] - logp) for row, logp in rows) / tokens
    told = (
        f"the engine's log-probabilities are {off:.2g} nats a token off the trainer's, over {tokens} tokens; up to "
        f"{tolerance:g} is rounding"
    )
    if off <= tolerance:  # false for NaN, too
        return "ok", told
    return (
        "fault",
        f"{told}. They do not compute the same model: look at engine.dtype, at train.precision, and for weights that "
        "were lost (tied or not)",
    )
