"""A prompt: a text, or the messages of a conversation that an answer is to continue.

Its tools, if it has any, are the first message, of the role `tools`: a JSON list of their schemas.

One user message alone is the same prompt as its text, and is kept as that. Tables hold both: `prompt` is a text that
people can read, `messages` the conversation, empty where the prompt is a text.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from data.rows import Message

Prompt = str | list[Message]

TOOLS = "tools"  # the role of the message that holds the schemas of a conversation's tools
ASKING = ("user", "tool")  # whose turn an answer may follow
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool", TOOLS: "Tools"}


class PromptColumns(TypedDict):
    """The columns of a table that hold a prompt."""

    prompt: str
    messages: list[Message] | None


def of_turns(turns: Sequence[tuple[str, str]]) -> Prompt:
    """The prompt of turns, each who speaks and what is said."""
    match turns:
        case [("user", text)]:
            return text
    return [{"role": speaker, "content": text} for speaker, text in turns]


def columns(prompt: Prompt) -> PromptColumns:
    """A prompt as the columns of a table."""
    return {"prompt": readable(prompt), "messages": None if isinstance(prompt, str) else prompt}


def asked(row: Mapping[str, object]) -> Prompt:
    """The prompt of a row; a row without the column `messages` has a text."""
    messages = row.get("messages")
    return cast(Prompt, row["prompt"] if messages is None else messages)


def readable(prompt: Prompt) -> str:
    """A text as it is; a conversation as a dialogue, each turn after the name of its speaker."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{_NAMES[message['role']]}: {message['content']}" for message in prompt)


def as_messages(prompt: Prompt, system: str | None = None) -> list[Message]:
    """A prompt as messages; `system` is the system message of one that brings none."""
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    tools, turns = without_tools(messages)
    if system is None or turns[0]["role"] == "system":
        return messages
    return [*tools, {"role": "system", "content": system}, *turns]


def without_tools(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """The message of a conversation's tools, if there is one, and its turns."""
    count = int(messages[0]["role"] == TOOLS)
    return messages[:count], messages[count:]


def schemas_of(tools: str) -> list[dict[str, Any]]:
    """The schemas in a message of tools."""
    schemas: list[dict[str, Any]] = json.loads(tools)
    return schemas


def tool_name(schema: Mapping[str, Any]) -> str | None:
    """The name of a tool, as `{type: function, function: {name, ...}}` or `{name, ...}` has it; None if it has none."""
    function = schema.get("function", schema)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) and name else None
