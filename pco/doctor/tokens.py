"""Silent faults of tokens: the beginning and end of a text, the chat template, and decoding."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import BadInput
from pco.config.reward import ModelReward, parts
from pco.doctor.finding import Result
from pco.doctor.inputs import Inputs
from pco.models.protocols import Tokenizer
from pco.models.rendering import dialogue, messages_of, render
from pco.rewards import model as reward_model

_PROMPT = "Name three rivers of Europe."
_ANSWER = "The Rhine , the Loire ; is n't it ?\n  naïve 河 (2 + 2)"  # which some decoders change
_PLAIN_ANSWER = "The Rhine, the Loire and the Po."


def policy(inputs: Inputs) -> Iterator[Result]:
    """How a prompt begins, the messages in it, how an answer ends, and whether decoding returns its text."""
    tokenizer, config = inputs.tokenizer, inputs.config.policy
    rendered = render(tokenizer, _PROMPT, config)
    results = [*_beginning(tokenizer, rendered.token_ids), *_round_trip(tokenizer), *_end_of_text(inputs)]
    if config.prompt_format == "chat":
        messages = {"system message": config.system, "prompt": _PROMPT}
        results += [*_dropped(rendered.text, messages), *_dialogue(inputs)]
    yield from results
    if not results:
        first, end = tokenizer.decode(rendered.token_ids[:1]), tokenizer.eos_token
        yield "ok", f"the first token of a prompt is {first!r}, the last of an answer {end!r}; text survives its tokens"


def _beginning(tokenizer: Tokenizer, tokens: list[int]) -> Iterator[Result]:
    bos = tokenizer.bos_token_id
    if bos is None:
        return
    if tokens[:2] == [bos, bos]:
        yield (
            "fault",
            f"a prompt begins with {tokenizer.bos_token!r} twice, which no model was trained on. Remove one from the "
            "chat template (or the tokenizer's post-processor, for raw prompts)",
        )
    elif tokens[:1] != [bos] and tokenizer("a")["input_ids"][:1] == [bos]:
        yield (
            "warning",
            f"the tokenizer puts {tokenizer.bos_token!r} before any text, but the chat template does not. If the model "
            "was trained with it, add `{{ bos_token }}` to the template's beginning",
        )


def _round_trip(tokenizer: Tokenizer) -> Iterator[Result]:
    decoded = tokenizer.decode(_tokens(tokenizer, _ANSWER), skip_special_tokens=True)
    if decoded != _ANSWER:
        yield (
            "warning",
            f"{_ANSWER!r} comes back from its tokens as {decoded!r}: the reward reads another text than the policy is "
            "trained to write. Set `clean_up_tokenization_spaces` to false in tokenizer_config.json if that is why",
        )


def _end_of_text(inputs: Inputs) -> Iterator[Result]:
    if not _stop_tokens(inputs):
        yield "fault", "the tokenizer has no end-of-text token, so completions never end. Set its `eos_token`"


def _stop_tokens(inputs: Inputs) -> set[int]:
    """The tokens at which the engine stops: the tokenizer's end of text, and those of the model's folder."""
    settings = inputs.model / "generation_config.json"
    configured = (_settings(settings) if settings.exists() else inputs.shape).get("eos_token_id")
    tokens = configured if isinstance(configured, list) else [configured]
    return {token for token in (inputs.tokenizer.eos_token_id, *tokens) if token is not None}


def _settings(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path}: could not be read as JSON ({error}). Fetch the model again, or correct the file."
        ) from error
    if not isinstance(content, dict):
        raise BadInput(
            f"{path}: holds {content!r:.60}, not an object of settings. Fetch the model again, or correct the file."
        )
    return content


def _dropped(text: str, messages: dict[str, str | None]) -> Iterator[Result]:
    for what, message in messages.items():
        if message is not None and message.strip() not in text:
            yield (
                "fault",
                f"the chat template drops the {what}: {message.strip():.60} is not in what the policy reads. Correct "
                "the template, or leave it out of the config",
            )


def _dialogue(inputs: Inputs) -> Iterator[Result]:
    """Whether a whole dialogue begins with the prompt, and whether its answer ends with what stops the engine."""
    tokenizer, config = inputs.tokenizer, inputs.config.policy
    question = messages_of(_PROMPT, config)
    today = config.template_date
    whole = dialogue(tokenizer, [*question, {"role": "assistant", "content": _PLAIN_ANSWER}], today=today)
    prompt = render(tokenizer, _PROMPT, config)
    # A template may open every answer by the end of the question (`[/INST]`); then it needs no `add_generation_prompt`.
    opened = whole[len(prompt.text) :].lstrip().startswith(_PLAIN_ANSWER)
    if prompt.text == dialogue(tokenizer, question, today=today) and not opened:
        yield "warning", "the chat template opens no answer (`add_generation_prompt`): the policy must do so itself"
    elif _tokens(tokenizer, whole)[: len(prompt.token_ids)] != prompt.token_ids:
        yield (
            "warning",
            "a whole dialogue in the chat template does not begin with the prompt that is generated from: answers are "
            "sampled after other tokens than those the template was made for",
        )
    yield from _ending(inputs, whole.rpartition(_PLAIN_ANSWER)[2] if _PLAIN_ANSWER in whole else "")


def _ending(inputs: Inputs, after: str) -> Iterator[Result]:
    """Whether the chat template's text after an answer ends a completion."""
    tokenizer, stops = inputs.tokenizer, _stop_tokens(inputs)
    end = next((token for token in _tokens(tokenizer, after) if tokenizer.decode([token]).strip()), None)
    if end is None:
        yield "warning", "the chat template ends no answer, so only the policy's own habit ends a completion"
    elif end not in stops and not _is_stop_string(inputs, end, after):
        yield (
            "fault",
            f"an answer ends with {tokenizer.decode([end])!r} in the chat template, but the engine stops at "
            f"{[tokenizer.decode([token]) for token in sorted(stops)]}: completions would continue to "
            "generate.max_tokens. Set `eos_token` in tokenizer_config.json to it, or put plain text into generate.stop",
        )


def _is_stop_string(inputs: Inputs, end: int, after: str) -> bool:
    """Whether a stop string ends the answer. The engine looks for it in the text, without special tokens."""
    strings = tuple(inputs.config.generate.stop)
    return end not in inputs.tokenizer.all_special_ids and after.strip().startswith(strings)


def _tokens(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def reward(inputs: Inputs) -> Iterator[Result]:
    """What each reward model reads of a prompt and a completion."""
    models = [part for part in parts(inputs.config.reward) if isinstance(part, ModelReward)]
    for part in models:
        yield from _read(part)
    if not models:
        yield "ok", "the reward has no model: it reads the decoded completion"


def _read(config: ModelReward) -> Iterator[Result]:
    tokenizer, tokens = reward_model.reads(config, _PROMPT, _PLAIN_ANSWER)
    text = bare(tokenizer.decode(tokens))
    messages = {"system message": config.system, "prompt": _PROMPT, "completion": _PLAIN_ANSWER}
    lost = [what for what, part in messages.items() if part is not None and bare(part) not in text]
    if lost:
        yield (
            "fault",
            f"{config.model} never reads the {' and the '.join(lost)}: its chat template drops it. Correct it",
        )
    else:
        first, last = (tokenizer.decode([token]) for token in (tokens[0], tokens[-1]))
        yield "ok", f"{config.model} reads prompt and completion whole, from {first!r} to {last!r}"


def bare(text: str) -> str:
    """Letters and digits alone: some tokenizers lower the case or move spaces."""
    return re.sub(r"\W+", "", text.casefold())
