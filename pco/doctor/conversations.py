"""Faults of chat templates that show in conversations: what they refuse, leave out, or write of their own."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from data.prompts import TOOLS, Prompt, asked, schemas_of, tool_name, without_tools
from data.rows import Message
from pco.config.reward import ModelReward, parts
from pco.doctor.finding import Result
from pco.doctor.inputs import Inputs
from pco.doctor.tokens import bare
from pco.models.rendering import dialogue, messages_of, render, writes_date
from pco.rewards import model as reward_model

_PROMPT = "Name three rivers of Europe."
_THOUGHT = "I think of maps."
_PLAIN_ANSWER = "The Rhine, the Loire and the Po."
_ANSWER = f"<think>{_THOUGHT}</think>{_PLAIN_ANSWER}"


def policy(inputs: Inputs) -> Iterator[Result]:
    """Whether the policy's template renders all conversations whole, and the same tomorrow."""
    conversations, config = _conversations(inputs), inputs.config.policy
    lost = Counter[str]()
    for prompt in conversations:
        text = render(inputs.tokenizer, prompt, config).text
        lost.update({turn["role"] for turn in prompt if not _is_in(turn, text)})
    dated = is_dated(inputs)
    if dated:
        yield (
            "warning",
            "the chat template writes today's date. So that prompts do not change at midnight, a run keeps the date of "
            "its start; policy.template_date names another, such as 2026-01-31",
        )
    for role, count in sorted(lost.items()):
        yield (
            "warning" if role == "assistant" else "fault",
            f"the chat template leaves out {'the tools' if role == TOOLS else f'turns of the {role}'}, or parts of "
            f"them, in {count:,} of {len(conversations):,} conversations{_advice(role)}",
        )
    if not lost and not dated:
        yield (
            "ok",
            f"the chat template writes {len(conversations):,} conversations whole"
            if conversations
            else ("every prompt is a text, without turns"),
        )


def _is_in(turn: Message, text: str) -> bool:
    """Whether a turn is in what the policy reads; of tools, which templates write each in their own way, the names."""
    if turn["role"] != TOOLS:
        return turn["content"].strip() in text
    return all(name in text for name in _tool_names([turn]))


def _tool_names(prompt: Prompt) -> list[str]:
    """The names of a prompt's tools."""
    tools = [] if isinstance(prompt, str) else without_tools(prompt)[0]
    return [str(tool_name(schema)) for message in tools for schema in schemas_of(message["content"])]


def _advice(role: str) -> str:
    if role == TOOLS:
        return ". Correct the template, or leave the tools out (`pco data import --ignore tools`)"
    if role == "assistant":
        return ": many templates leave `<think>` parts of earlier turns out. The policy does not read them then"
    return ". Correct the template, or leave such turns out"


def _conversations(inputs: Inputs) -> list[list[Message]]:
    rows = chain(inputs.train, inputs.heldout, inputs.test, inputs.preferences, inputs.feedback)
    return [row["messages"] for row in rows if row["messages"] is not None]


def is_dated(inputs: Inputs) -> bool:
    """Whether the policy's template writes today's date and is told no other."""
    config = inputs.config.policy
    if config.prompt_format != "chat" or config.template_date is not None:
        return False
    prompts = [_PROMPT, *_kinds(inputs).values()]
    return writes_date(inputs.tokenizer, [messages_of(prompt, config) for prompt in prompts])


def _kinds(inputs: Inputs) -> dict[tuple[str, ...], Prompt]:
    """One conversation of each kind: a template looks at who speaks in which order."""
    return {tuple(turn["role"] for turn in prompt): prompt for prompt in _conversations(inputs)}


# Answers that some templates change, by what of them they cut.
_CUT = {
    "white space around an answer": f"\n\n  {_PLAIN_ANSWER}  \n\n",
    "the `<think>` part of an answer": _ANSWER,
}


