"""Laws of imports: no character is invented, lost or moved; neither columns' order nor other rows change a row."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.conversations import Dropped
from data.detecting import Kind, detect
from data.errors import BadInput
from data.importing import Request, import_data
from data.shapes import Extracted, Reading, extract
from tests.builders import Row, write_jsonl
from tests.data.messy import hh, said, shared

# Texts with what could be taken for structure: blanks, quotes, brackets, line ends, speakers.
pieces = st.sampled_from(
    ["a", "B", "é", " ", "\n", "\n\n", "Human", ":", '"', "'", "[", "{", "}", "\\", "\u2028", "|", "1"]
)
texts = st.lists(pieces, min_size=1, max_size=8).map("".join).filter(lambda text: bool(text.strip()))
# As turns of a transcript, which takes the blank after the speaker's name for its own.
plain = st.lists(st.sampled_from(["a", "B", "é", "?", "'", "{"]), min_size=1, max_size=6).map("".join)

LAYOUTS: dict[str, Callable[[str, str, str], Row]] = {
    "texts": lambda q, a, b: {"prompt": q, "chosen": a, "rejected": b},
    "messages": lambda q, a, b: {"chosen": said(q, a), "rejected": said(q, b)},
    "prompt and messages": lambda q, a, b: {"prompt": q, "chosen": said(q, a), "rejected": said(q, b)},
    "all messages": lambda q, a, b: {"prompt": said(q), "chosen": said("", a)[1:], "rejected": said("", b)[1:]},
    "one message": lambda q, a, b: {
        "conversations": shared(q),
        "chosen": shared("", a)[1],
        "rejected": shared("", b)[1],
    },
    "JSON text": lambda q, a, b: {"chosen": json.dumps(said(q, a)), "rejected": json.dumps(said(q, b))},
    "outputs": lambda q, a, b: {"instruction": q, "output_1": b, "output_2": a, "preference": 2},
    "scores": lambda q, a, b: {"prompt": q, "responses": [b, a], "scores": [1, 2]},
    "ranks": lambda q, a, b: {"prompt": q, "answers": [{"answer": b, "rank": 2}, {"answer": a, "rank": 1}]},
    "strengths": lambda q, a, b: {"prompt": q, "response1": a, "response2": b, "overall_preference": -1},
}


def extracted(kind: Kind, row: Row) -> Extracted:
    return extract(Reading(detect(kind, row, where="here")), row, where="here")


@pytest.mark.parametrize("layout", LAYOUTS)
@given(question=texts, better=texts, worse=texts)
def test_no_layout_invents_loses_or_moves_a_character(layout: str, question: str, better: str, worse: str) -> None:
    (row,) = extracted("preferences", LAYOUTS[layout](question, better, worse))
    if not isinstance(row, Dropped):
        repeated = question if row["chosen"] != better else ""
        assert (row["prompt"], repeated + row["chosen"], repeated + row["rejected"]) == (question, better, worse)


@given(question=plain, better=plain, worse=plain, lead=st.sampled_from(["", "\n\n", "\n"]))
def test_a_transcript_gives_its_turns(question: str, better: str, worse: str, lead: str) -> None:
    sides = [lead + hh(question, answer).lstrip() for answer in (better, worse)]
    (row,) = extracted("preferences", {"chosen": sides[0], "rejected": sides[1]})
    if better == worse:
        assert isinstance(row, Dropped)
    else:
        assert isinstance(row, dict)
        assert (row["prompt"], row["chosen"], row["rejected"]) == (question, better, worse)


@given(turns=st.lists(plain, min_size=4, max_size=8).filter(lambda turns: len(turns) % 2 == 0), last=plain)
def test_conversations_written_out_are_the_transcripts_that_came(turns: list[str], last: str) -> None:
    rejected = [*turns[:-1], "R" + last]
    for row in (
        {"chosen": hh(*turns), "rejected": hh(*rejected)},
        {"chosen": said(*turns), "rejected": said(*rejected)},
        {"prompt": turns[0], "chosen": hh(*turns), "rejected": hh(*rejected)},
        {"prompt": said(*turns[:-1]), "chosen": turns[-1], "rejected": rejected[-1]},
    ):
        reading = Reading(detect("preferences", row, where="here"), turns="transcript")
        (pair,) = extract(reading, row, where="here")
        assert isinstance(pair, dict)
        assert pair["prompt"] + pair["chosen"] == hh(*turns)
        assert pair["prompt"] + pair["rejected"] == hh(*rejected)


@given(turns=st.lists(texts, min_size=4, max_size=8).filter(lambda turns: len(turns) % 2 == 0), system=texts)
def test_the_messages_of_a_conversation_are_the_turns_that_came(turns: list[str], system: str) -> None:
    asked, rejected = said(*turns[:-1], system=system), "R" + turns[-1]
    for row in (
        {"chosen": said(*turns, system=system), "rejected": said(*turns[:-1], rejected, system=system)},
        {"chosen": said(*turns), "rejected": said(*turns[:-1], rejected), "system": system},
        {"prompt": asked, "chosen": said("", turns[-1])[1:], "rejected": said("", rejected)[1:]},
        {"prompt": json.dumps(asked), "chosen": said("", turns[-1])[1:], "rejected": said("", rejected)[1:]},
    ):
        (pair,) = extracted("preferences", row)
        assert isinstance(pair, dict)
        assert (pair["messages"], pair["chosen"], pair["rejected"]) == (asked, turns[-1], rejected)


@given(chosen=texts, rejected=texts)
def test_without_turns_no_prompt_is_ever_cut_out_of_two_texts(chosen: str, rejected: str) -> None:
    (row,) = extracted("preferences", {"chosen": chosen, "rejected": rejected})
    assert isinstance(row, Dropped)


@given(text=texts)
def test_a_prompt_is_the_text_that_came(text: str) -> None:
    for layout in ({"prompt": text}, {"question": text}, {"messages": said(text, "So.")}, {"turns": [text]}):
        (row,) = extracted("prompts", layout)
        assert isinstance(row, Dropped) or row["prompt"] == text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("laws")


def written(folder: Path, rows: list[Row]) -> list[Row] | str:
    """The table, or that there is none."""
    try:
        import_data(Request(str(write_jsonl(folder / "a.jsonl", rows)), "preferences", folder / "out.parquet"))
    except BadInput as refused:
        return str(refused).replace("rejected, chosen", "chosen, rejected")
    return pq.read_table(folder / "out.parquet").to_pylist()


answers = st.one_of(texts, texts.map(lambda text: said("a", text)), texts.map(lambda text: hh("a", text)), st.none())
rows_of_all_kinds = st.lists(
    st.fixed_dictionaries({"prompt": st.sampled_from(["a", "a b", None]), "chosen": answers, "rejected": answers}),
    min_size=1,
    max_size=5,
)


@given(rows=rows_of_all_kinds, seed=st.integers(0, 9))
def test_columns_in_any_order_give_the_same_table(folder: Path, rows: list[Row], seed: int) -> None:
    draw = random.Random(seed)
    shuffled = [dict(draw.sample(list(row.items()), len(row))) for row in rows]
    assert written(folder, shuffled) == written(folder, rows)


@given(rows=rows_of_all_kinds)
def test_a_row_says_the_same_alone_and_among_others(folder: Path, rows: list[Row]) -> None:
    kept: list[Any] = []
    for row in rows:
        table = written(folder, [row])
        kept += [pair for pair in table if pair not in kept] if isinstance(table, list) else []
    together = written(folder, rows)
    assert (together if isinstance(together, list) else []) == kept
