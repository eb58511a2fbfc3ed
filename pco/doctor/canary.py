"""The canary: a training that changes nothing, samples from its policy, and their log-probabilities in the trainer.

It runs real stages in a temporary folder, each in its own process. `train` saves the policy. `generate` verifies it,
loads it and samples. `refer` computes the samples' log-probabilities under the policy that training began with. They
agree only if the weights, tied ones included, survive saving and loading, and if engine and trainer compute the same.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data import files, schemas, store
from data.prompts import asked
from data.rows import CandidateRow, PairRow, ReferenceLogpsRow
from pco.config.executor import Execution
from pco.config.run import Replay, RunConfig
from pco.doctor.finding import Result
from pco.doctor.inputs import Inputs, existing_folder
from pco.doctor.resources import engine_format
from pco.execution.executor import Executor
from pco.models.protocols import Tokenizer
from pco.models.rendering import Rendered, render
from pco.stage import Artifact, Stage

_PROMPTS, _TOKENS = 4, 16
_NO_CHANGE = 1e-30  # a learning rate that moves no weight of any number format
# Allowed mean difference between engine and trainer, nats a token: several times the measured one.
_TOLERANCE, _TOLERANCE_FLOAT32 = 0.05, 1e-3


@dataclass(frozen=True)
class CanaryResult:
    """The same completions with the log-probabilities of the engine (in `candidates`) and of the trainer."""

    saved: str  # digest of the policy as training saved it
    candidates: list[CandidateRow]
    logps: list[float]  # of the trainer, nats


def examine(inputs: Inputs, executor: Executor) -> Iterator[Result]:
    """Run the canary in a temporary folder beside the runs, and compare.

    Raises PCOError when a stage fails.
    """
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing_folder(inputs)) as folder:
        result = run_canary(inputs, Path(folder), executor)
    yield from comparison(result, inputs.tokenizer, tolerance(inputs))


def run_canary(inputs: Inputs, folder: Path, executor: Executor) -> CanaryResult:
    """Train without learning, sample from the saved policy, and compute the samples' log-probabilities."""
    config = _small(inputs.config, folder)
    config.folder.mkdir()
    model = inputs.merged_into(folder / "merged")
    start = Artifact(model, files.folder_digest(model))
    prompt_rows = [{"split": "train", **row} for row in inputs.train[:_PROMPTS]]
    prompts = _write_rows(Stage("prepare", 0, config, {}), "prompts", prompt_rows)
    training_pairs = _write_rows(Stage("pair", 1, config, {}), "pairs", [_training_pair(inputs)])
    train = Stage("train", 1, config, {"policy": start, "pairs": training_pairs})
    trained = train.saved_model(executor.run(train))
    generate = Stage("generate", 2, config, {"policy": trained, "prompts": prompts})
    executor.run(generate)
    candidates: list[CandidateRow] = store.read_table(generate.folder, "candidates").to_pylist()
    pairs = _write_rows(Stage("pair", 2, config, {}), "pairs", _in_pairs(candidates))
    refer = Stage("refer", 2, config, {"policy": start, "pairs": pairs})
    executor.run(refer)
    rows: list[ReferenceLogpsRow] = store.read_table(refer.folder, "reference_logps").to_pylist()
    logps: list[float] = []
    for row in rows:
        logps += [row["chosen_logp"], row["rejected_logp"]]
    return CanaryResult(trained.fingerprint, candidates, logps)


def _small(config: RunConfig, folder: Path) -> RunConfig:
    generate = {"n": 2, "min_tokens": 0, "max_tokens": min(_TOKENS, config.generate.max_tokens), "stop": []}
    return config.model_copy(
        update={
            "run": "canary",
            "runs_dir": str(folder),
            "executor": Execution(),
            "prompts": config.prompts.model_copy(update={"preferences": None, "feedback": None}),
            "replay": Replay(),
            "generate": config.generate.model_copy(update=generate),
            "train": config.train.model_copy(
                update={"learning_rate": _NO_CHANGE, "epochs": 1, "max_pair_tokens": 2**20}
            ),
        }
    )


