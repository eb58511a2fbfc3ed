"""Small files in the shapes that people have, each with the table or the refusal that is right."""

import json
from dataclasses import dataclass, field
from typing import Any

from data.detecting import Kind
from tests.builders import Row

Q, GOOD, BAD = "Why is the sky blue?", "It scatters light.", "It is painted."
FIRST, SECOND = "Name a river.", "And a town?"


def said(*texts: str, system: str = "") -> list[Row]:
    """Messages by turns, the user first."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def shared(*texts: str, assistant: str = "gpt") -> list[Row]:
    """The same as ShareGPT writes it."""
    return [{"from": ("human", assistant)[i % 2], "value": text} for i, text in enumerate(texts)]


def hh(*texts: str) -> str:
    """The same as hh-rlhf writes it."""
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(texts))


@dataclass(frozen=True)
class Messy:
    """A file and what its import gives: rows as tuples of their texts, drops by reason, or a refusal."""

    kind: Kind
    rows: list[Row]
    table: list[tuple[Any, ...]] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    refused: str = ""
    settings: dict[str, Any] = field(default_factory=dict)


PAIR = (Q, GOOD, BAD)
SEVERAL = "several turns or a system message"
CONTRADICTED = "the prompt column contradicts the conversation in the answers"
STRAY = "turns (Human:, Assistant:) inside a text that is no transcript"
KEPT: Row = {"prompt": Q, "chosen": GOOD, "rejected": BAD}
SIDES = {"chosen": GOOD, "rejected": BAD}
OUTPUTS = {"instruction": Q, "output_1": GOOD, "output_2": BAD}


def pairs(row: Row, *more: Row, **expected: Any) -> Messy:
    """Preferences."""
    return Messy("preferences", [row, *more], **expected)


MESSY: dict[str, Messy] = {
    # The prompt has a column of its own, or is not guessed.
    "an instruction with its input": pairs(
        {"instruction": "Add.", "input": "1, 2", "chosen": "3", "rejected": "4"}, table=[("Add.\n\n1, 2", "3", "4")]
    ),
    "an instruction whose input is empty": pairs({"instruction": Q, "input": "", **SIDES}, table=[PAIR]),
    "a question": pairs({"question": Q, **SIDES}, table=[PAIR]),
    "a query": pairs({"query": Q, **SIDES}, table=[PAIR]),
    "a question with a system text (orca)": pairs(
        {"system": "Be kind.", "question": Q, **SIDES},
        {"system": "", "question": Q, **SIDES},
        table=[PAIR],
        dropped={SEVERAL: 1},
    ),
    "a system text in a transcript": pairs(
        {"system": "Be kind.", "question": Q, **SIDES},
        table=[(f"Be kind.\n\nHuman: {Q}\n\nAssistant:", f" {GOOD}", f" {BAD}")],
        settings={"turns": "transcript"},
    ),
    "two columns that may be the prompt": pairs(
        {"prompt": Q, "question": FIRST, **SIDES}, refused="prompt and question may each be .* --ignore question"
    ),
    "a column that may be a part of the prompt": pairs(
        {"question": Q, "context": "At noon.", **SIDES},
        refused="line 1: `context` may be a part of the prompt.*--map question=instruction --map context=input",
    ),
    "texts that begin alike": pairs(
        {"chosen": "The sky is blue.", "rejected": "The sky is black."}, refused="no prompt: plain texts"
    ),
    "texts and a column of unknown name": pairs({"frage": Q, **SIDES}, refused="--map frage=prompt"),
    "texts and a column that may hold the prompt": pairs(
        {"context": Q, **SIDES}, refused="context may hold it. Say which: --map context=prompt"
    ),
    "messages and a column that may hold the prompt": pairs(
        {"post": "x", "chosen": said(Q, GOOD), "rejected": said(Q, BAD)}, refused="post may hold it"
    ),
    "the column that the user names": pairs(
        {"frage": Q, **SIDES}, table=[PAIR], settings={"names": {"frage": "prompt"}}
    ),
    "a column that comes after the first rows": pairs(
        *[{"chosen": hh(f"{i}?", GOOD), "rejected": hh(f"{i}?", BAD)} for i in range(100)],
        KEPT,
        refused="line 101: the column prompt is first here",
    ),
    # Transcripts.
    "hh-rlhf": pairs({"chosen": hh(Q, GOOD), "rejected": hh(Q, BAD)}, table=[PAIR]),
    "hh-rlhf without the leading blank lines": pairs(
        {"chosen": hh(Q, GOOD).strip(), "rejected": hh(Q, BAD).strip()}, table=[PAIR]
    ),
    "hh-rlhf of several turns": pairs(
        {"chosen": hh(FIRST, "Rhine.", SECOND, "Ulm."), "rejected": hh(FIRST, "Rhine.", SECOND, "No.")},
        {"chosen": hh(Q, GOOD), "rejected": hh(Q, BAD)},
        table=[PAIR],
        dropped={SEVERAL: 1},
    ),
    "hh-rlhf whose sides differ early": pairs(
        {"chosen": hh(FIRST, "Rhine.", SECOND, "Ulm."), "rejected": hh(FIRST, "Elbe.", SECOND, "No.")},
        {"chosen": hh(Q, GOOD), "rejected": hh(Q, BAD)},
        table=[PAIR],
        dropped={"chosen and rejected answer different prompts": 1},
    ),
    "hh-rlhf cut into prompt and answers": pairs(
        {"prompt": hh(Q, "").rstrip(), "chosen": " " + GOOD, "rejected": BAD}, table=[PAIR]
    ),
    "hh-rlhf with a prompt column": pairs({"prompt": Q, "chosen": hh(Q, GOOD), "rejected": hh(Q, BAD)}, table=[PAIR]),
    "hh-rlhf of several turns with a prompt column": pairs(
        KEPT,
        {"prompt": FIRST, "chosen": hh(FIRST, "a", SECOND, "b"), "rejected": hh(FIRST, "a", SECOND, "c")},
        table=[PAIR],
        dropped={SEVERAL: 1},
    ),
    "an answer that goes on with the next turn": pairs(
        KEPT, KEPT | {"chosen": GOOD + hh(SECOND, "Ulm.")}, table=[PAIR], dropped={STRAY: 1}
    ),
    "turns without blank lines": pairs(
        KEPT,
        {"prompt": None, "chosen": f"Human: {Q}\nAssistant: {GOOD}", "rejected": f"Human: {Q}\nAssistant: {BAD}"},
        table=[PAIR],
        dropped={STRAY: 1},
    ),
    "transcripts beside an unrelated prompt": pairs(
        {"prompt": "7", "best": hh(Q, GOOD), "worst": hh(Q, BAD)},
        refused=f"{CONTRADICTED}: 1.* --ignore prompt",
        settings={"names": {"best": "chosen", "worst": "rejected"}},
    ),
    "an unrelated prompt that is ignored": pairs(
        {"prompt": "7", "best": hh(Q, GOOD), "worst": hh(Q, BAD)},
        table=[PAIR],
        settings={"names": {"best": "chosen", "worst": "rejected"}, "ignored": ("prompt",)},
    ),
    "transcripts as prompts": Messy(
        "prompts",
        [{"chosen": hh(Q, GOOD)}, {"chosen": hh(FIRST, "a", SECOND, "b")}],
        table=[(Q,)],
        dropped={SEVERAL: 1},
        settings={"names": {"chosen": "prompt"}},
    ),
    "transcripts as prompts, written out": Messy(
        "prompts",
        [{"prompt": hh(FIRST, "a", SECOND, "b")}],
        table=[(hh(FIRST, "a", SECOND) + "\n\nAssistant:",)],
        settings={"turns": "transcript"},
    ),
    # Messages, however they are written.
    "messages as JSON text": pairs(
        {"chosen": json.dumps(said(Q, GOOD)), "rejected": json.dumps(said(Q, BAD))}, table=[PAIR]
    ),
    "messages as Python text": pairs({"chosen": str(said(Q, GOOD)), "rejected": str(said(Q, BAD))}, table=[PAIR]),
    "JSON text of messages that is cut short": pairs(
        KEPT,
        KEPT | {"chosen": json.dumps(said(Q, GOOD))[:-2]},
        table=[PAIR],
        dropped={"text that begins like messages and is no whole list of them": 1},
    ),
    "JSON that is an answer": pairs(
        {"prompt": Q, "chosen": '{"a": 1}', "rejected": "[1, 2]"}, table=[(Q, '{"a": 1}', "[1, 2]")]
    ),
    "messages that contradict the prompt": pairs(
        KEPT,
        {"prompt": FIRST, "chosen": said(Q, GOOD), "rejected": said(Q, BAD)},
        table=[PAIR],
        dropped={CONTRADICTED: 1},
    ),
    "one answer of messages, one of text": pairs(
        KEPT, KEPT | {"chosen": said(Q, GOOD)}, table=[PAIR], dropped={"one answer is a text, the other messages": 1}
    ),
    "one message as the answer": pairs(
        {"prompt": Q, "chosen": said(Q, GOOD)[1], "rejected": said(Q, BAD)[1]}, table=[PAIR]
    ),
    "an object of another kind as the answer": pairs(
        {"prompt": Q, "chosen": {"text": GOOD, "n": 1}, "rejected": {"text": BAD, "n": 2}},
        refused="`chosen` is an object of text, n, not a text or messages: 1.*Known shapes of preferences",
    ),
    "an object of another kind, by a path": pairs(
        {"prompt": Q, "chosen": {"text": GOOD}, "rejected": {"text": BAD}},
        table=[PAIR],
        settings={"names": {"chosen.text": "chosen", "rejected.text": "rejected"}},
    ),
    "ShareGPT ranking, one message each": pairs(
        {"conversations": shared(Q), "chosen": shared(Q, GOOD)[1], "rejected": shared(Q, BAD)[1]}, table=[PAIR]
    ),
    "ShareGPT ranking, lists": pairs(
        {"conversations": shared(Q), "chosen": shared(Q, GOOD)[1:], "rejected": shared(Q, BAD)[1:]}, table=[PAIR]
    ),
    "ShareGPT ranking, texts": pairs({"conversations": shared(Q), **SIDES}, table=[PAIR]),
    "ShareGPT ranking with a system text": pairs(
        {"conversations": shared(Q), "system": "", **SIDES},
        {"conversations": shared(Q), "system": "Be kind.", **SIDES},
        table=[PAIR],
        dropped={SEVERAL: 1},
    ),
    "messages that end with the chosen answer": pairs({"messages": said(Q, GOOD), **SIDES}, table=[PAIR]),
    "messages that end with another answer": pairs(
        {"messages": said(Q), **SIDES},
        {"messages": said(Q, "Because."), **SIDES},
        table=[PAIR],
        dropped={"the prompt's last turn is an answer, and neither of the row's": 1},
    ),
    "role names of all kinds": Messy(
        "prompts",
        [{"conversations": shared(name, "b", assistant=name)} for name in ("model", "bot", "chatgpt", "gpt")],
        table=[("model",), ("bot",), ("chatgpt",), ("gpt",)],
    ),
    "an unknown role": Messy(
        "prompts",
        [{"messages": said(Q)}, {"messages": [{"role": "narrator", "content": "Once."}]}],
        table=[(Q,)],
        dropped={"malformed: `messages` has a message of unknown role narrator": 1},
    ),
    "an empty role beside from": Messy(
        "prompts",
        [{"messages": [{"role": None, "content": None, "from": "human", "value": Q}]}],
        table=[(Q,)],
    ),
    "content in parts": Messy(
        "prompts",
        [
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": Q[:5]}, {"type": "text", "text": Q[5:]}]}
                ]
            },
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "a.png"}]}]},
        ],
        table=[(Q,)],
        dropped={"malformed: `messages` has a message whose content is not text but image": 1},
    ),
    "turns of tools": Messy(
        "prompts",
        [
            {"messages": said(Q)},
            {"messages": [*said(FIRST), {"role": "tool", "content": "Rhine"}]},
            {"messages": said(SECOND), "tools": [{"name": "search"}]},
        ],
        table=[(Q,)],
        dropped={"tools or turns of tools": 2},
    ),
    "reasoning beside the content": pairs(
        KEPT,
        {"prompt": Q, "chosen": [said(Q, GOOD)[1] | {"reasoning_content": "Hm."}], "rejected": said(Q, BAD)[1:]},
        table=[PAIR],
        dropped={"reasoning beside the content of a message": 1},
    ),
    "mt_bench": Messy("prompts", [{"turns": [Q]}, {"turns": [FIRST, SECOND]}], table=[(Q,)], dropped={SEVERAL: 1}),
    "an Alpaca history": Messy(
        "prompts",
        [{"instruction": Q, "history": []}, {"instruction": SECOND, "history": [[FIRST, "Rhine."]]}],
        table=[(Q,)],
        dropped={SEVERAL: 1},
    ),
    "messages beside a prompt that say more": pairs(
        {"prompt": Q, "messages": said(Q, GOOD), **SIDES},
        {"prompt": Q, "messages": said(Q, GOOD, system="Be kind."), **SIDES},
        {"prompt": Q, "messages": said(FIRST, "Rhine."), **SIDES},
        table=[PAIR],
        dropped={SEVERAL: 1, CONTRADICTED: 1},
    ),
    "a conversation of another kind beside a prompt": pairs(
        {"prompt": Q, "conversation": [{"input": Q, "output": GOOD}], **SIDES},
        refused="`conversation` has an object of input, output, without a role.*--ignore leaves a column out",
    ),
    "that conversation, ignored": pairs(
        {"prompt": Q, "conversation": [{"input": Q, "output": GOOD}], **SIDES},
        table=[PAIR],
        settings={"ignored": ("conversation",)},
    ),
    "pictures": pairs(
        {"prompt": Q, "images": [], **SIDES},
        {"prompt": Q, "images": ["a.png"], **SIDES},
        table=[PAIR],
        dropped={"images or other media": 1},
    ),
    "prompts in a chat template": Messy(
        "prompts",
        [
            {"text": f"### Human: {Q}### Assistant: {GOOD}"},
            {"text": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{GOOD}<|im_end|>"},
            {"text": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n"},
        ],
        table=[(f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n",)],
        dropped={"a prompt in a chat template, with an answer inside": 2},
    ),
    "an empty prompt": pairs(KEPT, {"prompt": "", **SIDES}, table=[PAIR], dropped={"empty prompt": 1}),
    "NaN for nothing": pairs(
        KEPT,
        {"prompt": float("nan"), **SIDES},
        {"prompt": Q, "chosen": GOOD, "rejected": float("nan")},
        table=[PAIR],
        dropped={"empty prompt": 1, "empty answer": 1},
    ),
    # Answers that repeat the prompt.
    "answers that repeat the prompt": pairs(
        {"prompt": Q, "chosen": f"{Q} {GOOD}", "rejected": f"{Q} {BAD}"}, table=[(Q, f" {GOOD}", f" {BAD}")]
    ),
    "answers after the prompt's line": pairs(
        {"prompt": "Write a poem", "chosen": "Write a poem\nRoses", "rejected": "Write a poem\n\nNo"},
        table=[("Write a poem", "\nRoses", "\n\nNo")],
    ),
    "answers that only greet back": pairs(
        KEPT,
        {"prompt": "Hi", "chosen": "Hi there!", "rejected": "Hi."},
        table=[PAIR],
        dropped={"answers begin with the prompt's words, maybe repeating it": 1},
    ),
    "one answer that quotes the prompt": pairs(
        {"prompt": Q, "chosen": f"{Q} {GOOD}", "rejected": BAD}, table=[(Q, f"{Q} {GOOD}", BAD)]
    ),
    # Paths and constants.
    "nested columns": Messy(
        "prompts", [{"data": {"prompt": Q, "n": 1}}], table=[(Q,)], settings={"names": {"data.prompt": "prompt"}}
    ),
    "a constant prompt": pairs(SIDES, table=[("Go on.", GOOD, BAD)], settings={"names": {'"Go on."': "prompt"}}),
}
