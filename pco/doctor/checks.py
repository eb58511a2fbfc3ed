"""The checks of what a config names before any work starts; `pco.doctor` examines more."""

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain

from data import readers
from data.errors import BadInput
from data.prompts import asked
from pco import installed, rewards
from pco.config.prompts import told
from pco.config.run import RunConfig
from pco.config.trackers import check_installed
from pco.config.train import PairwiseCringe, PythonLoss
from pco.doctor.inputs import Inputs, existing_folder
from pco.evaluation import lm_eval_tasks
from pco.execution import machine
from pco.models import weights
from pco.models.rendering import render
from pco.training import user_loss

_FREE_GIB = 1.0


def _machine(_: Inputs) -> str:
    return machine.check()


def _engines(_: Inputs) -> str:
    for module, need in (("vllm", "generation"), ("deepspeed", "training")):
        if not installed.has(module):
            where = f" for {installed.python()}" if installed.is_apart() else ""
            raise BadInput(
                f"{module} is not installed{where}, and {need} needs it. Install the extra for this machine, `cpu` or "
                f"`gpu`, or name the Python of an environment that has it: {installed.STAGE_PYTHON}."
            )
    return "vllm and deepspeed are installed"


def _trackers(inputs: Inputs) -> str:
    check_installed(inputs.config.track)
    return f"told of every stage: {', '.join(inputs.config.track) or 'none'}"


def _folder(inputs: Inputs) -> str:
    runs_dir, existing = inputs.config.runs_dir, existing_folder(inputs)
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(f"{runs_dir}: cannot be written by this user. Give it the right, or set `runs_dir`.")
    free = shutil.disk_usage(existing).free / 2**30
    if free < _FREE_GIB:
        raise BadInput(f"{runs_dir}: only {free:.2f} GiB free; at least {_FREE_GIB} GiB is needed. Make room first.")
    return f"{runs_dir} can be written"


def _prompts(inputs: Inputs) -> str:
    if inputs.config.pair.strategy == "reference_worst" and all(row["reference"] is None for row in inputs.train):
        raise BadInput(
            f"{told(inputs.config.prompts.train)}: no prompt has a `reference`, and pair.strategy reference_worst "
            "takes that as the chosen text. Put it into the lines, or choose another strategy."
        )
    return inputs.counted()


def _leakage(inputs: Inputs) -> str:
    prompts = inputs.config.prompts
    trained = chain(inputs.train, inputs.preferences, inputs.feedback)
    seen = {readers.prompt_key(asked(row)) for row in trained}
    for row in inputs.heldout:
        if readers.prompt_key(asked(row)) in seen:
            raise BadInput(
                f"{told(prompts.heldout)}: prompt {row['source_id'] or row['prompt_id']} is also trained on "
                f"({told(prompts.train)}, preferences or feedback; case and white space aside). Evaluation on "
                "training prompts proves nothing: remove it from one file."
            )
    return f"none of {len(inputs.heldout)} held-out prompts is trained on, ignoring case and white space"


def _test(inputs: Inputs) -> str:
    if not inputs.config.prompts.has_test:
        return "no test prompts: held-out ones, which the gate decides by, are all that the report has"
    return check_test(inputs, [*inputs.train, *inputs.preferences, *inputs.feedback], inputs.heldout)


def check_test(
    inputs: Inputs,
    trained: Iterable[Mapping[str, object]],
    heldout: Iterable[Mapping[str, object]],
    *,
    trained_ids: Collection[str] = (),
) -> str:
    """Check the test prompts: none is in another set, all fit the context, and each has what the rewards need.

    Of prompts that are trained on and known by their ids alone, `trained_ids` holds those. Raises BadInput.
    """
    config = inputs.config
    assert config.prompts.of_test is not None, "there is a test"
    where = told(config.prompts.of_test)
    seen = {readers.prompt_key(asked(row)): "held out, and the gate decides by it" for row in heldout}
    seen |= {readers.prompt_key(asked(row)): "trained on" for row in trained}
    for row in inputs.test:
        elsewhere = seen.get(readers.prompt_key(asked(row)))
        if elsewhere or row["prompt_id"] in trained_ids:
            raise BadInput(
                f"{where}: prompt {row['source_id'] or row['prompt_id']} is also {elsewhere or 'trained on'} (case and "
                "white space aside). A test on it proves nothing: remove it from one file."
            )
        length = len(render(inputs.tokenizer, asked(row), config.policy).token_ids)
        _check_fits(where, row, length, config.generate.max_tokens, inputs.context)
    for reward in (config.reward, config.evaluate.second_reward):
        if reward is not None:
            rewards.check(reward, {where: inputs.test})
    return f"none of {len(inputs.test)} test prompts is trained on or held out, ignoring case and white space"