def _write_rows(stage: Stage, table: str, rows: Sequence[Mapping[str, object]]) -> Artifact:
    """Write rows as the finished output of a stage."""
    store.write_part(stage.folder, table, 0, schemas.build(table, rows), stage.fingerprint)
    count = len(rows)
    return stage.result(stage.finish(unit="rows", rows_in=count, rows_out=count, dropped={}, started=time.time()))


def _training_pair(inputs: Inputs) -> PairRow:
    """A pair to train on; its content does not matter."""
    prompt = render(inputs.tokenizer, asked(inputs.train[0]), inputs.config.policy)
    tokens = prompt.token_ids[-_TOKENS:]
    chosen, rejected = _Text("", tokens, 0), _Text("", tokens[::-1], 1)
    return _pair(str(inputs.train[0]["prompt_id"]), prompt, chosen, rejected)


def _in_pairs(candidates: Sequence[CandidateRow]) -> list[PairRow]:
    """Two samples each as a pair, since `refer` reads pairs."""
    rows = []
    for first, second in zip(candidates[::2], candidates[1::2], strict=True):
        texts = (_Text(row["completion"], row["token_ids"], row["sample"]) for row in (first, second))
        prompt = Rendered(first["prompt"], first["prompt_token_ids"])
        rows.append(_pair(first["prompt_id"], prompt, *texts, policy=first["policy"]))
    return rows


@dataclass(frozen=True)
class _Text:
    """One side of a pair."""

    completion: str
    token_ids: list[int]
    sample: int


def _pair(prompt_id: str, prompt: Rendered, chosen: _Text, rejected: _Text, *, policy: str = "") -> PairRow:
    return {
        "prompt_id": prompt_id,
        "prompt": prompt.text,
        "chosen": chosen.completion,
        "rejected": rejected.completion,
        "prompt_token_ids": prompt.token_ids,
        "chosen_token_ids": chosen.token_ids,
        "rejected_token_ids": rejected.token_ids,
        "chosen_sample": chosen.sample,
        "rejected_sample": rejected.sample,
        "chosen_reward": 0.0,
        "rejected_reward": 0.0,
        "policy": policy,
    }


def tolerance(inputs: Inputs) -> float:
    """The allowed difference between engine and trainer, nats a token."""
    exact = engine_format(inputs) == "float32" and inputs.config.train.precision == "fp32"
    return _TOLERANCE_FLOAT32 if exact else _TOLERANCE


def comparison(result: CanaryResult, tokenizer: Tokenizer, tolerance: float) -> Iterator[Result]:
    """Results on the policy's digest, the text that is scored, and the log-probabilities."""
    loaded = sorted({row["policy"] for row in result.candidates})
    if loaded == [result.saved]:
        yield "ok", f"the engine loaded policy {result.saved}, as training had saved it"
    else:
        yield "fault", f"the engine loaded policy {', '.join(loaded)}, but training had saved {result.saved}"
    differing = [row for row in result.candidates if row["completion"] != _text(tokenizer, row)]
    if differing:
        scored, trained = differing[0]["completion"], _text(tokenizer, differing[0])
        yield "fault", f"the reward would read {scored!r}, but training learns the tokens of {trained!r}"
    else:
        yield "ok", f"the text of all {len(result.candidates)} completions is that of the tokens that are trained on"
    yield _agreement(result, tolerance)


def _text(tokenizer: Tokenizer, row: CandidateRow) -> str:
    return tokenizer.decode(row["token_ids"], skip_special_tokens=True)


def _agreement(result: CanaryResult, tolerance: float) -> Result:
    tokens = sum(len(row["token_ids"]) for row in result.candidates)
    rows = zip(result.candidates, result.logps, strict=True)
    difference = sum(abs(row["logprob"] - logp) for row, logp in rows) / tokens
    message = (
        f"the engine's log-probabilities are {difference:.2g} nats a token off the trainer's, over {tokens} tokens; up "
        f"to {tolerance:g} is rounding"
    )
    if difference <= tolerance:  # false for NaN, too
        return "ok", message
    return (
        "fault",
        f"{message}. They do not compute the same model. Check engine.dtype, train.precision, and whether weights were "
        "lost (tied or not)",
    )
