"""What a value says: a text, or the messages of a conversation; and a question as the prompt that a table holds.

A conversation of several turns is kept as messages (`messages`), or goes (`single`), or is written out as a transcript
(`transcript`), which a policy with `prompt_format: raw` continues.
"""

import ast
import json
import math
import re
from typing import Any, Literal, NamedTuple

from data import prompts
from data.prompts import Prompt

Turns = Literal["messages", "single", "transcript"]
Message = tuple[str, str]  # who speaks (system, user, assistant or tool), and what is said
Question = str | list[Message]

_SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
}
_TOOL_SPEAKERS = {prompts.TOOLS, "function", "function_call", "observation", "ipython"}
_TOOL_KEYS = ("tool_calls", "function_call")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_OTHER_TRANSCRIPT = re.compile(r"\s*(Human|User):.*^(Assistant|AI):\s*\S", re.DOTALL | re.MULTILINE)
_TEMPLATE_ANSWER = re.compile(
    r".*(<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model|\[/INST\]"
    r"|<\|assistant\|>|### Assistant:|### Response:)\s*\S",
    re.DOTALL,
)
_LIKE_MESSAGES = re.compile(r"""\s*\[?\s*\{\s*['"](role|content|from|value)['"]\s*:""")


class Dropped(Exception):
    """This row cannot be kept; its text is the reason, under which it is counted."""


class Cell(NamedTuple):
    """A value and the column it stands in, for messages."""

    column: str
    value: Any


def is_nothing(value: Any) -> bool:
    """Whether a cell is empty: nothing, an empty text (CSV), or NaN, which is how tables write nothing."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


EMPTY_PROMPT = "empty prompt"
EMPTY_ANSWER = "empty answer"
SEVERAL_TURNS = "several turns or a system message"
SAME_ANSWERS = "chosen equals rejected"
NO_PREFERENCE = "tie or no preference"
TOOLS = "tools or turns of tools"
MEDIA = "images or other media"
ANSWER_INSIDE = "a prompt in a chat template, with an answer inside"
REASONING = "reasoning beside the content of a message"
STRAY_TURNS = "turns (Human:, Assistant:) inside a text that is no transcript"
CUT_MESSAGES = "text that begins like messages and is no whole list of them"


def malformed(cell: Cell, wanted: str) -> Dropped:
    """The reason for a value of the wrong type, by its column and what stands there."""
    return Dropped(f"malformed: `{cell.column}` is {described(cell.value)}, not {wanted}")


def described(value: Any) -> str:
    """What kind of value it is, with the keys of an object."""
    match value:
        case None:
            return "empty"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case bytes():
            return "bytes that are not UTF-8"
        case dict():
            return f"an object of {', '.join(map(str, list(value)[:6])) or 'nothing'}"
        case []:
            return "an empty list"
        case [first, *_]:
            return f"a list whose first is {described(first)}"
    return f"a {type(value).__name__}"


def read(cell: Cell) -> Question:
    """A text as it is; messages from a list, from one message, or from the JSON text of either. Raises Dropped."""
    match cell.value:
        case str():
            messages = _messages_in_text(cell)
            return cell.value if messages is None else messages
        case list():
            return [_message(cell, item) for item in cell.value]
        case dict() if _is_message(cell.value):
            return [_message(cell, cell.value)]
    raise malformed(cell, "a text or messages")


def _messages_in_text(cell: Cell) -> list[Message] | None:
    """The messages whose JSON (or Python, as pandas writes lists to CSV) is the whole text; None for other text."""
    text = cell.value.strip()
    if not text.startswith(("[", "{")):
        return None
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        value, end = _python_value(text), len(text)
        if value is None and _LIKE_MESSAGES.match(text):
            raise Dropped(CUT_MESSAGES) from None
    items = value if isinstance(value, list) else [value]
    if end < len(text) or not items or not all(map(_is_message, items)):
        return None
    return [_message(cell, item) for item in items]


def _python_value(text: str) -> Any:
    if not _LIKE_MESSAGES.match(text):
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and bool({"role", "from"} & set(item)) and bool({"content", "value"} & set(item))


def _message(cell: Cell, item: Any) -> Message:
    """`{role, content}`, or ShareGPT's `{from, value}`; a file that mixes both leaves one pair empty."""
    if not isinstance(item, dict):
        raise malformed(cell, "a text or messages")
    if any(item.get(key) for key in _REASONING_KEYS):
        raise Dropped(REASONING)
    names = [str(item[key]).lower() for key in ("role", "from") if item.get(key) is not None]
    if names == [prompts.TOOLS] and (schemas := tools_in(Cell(prompts.TOOLS, item.get("content")))):
        return prompts.TOOLS, schemas
    if any(item.get(key) for key in _TOOL_KEYS) or set(names) & _TOOL_SPEAKERS:
        raise Dropped(TOOLS)
    if not names:
        raise Dropped(f"malformed: `{cell.column}` has {described(item)}, without a role")
    speakers = {_SPEAKERS.get(name) for name in names}
    if len(speakers) != 1 or None in speakers:
        raise Dropped(f"malformed: `{cell.column}` has a message of unknown role {' and '.join(names)[:30]}")
    contents = [item[key] for key in ("content", "value") if item.get(key) is not None]
    if len(contents) != 1:
        raise Dropped(f"malformed: `{cell.column}` has a message with {len(contents)} contents")
    return str(speakers.pop()), _content(cell, contents[0])


