"""Conversations as one prompt and one answer.

A prompt is one text in every table, so a conversation of several turns either goes (`single`) or is written out as a
transcript (`transcript`), which a policy with `prompt_format: raw` continues.
"""

import re
from typing import Any, Literal

Turns = Literal["single", "transcript"]
Message = tuple[str, str]  # who speaks (system, user or assistant), and what is said
Question = str | list[Message]

_SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_LAST_WORD = re.compile(r"\s*\S*$")


class Dropped(Exception):
    """This row cannot be kept; its text is the reason, under which it is counted."""


MALFORMED = "malformed"
EMPTY_PROMPT = "empty prompt"
EMPTY_ANSWER = "empty answer"
SEVERAL_TURNS = "several turns or a system message"
SAME_ANSWERS = "chosen equals rejected"
NO_PREFERENCE = "tie or no preference"
PROMPTS_DIFFER = "chosen and rejected answer different prompts"


def messages(value: Any) -> list[Message]:
    """A list of `{role, content}`, or of ShareGPT's `{from, value}`. Raises Dropped when it is none."""
    if not isinstance(value, list):
        raise Dropped(MALFORMED)
    return [_message(item) for item in value]


def _message(item: Any) -> Message:
    if not isinstance(item, dict):
        raise Dropped(MALFORMED)
    speaker = _SPEAKERS.get(str(item.get("role", item.get("from"))).lower())
    content = item.get("content", item.get("value"))
    if speaker is None or not isinstance(content, str):
        raise Dropped(MALFORMED)
    return speaker, content


def transcript(text: str) -> list[Message] | None:
    """The messages of a text with "Human:" and "Assistant:" after blank lines, as hh-rlhf has; None for other text."""
    before, *rest = _TURN.split(text)
    if before.strip() or not rest or rest[0] != "Human":
        return None
    speakers = [_SPEAKERS[name.lower()] for name in rest[::2]]
    return [(speaker, said.removeprefix(" ")) for speaker, said in zip(speakers, rest[1::2], strict=True)]


def question(prompt: Any) -> Question:
    """A prompt column's value: a text as it is, or the messages up to an answer. Raises Dropped when it is neither."""
    if prompt is None:
        raise Dropped(EMPTY_PROMPT)
    if isinstance(prompt, str):
        return prompt
    said = messages(prompt)
    return said[:-1] if said and said[-1][0] == "assistant" else said


def answered(prompt: Any, answer: Any) -> tuple[Question, str]:
    """What was asked and what was answered, from a prompt column (None: there is none) and an answer column.

    An answer of messages may repeat the conversation before it (as ultrafeedback_binarized does). Raises Dropped.
    """
    if answer is None:
        raise Dropped(EMPTY_ANSWER)
    if isinstance(answer, str):
        return question(prompt), answer
    return _from_messages(prompt, messages(answer))


def _from_messages(prompt: Any, said: list[Message]) -> tuple[Question, str]:
    if not said:
        raise Dropped(EMPTY_ANSWER)
    if said[-1][0] != "assistant":
        raise Dropped(MALFORMED)
    return _asked(prompt, said[:-1]), said[-1][1]


def _asked(prompt: Any, context: list[Message]) -> Question:
    """The whole of what was said before an answer; `context` is the part that came with the answer."""
    if prompt is None or (context and isinstance(prompt, str)):
        return context
    before = [("user", prompt)] if isinstance(prompt, str) else messages(prompt)
    return context if context and context[: len(before)] == before else before + context


def compared(prompt: Any, chosen: Any, rejected: Any) -> tuple[Question, str, str]:
    """One question and its two answers. Raises Dropped, also when the two do not answer the same question."""
    return _same_question(answered(prompt, chosen), answered(prompt, rejected))


def _same_question(better: tuple[Question, str], worse: tuple[Question, str]) -> tuple[Question, str, str]:
    if better[0] != worse[0]:
        raise Dropped(PROMPTS_DIFFER)
    return better[0], better[1], worse[1]


def compared_implicitly(chosen: Any, rejected: Any) -> tuple[Question, str, str]:
    """The question that two texts or conversations begin with, and their answers (TRL's implicit prompt).

    Transcripts share all turns but the last; other texts share what they begin with, up to a word's end.
    Raises Dropped.
    """
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return compared(None, chosen, rejected)
    if chosen == rejected and chosen.strip():
        raise Dropped(SAME_ANSWERS)
    better, worse = transcript(chosen), transcript(rejected)
    if better is not None and worse is not None:
        return _same_question(_from_messages(None, better), _from_messages(None, worse))
    shared = _LAST_WORD.sub("", _common_start(chosen, rejected), count=1)
    return shared, chosen[len(shared) :], rejected[len(shared) :]


def _common_start(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def rendered(asked: Question, turns: Turns) -> str:
    """A question as one text. Raises Dropped when it is empty, or has turns that `turns` does not let in."""
    if isinstance(asked, str):
        last = text = asked
    elif not asked:
        raise Dropped(EMPTY_PROMPT)
    elif asked[-1][0] != "user":
        raise Dropped(MALFORMED)
    elif turns == "transcript":
        last, text = asked[-1][1], "".join(map(_written, asked)) + "\n\nAssistant:"
    elif len(asked) > 1:
        raise Dropped(SEVERAL_TURNS)
    else:
        last = text = asked[0][1]
    if not last.strip():
        raise Dropped(EMPTY_PROMPT)
    return text


def _written(message: Message) -> str:
    match message:
        case "system", text:
            return text
        case "user", text:
            return f"\n\nHuman: {text}"
        case _, text:
            return f"\n\nAssistant: {text}"


def rendered_answer(asked: Question, answer: str, turns: Turns) -> str:
    """The answer to `asked`, as it continues the rendered question. Raises Dropped when it is empty."""
    if not answer.strip():
        raise Dropped(EMPTY_ANSWER)
    return f" {answer}" if turns == "transcript" and not isinstance(asked, str) else answer
