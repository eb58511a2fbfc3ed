"""The shapes that outside data comes in, told by their columns."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Literal

from data import ranking
from data.errors import BadInput

Kind = Literal["prompts", "preferences", "feedback"]
Name = Literal[
    "prompt",
    "instruction",
    "messages",
    "turns",
    "compared",
    "implicit prompt",
    "output pairs",
    "strengths",
    "ranked answers",
    "good",
    "conversation",
]

IDS = ("source_id", "id", "prompt_id")
MARGINS = ("margin", "score_chosen", "score_rejected")
GENERATORS = ("chosen_generator", "rejected_generator")
SYSTEMS = ("system", "system_prompt")
REFERENCE = "reference"  # the right answer to a prompt
MEDIA_COLUMNS = ("images", "image", "videos", "audios")
_BESIDE = (*SYSTEMS, "history", "tools", *MEDIA_COLUMNS)  # columns that belong to any prompt

_TEXT_PROMPTS = ("prompt", "instruction", "question", "query")
MESSAGES = ("messages", "conversations", "conversation")
# Columns that may hold a prompt, or a part of it. Without a word of the user's they are never taken for one.
_MAYBE_PROMPTS = (
    *("input", "inputs", "context", "text", "turns", "post", "passage", "document", "article", "dialogue", "dialog"),
    *("problem", "request", "source_text", "instances"),
)
PARTS = ("input", "context", "passage", "document", "article")

_OUTPUTS = (("output_1", "output_2"), ("response_1", "response_2"), ("response1", "response2"))
_STRENGTHS = ("preference_strength", "overall_preference")
_COMPLETIONS = ("completion", "response", "output")
_LABELS = ("good", "label", "kto_tag")

KNOWN: dict[Kind, str] = {
    "prompts": "one of prompt, question, query, instruction (+ input), messages, conversations, text, turns",
    "preferences": "a prompt column (prompt, question, query, instruction + input, messages or conversations) + chosen "
    "+ rejected; chosen + rejected as conversations; a prompt column + output_1 + output_2 + preference; a prompt "
    "column + response_1 + response_2 + preference_strength; a prompt column + completions, responses or answers with "
    "scores or ranks",
    "feedback": "a prompt column + completion + good or label; messages or conversations + label",
}


@dataclass(frozen=True)
class Shape:
    """One way to write down a kind of data, with the columns that a file has for it."""

    kind: Kind
    name: Name
    prompt: str | None  # the column that holds the prompt; None: the answers bring it
    needs: tuple[str, ...]  # columns that every row must have
    takes: tuple[str, ...] = ()  # columns that are used where they are there
    zero_is_tie: bool = False  # of a preference: the columns are AlpacaEval's, which documents it
    one_is_first: bool = False  # of a preference: the columns are AlpacaFarm's, which documents it

    @cached_property
    def uses(self) -> tuple[str, ...]:
        """All columns that a row of the shape is read from."""
        return (*self.needs, *self.takes, *IDS)


def known_names() -> set[str]:
    """Every name that --map can give a column."""
    outputs = chain.from_iterable(_OUTPUTS)
    names = {
        *_TEXT_PROMPTS,
        *MESSAGES,
        "text",
        "turns",
        "input",
        "instances",
        *_BESIDE,
        "chosen",
        "rejected",
        *outputs,
    }
    names |= {REFERENCE, "preference", *_STRENGTHS, "generator_1", "generator_2", *MARGINS, *GENERATORS, *IDS}
    return names | {*ranking.ANSWERS, *ranking.SCORES, *ranking.RANKS, *_COMPLETIONS, *_LABELS}


def detect(kind: Kind, columns: Collection[str], *, where: str, mapped: Collection[str] = ()) -> Shape:
    """The shape that these columns tell; `mapped` are those that the user named.

    Raises BadInput naming `where`, the columns and the shapes known, also where two columns could be the same thing.
    """
    match kind:
        case "prompts":
            shape = _prompts(columns, mapped, where)
        case "preferences":
            shape = _preferences(columns, mapped, where)
        case _:
            shape = _feedback(columns, mapped, where)
    if shape is None:
        hint = " Name the columns with --map, such as --map headline=prompt." if columns else ""
        raise BadInput(
            f"{where}: no known shape of {kind}. Found columns {', '.join(columns) or 'none'}; expected {KNOWN[kind]}."
            f"{hint}"
        )
    return shape


def _prompts(columns: Collection[str], mapped: Collection[str], where: str) -> Shape | None:
    prompt = _prompt_column(columns, mapped, where)
    if prompt is None:
        prompt = _only("text" if "text" in columns else "turns", columns)
    if prompt is None:
        return None
    names: dict[str, Name] = {"instruction": "instruction", "turns": "turns", **dict.fromkeys(MESSAGES, "messages")}
    return Shape("prompts", names.get(prompt, "prompt"), prompt, (prompt,), (*_beside(prompt), REFERENCE))


def _preferences(columns: Collection[str], mapped: Collection[str], where: str) -> Shape | None:
    prompt = _prompt_column(columns, mapped, where)
    if {"chosen", "rejected"} <= set(columns):
        return _compared(prompt, columns, where)
    answers = _one_of(ranking.ANSWERS, columns, mapped, where)
    outputs = next((pair for pair in _OUTPUTS if set(pair) <= set(columns)), None)
    prompt = prompt or _only("context", columns)  # HelpSteer 3 and NeMo have messages there
    if prompt is None:
        return None
    beside = (*_beside(prompt), *_conversations(prompt))
    strength = _one_of(_STRENGTHS, columns, mapped, where)
    if outputs and "preference" in columns:
        generators = ("generator_1", "generator_2")
        farm = outputs == _OUTPUTS[0] and not set(mapped) & {*outputs, "preference"}
        alpaca_eval = farm and {*generators, "annotator"} <= set(columns)
        needs, takes = (prompt, *outputs, "preference"), (*beside, *generators)
        return Shape("preferences", "output pairs", prompt, needs, takes, zero_is_tie=alpaca_eval, one_is_first=farm)
    if outputs and strength:
        return Shape("preferences", "strengths", prompt, (prompt, *outputs, strength), beside)
    if answers:
        takes = (*beside, *ranking.SCORES, *ranking.RANKS)
        return Shape("preferences", "ranked answers", prompt, (prompt, answers), takes)
    return None


def _compared(prompt: str | None, columns: Collection[str], where: str) -> Shape:
    answers, beside = ("chosen", "rejected"), (*MARGINS, *GENERATORS)
    if prompt is not None:
        takes = (*_beside(prompt), *_conversations(prompt), *beside)
        return Shape("preferences", "compared", prompt, (prompt, *answers), takes)
    maybe = [column for column in columns if column in _MAYBE_PROMPTS]
    if maybe:
        raise BadInput(
            f"{where}: no column is clearly the prompt, but {', '.join(maybe)} may hold it. Say which: "
            f"--map {maybe[0]}=prompt, or --ignore {maybe[0]} if it is none."
        )
    return Shape("preferences", "implicit prompt", None, answers, (*_BESIDE, *beside))


def _feedback(columns: Collection[str], mapped: Collection[str], where: str) -> Shape | None:
    prompt = _prompt_column(columns, mapped, where)
    answer = _one_of(_COMPLETIONS, columns, mapped, where)
    label = _one_of(_LABELS, columns, mapped, where)
    if prompt is None or label is None:
        return None
    if answer is not None:
        takes = (*_beside(prompt), *_conversations(prompt))
        return Shape("feedback", "good", prompt, (prompt, answer, label), takes)
    if prompt in MESSAGES:
        return Shape("feedback", "conversation", prompt, (prompt, label), _BESIDE)
    return None


def _prompt_column(columns: Collection[str], mapped: Collection[str], where: str) -> str | None:
    """The column that is clearly the prompt: a text by its name, else messages."""
    return _one_of(_TEXT_PROMPTS, columns, mapped, where) or _one_of(MESSAGES, columns, mapped, where)


def _one_of(names: Collection[str], columns: Collection[str], mapped: Collection[str], where: str) -> str | None:
    """The one of these names that is there; the one that the user named goes before others."""
    there = [name for name in names if name in mapped] or [name for name in names if name in columns]
    if len(there) > 1:
        raise BadInput(
            f"{where}: the columns {' and '.join(there)} may each be what is wanted. Say which to leave out, such as "
            f"--ignore {there[-1]}."
        )
    return there[0] if there else None


def _only(name: str, columns: Collection[str]) -> str | None:
    return name if name in columns else None


def _conversations(prompt: str) -> tuple[str, ...]:
    """Columns of messages beside a prompt of text, which must agree with it and may say more."""
    return () if prompt in MESSAGES else MESSAGES


def _beside(prompt: str) -> tuple[str, ...]:
    """What belongs to a prompt beside its own column. Instructions have inputs; Self-Instruct's are in `instances`."""
    return ("input", "instances", *_BESIDE) if prompt == "instruction" else _BESIDE