def _reward(inputs: Inputs) -> str:
    prompts, config = inputs.config.prompts, inputs.config.reward
    train, heldout = told(prompts.train), told(prompts.heldout)
    rewards.check(config, {train: inputs.train, heldout: inputs.heldout})
    second = inputs.config.evaluate.second_reward
    if second is None:
        return f"`{config.kind}` has what it needs"
    rewards.check(second, {heldout: inputs.heldout})
    return f"`{config.kind}` and `{second.kind}` have what they need"


def _loss(inputs: Inputs) -> str:
    loss = inputs.config.train.loss
    if not isinstance(loss, PythonLoss):
        return f"`{loss.kind}` is one of this package"
    if installed.is_apart():
        return f"{loss.module}:{loss.function} is tried when the run begins, in the environment of stages"
    user_loss.check(loss)
    return f"{loss.module}:{loss.function} gives a finite loss with a gradient for each pair"


def _tasks(inputs: Inputs) -> str:
    tasks = inputs.config.evaluate.tasks
    lm_eval_tasks.check(tasks)
    return f"lm-eval has {', '.join(tasks)}" if tasks else "no tasks of lm-eval"


def _model(inputs: Inputs) -> str:
    _check_plain_logits(inputs)
    weights.check_not_quantised(inputs.model, "policy.model")
    _check_k(inputs.config, inputs.shape["vocab_size"])
    _check_embedding(inputs)
    return f"{inputs.model}: {inputs.shape['vocab_size']:,} tokens of vocabulary, {inputs.context:,} of context"


# Changes of some families to their logits after the head, which the losses do not see, and the value without effect.
_LOGIT_CHANGES = {
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "lm_head_multiplier": 1.0,
}


def _check_plain_logits(inputs: Inputs) -> None:
    for key, harmless in _LOGIT_CHANGES.items():
        value = inputs.shape.get(key, harmless)
        if value not in {None, harmless}:
            raise BadInput(
                f"{inputs.model / 'config.json'}: `{key}` is {value}: this model changes its logits after the head, "
                "and training would optimise other log-probabilities than generation samples from. Not supported yet."
            )


def _check_embedding(inputs: Inputs) -> None:
    rows = weights.embedding_rows(inputs.model)
    if rows is None:
        return
    if rows != inputs.shape["vocab_size"]:
        raise BadInput(
            f"{inputs.model}: config.json says `vocab_size` {inputs.shape['vocab_size']}, but its weights hold "
            f"embeddings of {rows} tokens, and would not load (`policy.model`). Save model and config together."
        )
    weights.check_embedding(inputs.model, inputs.tokenizer, "policy.model")


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


def _lengths(inputs: Inputs) -> str:
    """Check that every prompt plus its completion, and every text plus a token, fits the context."""
    prompts, room = inputs.config.prompts, inputs.config.generate.max_tokens
    places = [told(prompts.train)] * len(inputs.train) + [told(prompts.heldout)] * len(inputs.heldout)
    for where, row, length in zip(places, [*inputs.train, *inputs.heldout], inputs.lengths, strict=True):
        _check_fits(where, row, length, room, inputs.context)
    rows = weights.embedding_rows(inputs.model)
    if rows is not None and inputs.highest_token >= rows:
        token = inputs.tokenizer.decode([inputs.highest_token])
        raise BadInput(weights.no_embedding(inputs.model, rows, f"{token!r}, which a prompt has", "policy.model"))
    for row in inputs.heldout_text:
        length = len(inputs.tokenizer(str(row["prompt"]))["input_ids"])
        if length < 2:
            raise BadInput(
                f"{prompts.heldout_text}: {row['source_id'] or row['prompt_id']} has {length} token(s), and "
                "perplexity is of each token after the first. Remove it, or give a longer text."
            )
        _check_fits(prompts.heldout_text, row, length, 1, inputs.context)
    return f"the longest prompt has {max(inputs.lengths)} tokens; with {room} more it fits {inputs.context}"


def _check_fits(where: str, row: readers.Row, length: int, room: int, context: int) -> None:
    if length + room > context:
        raise BadInput(
            f"{where}: {row['source_id'] or row['prompt_id']} has {length} tokens; with {room} more to generate it "
            f"does not fit the model's context of {context}. Shorten it, or lower generate.max_tokens."
        )


# By subject. Each returns a message, or raises BadInput for the first fault.
CHECKS: dict[str, Callable[[Inputs], str]] = {
    "engines": _engines,
    "folder of runs": _folder,
    "trackers": _trackers,
    "prompts": _prompts,
    "leakage": _leakage,
    "reward": _reward,
    "loss": _loss,
    "tasks": _tasks,
    "model": _model,
    "lengths": _lengths,
    "test": _test,
    "machine": _machine,
}


def check(config: RunConfig) -> Inputs:
    """Check environment, folder, model, prompts, and how they fit together. Starts no engine, writes nothing.

    Raises BadInput for the first fault.
    """
    inputs = Inputs(config)
    for check_subject in CHECKS.values():
        check_subject(inputs)
    return inputs