def answers(inputs: Inputs) -> Iterator[Result]:
    """Whether the policy's template writes an answer as it is.

    Training takes the tokens that were sampled, and never a template's text of an answer, so what is trained on is what
    was generated whatever the template does. But the user's own answers may have what the template never writes.
    """
    if inputs.config.policy.prompt_format == "raw":
        yield "ok", "raw prompts have no template that could change an answer"
        return
    if not _writes(inputs, _PROMPT, _PLAIN_ANSWER):
        yield (
            "warning",
            f"the chat template writes an answer as another text: {_PLAIN_ANSWER!r} is not in the whole dialogue. "
            "Answers are sampled and trained on as they are; whatever renders them with this template reads something "
            "else. Correct the template",
        )
        return
    cut = [what for what, answer in _CUT.items() if not _writes(inputs, _PROMPT, answer)]
    if not cut:
        yield "ok", "the chat template writes answers as they are"
        return
    own = [(asked(row), str(row[side])) for row in inputs.preferences for side in ("chosen", "rejected")]
    own += [(asked(row), str(row["completion"])) for row in inputs.feedback]
    changed = sum(not _writes(inputs, prompt, answer) for prompt, answer in own)
    if changed:
        yield (
            "warning",
            f"the chat template cuts {' and '.join(cut)}, and {changed:,} of {len(own):,} answers of "
            "prompts.preferences and prompts.feedback have such: they are trained on as they are. Take it out of the "
            "files if the policy is not to write it",
        )
    else:
        yield "ok", f"the chat template cuts {' and '.join(cut)}; what is sampled is trained on as it is"


def _writes(inputs: Inputs, prompt: Prompt, answer: str) -> bool:
    """Whether the whole dialogue in the policy's template goes on, after the prompt, with the answer as it is."""
    config = inputs.config.policy
    messages: list[Message] = [*messages_of(prompt, config), {"role": "assistant", "content": answer}]
    whole = dialogue(inputs.tokenizer, messages, today=config.template_date)
    prompted = render(inputs.tokenizer, prompt, config).text
    return answer in (whole[len(prompted) :] if whole.startswith(prompted) else whole)


def reward(inputs: Inputs) -> Iterator[Result]:
    """Whether each reward model's template takes the conversations, and reads the same of an answer every day."""
    models = [part for part in parts(inputs.config.reward) if isinstance(part, ModelReward)]
    for part in models:
        yield from _reads(inputs, part)
    if not models:
        yield "ok", "the reward has no model, so no template of its own"


def _reads(inputs: Inputs, config: ModelReward) -> Iterator[Result]:
    kinds, unread = _kinds(inputs), False
    for prompt in kinds.values():
        tokenizer, tokens = reward_model.reads(config, prompt, _ANSWER)
        text = bare(tokenizer.decode(tokens))
        unread |= not all(bare(name) in text for name in _tool_names(prompt))
    tokenizer, tokens = reward_model.reads(config, _PROMPT, _ANSWER)
    faults = []
    if reward_model.is_dated(config):
        faults.append(
            "writes today's date. So that rewards do not change at midnight, a run keeps the date of its start; "
            "reward.template_date names another"
        )
    if bare(_THOUGHT) not in bare(tokenizer.decode(tokens)):
        faults.append("drops the `<think>` part of an answer, which the reward then never sees")
    if unread:
        faults.append("leaves out the tools of prompts, which the reward then never sees")
    for fault in faults:
        yield "warning", f"the chat template of {config.model} {fault}"
    if not faults:
        _, plain = reward_model.reads(config, _PROMPT, _PLAIN_ANSWER)
        _, spaced = reward_model.reads(config, _PROMPT, f"\n\n  {_PLAIN_ANSWER}  \n\n")
        blind = "; it does not read white space around an answer" if plain == spaced else ""
        yield "ok", f"{config.model} takes conversations of {len(kinds)} kinds beside single prompts{blind}"