def _content(cell: Cell, content: Any) -> str:
    """A text, or the parts of one in a row."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str) or part.get("type", "text") != "text":
            kind = str(part.get("type")) if isinstance(part, dict) and part.get("type") else described(part)
            raise Dropped(f"malformed: `{cell.column}` has a message whose content is not text but {kind[:30]}")
    return "".join(part["text"] for part in parts)


def transcript(text: str) -> list[Message] | None:
    """The messages of a text with "Human:" and "Assistant:" after blank lines, as hh-rlhf has; None for other text.

    Without the leading blank line, a text that begins with "Human:" is a transcript if "Assistant:" follows. Raises
    Dropped for what has turns, but not so: where one turn ends cannot be told there.
    """
    body = text.lstrip()
    if not body.startswith("Human:") or not (text.startswith("\n\n") or "\n\nAssistant:" in body):
        if _OTHER_TRANSCRIPT.match(text) or set(_TURN.findall(text)) == {"Human", "Assistant"}:
            raise Dropped(STRAY_TURNS)
        return None
    _, *rest = _TURN.split("\n\n" + body)
    if "Assistant" not in rest[::2] and _OTHER_TRANSCRIPT.match(body):
        raise Dropped(STRAY_TURNS)
    speakers = [_SPEAKERS[name.lower()] for name in rest[::2]]
    return [(speaker, said.removeprefix(" ")) for speaker, said in zip(speakers, rest[1::2], strict=True)]


def question(cell: Cell) -> Question:
    """A prompt's value: a text as it is, or the messages up to an answer; transcripts are messages. Raises Dropped."""
    if is_nothing(cell.value):
        raise Dropped(EMPTY_PROMPT)
    said = conversation(read(cell))
    if isinstance(said, list) and said and said[-1][0] == "assistant":
        return said[:-1]
    return said


def conversation(said: Question) -> Question:
    """The messages of a transcript; anything else as it is. Raises Dropped."""
    turns = transcript(said) if isinstance(said, str) else None
    return said if turns is None else turns


def with_system(asked: Question, system: Cell | None) -> Question:
    """A question with the text of a column for system messages. Raises Dropped when another one is there."""
    if system is None or is_nothing(system.value):
        return asked
    if not isinstance(system.value, str):
        raise malformed(system, "a text")
    turns = [("user", asked)] if isinstance(asked, str) else asked
    tools = [turn for turn in turns[:1] if turn[0] == prompts.TOOLS]
    said = turns[len(tools) :]
    if said and said[0][0] == "system":
        if said[0][1].strip() != system.value.strip():
            raise Dropped(f"`{system.column}` contradicts the system message of the conversation")
        return turns
    return [*tools, ("system", system.value), *said] if system.value.strip() else asked


def tools_in(cell: Cell) -> str | None:
    """The schemas of tools as JSON, from a list of them or its JSON text; None where there are none. Raises Dropped."""
    value = cell.value
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise malformed(cell, "a JSON list of tools") from None
    if is_nothing(value) or value in ([], {}) or (isinstance(value, str) and not value.strip()):
        return None
    named = isinstance(value, list) and all(isinstance(tool, dict) and prompts.tool_name(tool) for tool in value)
    if not named:
        raise malformed(cell, "a list of tools, each with a name")
    if any(map(_has_empty_parameters, value)):
        raise Dropped(
            f"malformed: `{cell.column}` has parameters that are null, as a typed column fills them in; write the "
            "tools as JSON text"
        )
    return json.dumps(value, ensure_ascii=False)


def _has_empty_parameters(schema: Any) -> bool:
    """Whether a schema names a parameter that is null: no schema is, but a column of one type for all rows makes it."""
    if isinstance(schema, list):
        return any(map(_has_empty_parameters, schema))
    if not isinstance(schema, dict):
        return False
    properties = schema.get("properties")
    empty = isinstance(properties, dict) and None in properties.values()
    return empty or any(map(_has_empty_parameters, schema.values()))


def with_tools(asked: Question, cell: Cell) -> Question:
    """A question with the tools of a column of their own. Raises Dropped when other ones are there."""
    tools = tools_in(cell)
    turns = [("user", asked)] if isinstance(asked, str) else asked
    if tools is None or not turns:
        return asked
    if turns[0][0] == prompts.TOOLS:
        if turns[0][1] != tools:
            raise Dropped(f"`{cell.column}` contradicts the tools of the conversation")
        return turns
    return [(prompts.TOOLS, tools), *turns]


def rendered(asked: Question, turns: Turns) -> Prompt:
    """A question as a prompt. Raises Dropped when it is empty, or has turns that `turns` does not let in."""
    if not asked:
        raise Dropped(EMPTY_PROMPT)
    last = asked if isinstance(asked, str) else asked[-1][1]
    prompt = asked if isinstance(asked, str) else _of_turns(asked, turns)
    if not last.strip():
        raise Dropped(EMPTY_PROMPT)
    if _TEMPLATE_ANSWER.match(last):
        raise Dropped(ANSWER_INSIDE)
    return prompt


def _of_turns(asked: list[Message], turns: Turns) -> Prompt:
    speakers = [speaker for speaker, _ in asked]
    if prompts.TOOLS in speakers[1:] or (turns != "messages" and {"tool", prompts.TOOLS} & set(speakers)):
        raise Dropped(TOOLS)
    if asked[-1][0] not in prompts.ASKING:
        raise Dropped("malformed: the last turn before the answer is not the user's")
    match turns:
        case "transcript":
            return "".join(map(_written, asked)) + "\n\nAssistant:"
        case "single" if len(asked) > 1:
            raise Dropped(SEVERAL_TURNS)
    return prompts.of_turns(asked)


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
