"""Where tokens go wrong without a word: the beginning and end of text, the chat template, what a decoder gives back."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import BadInput
from pco.config.reward import ModelReward, parts
from pco.doctor.checks import Inputs
from pco.doctor.finding import Seen
from pco.models.rendering import dialogue, render
from pco.rewards import model as reward_model

_PROMPT = "Name three rivers of Europe."
_ANSWER = "The Rhine , the Loire ; is n't it ?\n  naïve 河 (2 + 2)"  # what careless decoders mend
_PLAIN_ANSWER = "The Rhine, the Loire and the Po."


def policy(inputs: Inputs) -> Iterator[Seen]:
    """A prompt's beginning, the messages in it, how an answer ends, and whether its tokens give its text back."""
    tokenizer, config = inputs.tokenizer, inputs.config.policy
    rendered = render(tokenizer, _PROMPT, config)
    found = [*_beginning(tokenizer, rendered.token_ids), *_round_trip(tokenizer), *_stop(inputs)]
    if config.prompt_format == "chat":
        found += [*_told(rendered.text, {"system message": config.system, "prompt": _PROMPT}), *_answer(inputs)]
    yield from found
    if not found:
        first, end = tokenizer.decode(rendered.token_ids[:1]), tokenizer.eos_token
        yield "ok", f"the first token of a prompt is {first!r}, the last of an answer {end!r}; text survives its tokens"


def _beginning(tokenizer: Any, tokens: list[int]) -> Iterator[Seen]:
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


def _round_trip(tokenizer: Any) -> Iterator[Seen]:
    if (again := tokenizer.decode(_tokens(tokenizer, _ANSWER), skip_special_tokens=True)) != _ANSWER:
        yield (
            "warning",
            f"{_ANSWER!r} comes back from its tokens as {again!r}: the reward reads another text than the policy is "
            "trained to write. Set `clean_up_tokenization_spaces` to false in tokenizer_config.json if that is why",
        )


def _stop(inputs: Inputs) -> Iterator[Seen]:
    if not _stops(inputs):
        yield "fault", "the tokenizer has no end-of-text token, so completions never end. Set its `eos_token`"


def _stops(inputs: Inputs) -> set[int]:
    """The tokens at which the engine stops: the tokenizer's end of text, and what the model's folder adds."""
    settings = inputs.model / "generation_config.json"
    more = (_settings(settings) if settings.exists() else inputs.shape).get("eos_token_id")
    found = more if isinstance(more, list) else [more]
    return {token for token in (inputs.tokenizer.eos_token_id, *found) if token is not None}


def _settings(path: Path) -> dict[str, Any]:
    try:
        own = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: could not be read as JSON ({error}). Fetch the model anew, or mend it.") from error
    if not isinstance(own, dict):
        raise BadInput(f"{path}: holds {own!r:.60}, not an object of settings. Fetch the model anew, or mend it.")
    return own


def _told(text: str, parts: dict[str, str | None]) -> Iterator[Seen]:
    for what, part in parts.items():
        if part is not None and part.strip() not in text:
            yield (
                "fault",
                f"the chat template drops the {what}: {part.strip():.60} is not in what the policy reads. Mend the "
                "template, or leave it out of the config",
            )


def _answer(inputs: Inputs) -> Iterator[Seen]:
    """A whole dialogue goes on where the prompt ends, and its answer ends with what the engine stops at."""
    tokenizer, config = inputs.tokenizer, inputs.config.policy
    system = [] if config.system is None else [{"role": "system", "content": config.system}]
    asked = [*system, {"role": "user", "content": _PROMPT}]
    whole = dialogue(tokenizer, [*asked, {"role": "assistant", "content": _PLAIN_ANSWER}])
    prompt = render(tokenizer, _PROMPT, config)
    # A template may open every answer by the end of the question (`[/INST]`), and need not be asked to.
    opened = whole[len(prompt.text) :].lstrip().startswith(_PLAIN_ANSWER)
    if prompt.text == dialogue(tokenizer, asked) and not opened:
        yield "warning", "the chat template opens no answer (`add_generation_prompt`): the policy must do so itself"
    elif _tokens(tokenizer, whole)[: len(prompt.token_ids)] != prompt.token_ids:
        yield (
            "warning",
            "a whole dialogue in the chat template does not begin with the prompt that is generated from: answers are "
            "sampled after other tokens than those the template was made for",
        )
    yield from _ending(inputs, whole.rpartition(_PLAIN_ANSWER)[2] if _PLAIN_ANSWER in whole else "")


def _ending(inputs: Inputs, after: str) -> Iterator[Seen]:
    """What the chat template writes after an answer must end a completion."""
    tokenizer, stops = inputs.tokenizer, _stops(inputs)
    end = next((token for token in _tokens(tokenizer, after) if tokenizer.decode([token]).strip()), None)
    if end is None:
        yield "warning", "the chat template ends no answer, so only the policy's own habit ends a completion"
    elif end not in stops and not _is_stop_string(inputs, end, after):
        yield (
            "fault",
            f"an answer ends with {tokenizer.decode([end])!r} in the chat template, but the engine stops at "
            f"{[tokenizer.decode([token]) for token in sorted(stops)]}: completions would run on to "
            "generate.max_tokens. Set `eos_token` in tokenizer_config.json to it, or put plain text into generate.stop",
        )


def _is_stop_string(inputs: Inputs, end: int, after: str) -> bool:
    """Stop strings are looked for in the text of a completion, which holds no special tokens."""
    strings = tuple(inputs.config.generate.stop)
    return end not in inputs.tokenizer.all_special_ids and after.strip().startswith(strings)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


def reward(inputs: Inputs) -> Iterator[Seen]:
    """What each reward model reads of a prompt and a completion."""
    models = [part for part in parts(inputs.config.reward) if isinstance(part, ModelReward)]
    for part in models:
        yield from _read(part)
    if not models:
        yield "ok", "no reward model reads any: the reward is given the decoded completion"


def _read(config: ModelReward) -> Iterator[Seen]:
    tokenizer, tokens = reward_model.reads(config, _PROMPT, _PLAIN_ANSWER)
    text = _bare(tokenizer.decode(tokens))
    wanted = {"system message": config.system, "prompt": _PROMPT, "completion": _PLAIN_ANSWER}
    lost = [what for what, part in wanted.items() if part is not None and _bare(part) not in text]
    if lost:
        yield "fault", f"{config.model} never reads the {' and the '.join(lost)}: its chat template drops it. Mend it"
    else:
        first, last = (tokenizer.decode([token]) for token in (tokens[0], tokens[-1]))
        yield "ok", f"{config.model} reads prompt and completion whole, from {first!r} to {last!r}"


def _bare(text: str) -> str:
    """Letters and digits alone: some tokenizers lower the case or move spaces."""
    return re.sub(r"\W+", "", text.casefold())
