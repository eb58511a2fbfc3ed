"""Imports: every common shape comes out the same, what cannot be kept is counted, what is broken is refused."""

import csv
import gzip
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import card, columns, detecting, importing
from data.detecting import Kind
from data.errors import BadInput
from data.importing import Imported, Request, import_data, is_heldout
from data.readers import prompt_id, prompt_key, read_feedback, read_jsonl
from data.schemas import IMPORTED
from tests.builders import Row, write_jsonl

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("PCO_SHARED_DATA", ROOT.parent / "shared" / "data"))

QUESTION, BETTER, WORSE = "Why is the sky blue?", "It scatters light.", "It is painted."


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that overwrite their files in each example."""
    return tmp_path_factory.mktemp("import")


def imported(folder: Path, rows: Sequence[Any], kind: Kind, **settings: Any) -> tuple[Imported, list[Row]]:
    """What an import of these rows did, and the rows that came out."""
    source = write_jsonl(folder / "source.jsonl", rows)
    done = import_data(Request(str(source), kind, folder / "out.parquet", **settings))
    table = pq.read_table(folder / "out.parquet")
    assert table.schema.equals(IMPORTED[kind])
    return done, table.to_pylist()


def read_map(words: Sequence[str]) -> dict[str, str]:
    return columns.read_map(words, detecting.known_names())


# Shapes.

PROMPT_SHAPES: dict[str, tuple[Row, str]] = {
    "prompt": ({"prompt": QUESTION}, QUESTION),
    "conversational prompt": ({"prompt": [user(QUESTION)]}, QUESTION),
    "instruction": ({"instruction": QUESTION, "input": "", "output": BETTER}, QUESTION),
    "instruction with input": ({"instruction": "Add.", "input": "1, 2", "output": "3"}, "Add.\n\n1, 2"),
    "instruction with instances": (
        {"instruction": "Add.", "instances": [{"input": "1, 2", "output": "3"}]},
        "Add.\n\n1, 2",
    ),
    "messages": ({"messages": [user(QUESTION), assistant(BETTER)]}, QUESTION),
    "ShareGPT": ({"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": BETTER}]}, QUESTION),
    "text": ({"text": QUESTION}, QUESTION),
}


@pytest.mark.parametrize("shape", PROMPT_SHAPES)
def test_prompts_of_every_shape_come_out_as_prompts(tmp_path: Path, shape: str) -> None:
    row, prompt = PROMPT_SHAPES[shape]
    _, rows = imported(tmp_path, [{**row, "id": 7}], "prompts")
    assert rows == [
        {"prompt_id": prompt_id(prompt), "source_id": "7", "prompt": prompt, "messages": None, "reference": None}
    ]


NAMED = {"generator_1": "one", "generator_2": "two", "annotator": "judge"}  # AlpacaEval's, whose coding is documented
HH = f"\n\nHuman: {QUESTION}\n\nAssistant: "
PAIR_SHAPES: dict[str, Row] = {
    "TRL standard": {"prompt": QUESTION, "chosen": BETTER, "rejected": WORSE},
    "TRL conversational": {"prompt": [user(QUESTION)], "chosen": [assistant(BETTER)], "rejected": [assistant(WORSE)]},
    "TRL implicit conversational": {
        "chosen": [user(QUESTION), assistant(BETTER)],
        "rejected": [user(QUESTION), assistant(WORSE)],
    },
    "ultrafeedback_binarized": {
        "prompt": QUESTION,
        "chosen": [user(QUESTION), assistant(BETTER)],
        "rejected": [user(QUESTION), assistant(WORSE)],
    },
    "hh-rlhf": {"chosen": HH + BETTER, "rejected": HH + WORSE},
    "alpaca_farm": {"instruction": QUESTION, "input": "", "output_1": BETTER, "output_2": WORSE, "preference": 1},
    "AlpacaEval": {"instruction": QUESTION, "output_1": WORSE, "output_2": BETTER, "preference": 2.0},
}


@pytest.mark.parametrize("shape", PAIR_SHAPES)
def test_preferences_of_every_shape_come_out_the_same(tmp_path: Path, shape: str) -> None:
    _, rows = imported(tmp_path, [PAIR_SHAPES[shape]], "preferences")
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [(QUESTION, BETTER, WORSE)]


def test_a_prompt_is_never_cut_out_of_plain_texts_that_begin_alike(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no prompt: plain texts, and no column holds a prompt: 1"):
        imported(tmp_path, [{"chosen": "The sky is blue.", "rejected": "The sky is black."}], "preferences")


@pytest.mark.parametrize("label", [True, 1, 1.0, "true", "True", "1", "1.0"])
@pytest.mark.parametrize("column", ["label", "good"])
@pytest.mark.parametrize("conversational", [False, True])
def test_feedback_of_every_shape_comes_out_the_same(
    tmp_path: Path, label: object, column: str, conversational: bool
) -> None:
    said = ([user(QUESTION)], [assistant(BETTER)]) if conversational else (QUESTION, BETTER)
    _, (row,) = imported(tmp_path, [{"prompt": said[0], "completion": said[1], column: label}], "feedback")
    assert (row["prompt"], row["completion"], row["good"]) == (QUESTION, BETTER, True)


@pytest.mark.parametrize(("own", "kept"), [(7, "7"), ("x", "x"), ("", None), (None, None), ([1], "[1]")])
def test_the_ids_of_the_source_are_kept_as_text(tmp_path: Path, own: object, kept: str | None) -> None:
    _, (row,) = imported(tmp_path, [{"prompt": QUESTION, "id": own}], "prompts")
    assert row["source_id"] == kept


def test_scores_become_a_margin_and_generators_go_with_their_answers(tmp_path: Path) -> None:
    scored = PAIR_SHAPES["ultrafeedback_binarized"] | {"score_chosen": 8.5, "score_rejected": 6}
    _, (row,) = imported(tmp_path, [scored], "preferences")
    assert row["margin"] == 2.5
    named = PAIR_SHAPES["AlpacaEval"] | {"generator_1": "one", "generator_2": "two"}
    _, (row,) = imported(tmp_path, [named], "preferences")
    assert (row["chosen_generator"], row["rejected_generator"], row["margin"]) == ("two", "one", None)


@pytest.mark.parametrize("column", ["margin", "score_chosen", "score_rejected"])
def test_an_infinite_score_is_refused_by_row_and_column(tmp_path: Path, column: str) -> None:
    source = tmp_path / "a.csv"
    source.write_text(f"prompt,chosen,rejected,{column}\na,b,c,1\nd,e,f,-inf\n")
    with pytest.raises(BadInput, match=f"a.csv, line 3: `{column}` is infinite"):
        import_data(Request(str(source), "preferences", tmp_path / "out.parquet"))
    assert not (tmp_path / "out.parquet").exists()


def test_a_preference_between_1_and_2_says_also_how_sure_it_is(tmp_path: Path) -> None:
    _, (row,) = imported(tmp_path, [PAIR_SHAPES["AlpacaEval"] | {"preference": 1.75}], "preferences")
    assert (row["chosen"], row["margin"]) == (BETTER, 0.5)


def test_mapped_columns_stand_for_the_names_that_shapes_know(tmp_path: Path) -> None:
    rows = [{"question": QUESTION, "good one": BETTER, "bad one": WORSE, "prompt": "another"}]
    names = read_map(["question=prompt", "good one=chosen", "bad one = rejected"])
    done, (row,) = imported(tmp_path, rows, "preferences", names=names)
    assert (row["prompt"], row["chosen"], row["rejected"]) == (QUESTION, BETTER, WORSE)
    assert done.shape.name == "compared"


def test_a_row_without_the_mapped_column_does_not_fall_back_on_a_column_of_that_name(tmp_path: Path) -> None:
    rows = [{"question": "a"}, {"prompt": "b"}]
    done, (row,) = imported(tmp_path, rows, "prompts", names={"question": "prompt"})
    assert (row["prompt"], done.dropped) == ("a", {"malformed: no `prompt`": 1})


# Conversations of several turns.

CHAT = [user("Hi"), assistant("Hello"), user(QUESTION)]


def test_conversations_of_several_turns_are_kept_as_messages(tmp_path: Path) -> None:
    rows = [PAIR_SHAPES["hh-rlhf"], {"chosen": [*CHAT, assistant(BETTER)], "rejected": [*CHAT, assistant(WORSE)]}]
    done, kept = imported(tmp_path, rows, "preferences")
    assert done.dropped == {}
    assert [row["messages"] for row in kept] == [None, CHAT]
    assert [(row["chosen"], row["rejected"]) for row in kept] == [(BETTER, WORSE)] * 2
    assert [row["prompt"] for row in kept] == [QUESTION, f"User: Hi\n\nAssistant: Hello\n\nUser: {QUESTION}"]
    assert kept[1]["prompt_id"] == prompt_id(kept[1]["messages"])


def test_what_an_import_wrote_is_imported_again_as_it_is_and_read_by_a_run(tmp_path: Path) -> None:
    rows = [{"prompt": CHAT}, {"prompt": QUESTION}, {"messages": [user("a")], "prompt": "a"}]
    _, kept = imported(tmp_path, rows, "prompts")
    done = import_data(Request(str(tmp_path / "out.parquet"), "prompts", tmp_path / "again.parquet"))
    assert done.dropped == {}
    assert pq.read_table(tmp_path / "again.parquet").to_pylist() == [
        {**row, "source_id": row["prompt_id"]} for row in kept
    ]
    read = read_jsonl(tmp_path / "out.parquet", key="prompt")
    assert [(row["prompt_id"], row["messages"]) for row in read] == [
        (row["prompt_id"], row["messages"]) for row in kept
    ]


def test_sides_that_differ_before_their_answer_are_dropped_and_counted(tmp_path: Path) -> None:
    other = [*CHAT[:-1], user("Another?")]
    rows = [
        {"chosen": [*CHAT, assistant("a")], "rejected": [*other, assistant("b")]},
        {"chosen": [*CHAT, assistant("a")], "rejected": [*CHAT, assistant("b")]},
    ]
    done, kept = imported(tmp_path, rows, "preferences")
    assert (done.dropped, len(kept)) == ({"chosen and rejected answer different prompts": 1}, 1)


def test_turns_of_tools_stay_in_a_conversation_and_calls_of_tools_do_not(tmp_path: Path) -> None:
    asked = [*CHAT, assistant("I look."), {"role": "tool", "content": "4"}]
    rows = [{"prompt": asked}, {"prompt": [user("a"), {"role": "assistant", "tool_calls": [{}], "content": "b"}]}]
    done, (row,) = imported(tmp_path, rows, "prompts")
    assert row["messages"] == asked
    assert done.dropped == {"tools or turns of tools": 1}


def test_conversations_of_several_turns_are_dropped_and_counted_or_written_out(tmp_path: Path) -> None:
    rows = [
        PAIR_SHAPES["hh-rlhf"],
        {"chosen": [*CHAT, assistant(BETTER)], "rejected": [*CHAT, assistant(WORSE)]},
        {"chosen": [{"role": "system", "content": "Rhyme."}, user("a"), assistant("b")], "rejected": []},
    ]
    rows[2]["rejected"] = [*rows[2]["chosen"][:2], assistant("c")]
    done, kept = imported(tmp_path, rows, "preferences", turns="single")
    assert done.dropped == {"several turns or a system message": 2}
    assert len(kept) == 1
    done, kept = imported(tmp_path, rows, "preferences", turns="transcript")
    assert [row["prompt"] for row in kept] == [
        HH.removesuffix(" "),
        "\n\nHuman: Hi\n\nAssistant: Hello" + HH.removesuffix(" "),
        "Rhyme.\n\nHuman: a\n\nAssistant:",
    ]
    assert kept[0]["prompt"] + kept[0]["chosen"] == PAIR_SHAPES["hh-rlhf"]["chosen"]


# What cannot be kept.

NOT_ANSWERED = "malformed: the last message of `chosen` is not the assistant's"
PARTED = {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]}
DROPS: list[tuple[Kind, Row, str]] = [
    ("prompts", {"prompt": " \n"}, "empty prompt"),
    ("prompts", {"prompt": None}, "empty prompt"),
    ("prompts", {"prompt": []}, "empty prompt"),
    ("prompts", {"prompt": 3}, "malformed: `prompt` is a number, not a text or messages"),
    (
        "prompts",
        {"prompt": [{"role": "robot", "content": "a"}]},
        "malformed: `prompt` has a message of unknown role robot",
    ),
    ("prompts", {"prompt": ["a"]}, "malformed: `prompt` is a list whose first is a text, not a text or messages"),
    ("prompts", {"other": "a"}, "malformed: no `prompt`"),
    ("preferences", {"chosen": ""}, "empty answer"),
    ("preferences", {"rejected": None}, "empty answer"),
    ("preferences", {"rejected": []}, "empty answer"),
    ("preferences", {"rejected": "good"}, "chosen equals rejected"),
    ("preferences", {"score_chosen": 3, "score_rejected": 3}, "tie or no preference"),
    ("preferences", {"prompt": [user("a")], "chosen": [user("b")], "rejected": [user("c")]}, NOT_ANSWERED),
    ("preferences", {"chosen": [user("a"), assistant("b")]}, "one answer is a text, the other messages"),
    ("preferences", {"prompt": None, **PARTED}, "chosen and rejected answer different prompts"),
    ("feedback", {"completion": " "}, "empty answer"),
    ("feedback", {"prompt": None}, "empty prompt"),
    ("feedback", {"label": None}, "tie or no preference"),
    ("feedback", {"label": float("nan")}, "tie or no preference"),
]
WHOLE: dict[Kind, Row] = {
    "prompts": {"prompt": "whole"},
    "preferences": {"prompt": "whole", "chosen": "good", "rejected": "bad"},
    "feedback": {"prompt": "whole", "completion": "good", "label": False},
}


@pytest.mark.parametrize(("kind", "change", "reason"), DROPS)
def test_a_row_that_cannot_be_kept_is_counted_by_its_reason(
    tmp_path: Path, kind: Kind, change: Row, reason: str
) -> None:
    whole = WHOLE[kind]
    odd = change if "other" in change else whole | change
    done, rows = imported(tmp_path, [whole, odd], kind)
    assert done.dropped == {reason: 1}
    assert len(rows) == 1


@pytest.mark.parametrize("preference", [0, 0.0, 1.5, None, float("nan"), "", "1.5"])
def test_ties_and_missing_preferences_are_dropped(tmp_path: Path, preference: object) -> None:
    tie = PAIR_SHAPES["AlpacaEval"] | NAMED | {"instruction": "tie", "preference": preference}
    done, rows = imported(tmp_path, [PAIR_SHAPES["AlpacaEval"] | NAMED, tie], "preferences")
    assert done.dropped == {"tie or no preference": 1}
    assert [row["prompt"] for row in rows] == [QUESTION]


def test_a_row_said_before_is_a_duplicate_whatever_its_id(tmp_path: Path) -> None:
    done, rows = imported(tmp_path, [{"prompt": "a", "id": 1}, {"prompt": "a", "id": 2}, {"prompt": "A"}], "prompts")
    assert done.dropped == {"exact duplicate": 1}
    assert [(row["prompt"], row["source_id"]) for row in rows] == [("a", "1"), ("A", None)]


@pytest.mark.parametrize(
    ("kind", "row", "told"),
    [
        ("feedback", {"prompt": "a", "completion": "b", "label": 5}, "line 1: `label` is 5. Expected true or false"),
        ("feedback", {"prompt": "a", "completion": "b", "label": "good"}, "line 1: `label` is 'good'"),
        ("preferences", PAIR_SHAPES["AlpacaEval"] | {"preference": 3}, "line 1: `preference` is 3. Without --labels"),
        (
            "preferences",
            PAIR_SHAPES["AlpacaEval"] | {"preference": "b"},
            "line 1: `preference` is 'b'. Without --labels",
        ),
        ("preferences", PAIR_SHAPES["AlpacaEval"] | {"preference": 10**400}, "line 1: `preference` is 1000"),
        ("preferences", PAIR_SHAPES["TRL standard"] | {"margin": "big"}, "line 1: `margin` is 'big'"),
    ],
)
def test_a_label_of_unknown_meaning_is_refused_rather_than_guessed(
    tmp_path: Path, kind: Kind, row: Row, told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        imported(tmp_path, [row], kind)


def test_preferences_that_count_from_0_are_refused_for_they_would_mean_the_opposite(tmp_path: Path) -> None:
    rows = [PAIR_SHAPES["AlpacaEval"] | NAMED | {"instruction": str(i), "preference": i % 2} for i in range(4)]
    with pytest.raises(BadInput, match="as if it counted from 0"):
        imported(tmp_path, rows, "preferences")


@pytest.mark.parametrize("missing", NAMED)
def test_a_tie_is_0_only_in_a_file_with_all_columns_of_alpaca_eval(tmp_path: Path, missing: str) -> None:
    rows = [PAIR_SHAPES["AlpacaEval"] | NAMED | {"instruction": str(i), "preference": i} for i in range(3)]
    assert imported(tmp_path, rows, "preferences")[0].notes.read == {
        ("0", "tie"): 1,
        ("1", "first"): 1,
        ("2", "second"): 1,
    }
    for row in rows:
        del row[missing]
    with pytest.raises(BadInput, match="line 1: `preference` is 0. Without --labels"):
        imported(tmp_path, rows, "preferences")


MAPPED = {"which": "preference"}


@pytest.mark.parametrize(
    ("outputs", "column", "names"),
    [
        (("response_1", "response_2"), "preference", {}),
        (("output_1", "output_2"), "which", MAPPED),
        (("left", "right"), "preference", {"left": "output_1", "right": "output_2"}),
    ],
)
def test_a_preference_that_is_always_1_may_count_from_0(
    tmp_path: Path, outputs: tuple[str, str], column: str, names: dict[str, str]
) -> None:
    row = {"prompt": QUESTION, outputs[0]: BETTER, outputs[1]: WORSE, column: 1}
    with pytest.raises(BadInput, match="always 1: the first output if it counts from 1, the second if from 0"):
        imported(tmp_path, [row], "preferences", names=names)
    done, _ = imported(tmp_path, [row, {**row, "prompt": "a", column: 2}], "preferences", names=names)
    assert done.notes.read == {("1", "first"): 1, ("2", "second"): 1}
    _, rows = imported(tmp_path, [row], "preferences", names=names, coding={"1": "second", "0": "first"})
    assert [row["chosen"] for row in rows] == [WORSE]


# Laws.

words = st.sampled_from(["", " ", "a", "A", "b", "a  b", "A b", "é", "\u2028"])
answers = st.one_of(st.none(), words, st.just([assistant("c")]), st.just([user("a"), assistant("c")]))
pairs = st.fixed_dictionaries(
    {"prompt": st.one_of(st.none(), words, st.integers(0, 1)), "chosen": answers, "rejected": answers}
)


@given(rows=st.lists(pairs, min_size=1, max_size=12), share=st.floats(0.05, 0.95))
def test_rows_in_are_rows_out_and_rows_dropped_and_no_prompt_is_on_both_sides(
    folder: Path, rows: list[Row], share: float
) -> None:
    rows = [{"prompt": "kept", "chosen": "x", "rejected": "y"}, *rows]
    done, train = imported(folder, rows, "preferences", heldout_share=share, heldout_out=folder / "held.parquet")
    held = pq.read_table(folder / "held.parquet").to_pylist()
    assert done.rows_in == len(rows) == len(train) + len(held) + sum(done.dropped.values())
    assert [written.rows for written in done.outputs] == [len(train), len(held)]
    keys = [{prompt_key(row["prompt"]) for row in side} for side in (train, held)]
    assert not keys[0] & keys[1]
    assert all(is_heldout(key, share) for key in keys[1])


@given(rows=st.lists(pairs, min_size=1, max_size=6), seed=st.integers(0, 5))
def test_the_order_of_columns_does_not_matter(folder: Path, rows: list[Row], seed: int) -> None:
    rows = [{"prompt": "kept", "chosen": "x", "rejected": "y"}, *rows]
    _, straight = imported(folder, rows, "preferences")
    draw = random.Random(seed)
    shuffled = [dict(draw.sample(list(row.items()), len(row))) for row in rows]
    assert imported(folder, shuffled, "preferences")[1] == straight


def test_importing_twice_gives_equal_bytes_cards_included(tmp_path: Path) -> None:
    rows = [{"prompt": f"prompt {i}", "chosen": "x" * i, "rejected": "y"} for i in range(1, 50)]
    contents = []
    for _ in range(2):
        done, _ = imported(tmp_path, rows, "preferences", heldout_share=0.3, heldout_out=tmp_path / "held.parquet")
        files = [tmp_path / "out.parquet", tmp_path / "held.parquet", *card.write(done)]
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]


def test_case_and_whitespace_never_separate_a_prompt_from_itself() -> None:
    assert prompt_key("Why  is\nit so? ") == prompt_key("why IS it so?")
    assert prompt_key("why is it so?") != prompt_key("why is it?")


def test_about_the_share_asked_for_is_held_out() -> None:
    held = sum(is_heldout(prompt_key(f"prompt {i}"), 0.1) for i in range(5000))
    assert 400 < held < 600


def test_rows_beyond_one_batch_all_arrive_in_order(tmp_path: Path) -> None:
    _, rows = imported(tmp_path, [{"prompt": f"prompt {i}"} for i in range(2500)], "prompts")
    assert [row["prompt"] for row in rows] == [f"prompt {i}" for i in range(2500)]
    done, rows = imported(tmp_path, [{"prompt": f"prompt {i}"} for i in range(2500)], "prompts", limit=1200)
    assert (done.rows_in, len(rows)) == (1200, 1200)


# Formats.

TABLE = [
    {"prompt": 'say "hi",\nnow', "completion": "hi", "label": "true"},
    {"prompt": "é", "completion": "e", "label": "0"},
]


def write_as(path: Path, rows: Sequence[Row]) -> Path:
    opened = gzip.open if path.suffix == ".gz" else open
    if ".parquet" in path.name:
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return path
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if ".csv" in path.name or ".tsv" in path.name:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
            writer.writeheader()
            writer.writerows(rows)
        elif path.name.startswith("array"):
            json.dump(rows, file, indent=1)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return path


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.ndjson.gz", "a.json", "array.json", "array.json.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet"],
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    source = write_as(tmp_path / name, TABLE)
    import_data(Request(str(source), "feedback", tmp_path / "out.parquet"))
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    expected = [('say "hi",\nnow', "hi", True), ("é", "e", False)]
    assert [(row["prompt"], row["completion"], row["good"]) for row in rows] == expected


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    for name, text in (("a.csv", "prompt\nhi\n"), ("a.json", '[{"prompt": "hi"}]'), ("a.jsonl", '{"prompt": "hi"}')):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        import_data(Request(str(tmp_path / name), "prompts", tmp_path / "out.parquet"))
        assert pq.read_table(tmp_path / "out.parquet").column("prompt").to_pylist() == ["hi"]


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=2), st.text(st.characters(codec="utf-8"), max_size=30)), max_size=9)
)
def test_a_json_array_in_pieces_is_the_same_array(folder: Path, rows: list[Row]) -> None:
    from data import sources

    path = folder / "array.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_CHUNK", 7)
        assert [row for _, row in sources._array_rows(path)] == rows


def test_a_fault_early_in_a_large_array_does_not_pull_all_of_it_into_memory(tmp_path: Path) -> None:
    from data import sources

    pieces = iter(["[{'single quotes'"] + ["x" * 100] * 1000)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(BadInput, match="row 1: not valid JSON"):
        patch.setattr(sources, "_LONGEST", 1000)
        list(sources._elements(tmp_path / "a.json", pieces))
    assert len(list(pieces)) > 900


def test_data_sets_of_the_hubs_library_are_read_from_its_folders(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([PAIR_SHAPES["ultrafeedback_binarized"]])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    (tmp_path / "repository" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / "repository" / "data" / f"{split}-00000-of-00001.parquet")
    for source in ("saved", "repository"):
        request = Request(str(tmp_path / source), "preferences", tmp_path / "out.parquet", split="train")
        assert import_data(request).outputs[0].rows == 1
        with pytest.raises(BadInput, match=r"has the splits train, test\. Choose one with --split"):
            import_data(Request(str(tmp_path / source), "preferences", tmp_path / "out.parquet"))


def test_a_folder_that_holds_no_data_set_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty: `datasets` cannot load this folder \(") as caught:
        import_data(Request(str(tmp_path / "empty"), "prompts", tmp_path / "out.parquet"))
    assert "\n" not in str(caught.value)


def test_a_data_set_that_the_hub_does_not_give_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nobody/nothing: no such file, and the hub did not give it") as caught:
        import_data(Request("nobody/nothing", "prompts", tmp_path / "out.parquet"))
    assert "\n" not in str(caught.value)


# What is broken is refused, and leaves nothing behind.

BROKEN: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "b', r"a\.jsonl, line 2: not valid JSON"),
    ("a.jsonl", '{"prompt": "a"}\n{"prompt": "é"}'.encode("latin-1"), r"a\.jsonl, line 2: not UTF-8 \(byte 12"),
    ("a.jsonl", '{"prompt": "a"}'.encode("utf-16"), r"a\.jsonl, line 1: not UTF-8"),
    ("a.jsonl", b"3\n", r"line 1: expected one JSON object; found int"),
    ("a.jsonl", b'{"prompt": "\\ud83d"}', r"line 1: not valid JSON .*surrogate"),
    ("a.jsonl", b"", "holds no rows"),
    ("a.jsonl", b"\n \n", "holds no rows"),
    ("a.json", b"[]", "holds no rows"),
    ("a.json", b'[{"prompt": "a"}, {"prompt": "b', r"a\.json, row 2: not valid JSON, or cut short"),
    ("a.json", b'[{"prompt": "a"} {"prompt": "b"}]', r"row 2: .*expected , or \]"),
    ("a.json", b'[{"prompt": "a"}]]', "text after the JSON array's end"),
    ("a.json", b'[{"prompt": "a"}, 3]', "row 2: expected an array of objects; found int"),
    ("a.json", b'[{"prompt": "\\ud83d"}]', "row 1: holds half a character"),
    ("a.json", b'[{"prompt": "\xe9"}]', "not UTF-8 .near byte 13"),
    ("a.csv", b"prompt,id\na,1\nb\n", r"a\.csv, line 3: 1 values for 2 columns"),
    ("a.csv", b'prompt\n"a', r"a\.csv, line 2: not valid CSV, or cut short"),
    ("a.csv", b"prompt,prompt\na,b\n", "line 1: a column's name is there twice"),
    ("a.csv", b"", "holds no rows"),
    ("a.parquet", b"PAR1 and so on", "not whole Parquet"),
    ("a.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 999, mtime=0)[:-20], "not whole gzip"),
    ("a.jsonl.gz", b'{"prompt": "a"}', "not whole gzip"),
    ("a.txt", b"a", r"unknown kind of file. Expected one of \.json, "),
    ("a.parquet", b"version https://git-lfs.example/spec/v1\noid sha256:ab\nsize 9\n", "a pointer of Git LFS, not"),
    ("a.csv", b"version https://git-lfs.example/spec/v1\noid sha256:ab\nsize 9\n", "a pointer of Git LFS, not"),
    ("a.parquet.gz", b"a", "Parquet is compressed within"),
    ("a.jsonl", b'{"headline": "a", "id": 1}', r"Found columns headline, id; expected one of prompt, question,"),
    ("a.jsonl", b'{"prompt": ""}', r"no row of 1 can be kept \(empty prompt: 1\)"),
]


@pytest.mark.parametrize(("name", "content", "told"), BROKEN)
def test_a_broken_file_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    source = tmp_path / name
    source.write_bytes(content)
    with pytest.raises(BadInput, match=told) as caught:
        import_data(Request(str(source), "prompts", tmp_path / "out.parquet"))
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


@given(content=st.binary(max_size=60), name=st.sampled_from(["b.jsonl", "b.json", "b.csv", "b.parquet", "b.jsonl.gz"]))
def test_any_bytes_either_are_rows_or_are_refused_by_name(folder: Path, content: bytes, name: str) -> None:
    (folder / name).write_bytes(content)
    try:
        assert import_data(Request(str(folder / name), "prompts", folder / "out.parquet")).rows_in
    except BadInput as error:
        assert name in str(error)


@pytest.mark.parametrize("name", ["absent.jsonl", "./absent", "absent.csv.gz", "a/b/c"])
def test_a_missing_file_is_refused_without_asking_the_hub(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="no such file. Name a"):
        import_data(Request(name, "prompts", tmp_path / "out.parquet"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"heldout_share": 0.1}, "belong together"),
        ({"heldout_share": 1.5, "heldout_out": Path("held.parquet")}, "expected a share between 0 and 1"),
        ({"out": Path("out.jsonl")}, "the output is Parquet"),
        ({"heldout_share": 0.1, "heldout_out": Path("{out}")}, "must be different files"),
        ({"out": Path("/dev/null/out.parquet")}, "cannot be written by this user"),
        ({"names": {"nowhere": "prompt"}}, "--map names `nowhere`, but the columns are prompt"),
        ({"split": "train"}, "a file has none"),
    ],
)
def test_a_request_that_cannot_work_is_refused(tmp_path: Path, settings: Row, told: str) -> None:
    source, out = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}]), tmp_path / "out.parquet"
    filled = {name: out if value == Path("{out}") else value for name, value in settings.items()}
    with pytest.raises(BadInput, match=told):
        import_data(Request(**{"source": str(source), "kind": "prompts", "out": out} | filled))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["question"], "expected column=name"),
        (["=prompt"], "expected column=name"),
        (["question=prumpt"], "no shape has `prumpt`. Names are: .* chosen, "),
        (["a=prompt", "b=prompt"], "is there twice"),
        (["a=prompt", "a=chosen"], "is there twice"),
    ],
)
def test_a_bad_map_is_refused_with_what_was_expected(words: list[str], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        read_map(words)


# The card, and what a run reads.


def test_the_card_says_where_it_came_from_what_was_left_out_and_the_length_bias(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": "x" * (3 if i else 1), "rejected": "yy", "extra|one": 0} for i in range(4)]
    done, _ = imported(tmp_path, [*rows, rows[0]], "preferences")
    (path,) = card.write(done)
    told = path.read_text()
    assert path == tmp_path / "out.md"
    for expected in (
        "| kind | preferences |",
        "| columns not used | extra\\|one |",
        "| rows in | 5 |",
        "| dropped: exact duplicate | 1 |",
        "| longer answer chosen | 75.0% of 4 pairs that differ in length |",
        "| chosen | 1 | 1 | 3 | 3 | 3 | 3 |",
    ):
        assert expected in told


def test_a_run_reads_imported_prompts_and_feedback_as_it_reads_jsonl(tmp_path: Path) -> None:
    rows = [{"prompt": text, "id": i} for i, text in enumerate("abc")]
    imported(tmp_path, rows, "prompts")
    jsonl = read_jsonl(tmp_path / "source.jsonl", key="prompt", limit=2)
    assert read_jsonl(tmp_path / "out.parquet", key="prompt", limit=2) == jsonl
    thumbs = [{"prompt": "a", "completion": text, "good": text < "c"} for text in "bcd"]
    imported(tmp_path, thumbs, "feedback")
    assert read_feedback(tmp_path / "out.parquet") == read_feedback(tmp_path / "source.jsonl")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"prompt": "a"}, {"prompt": "a"}], r"row 2: the same `prompt` as in row 1"),
        ([{"prompt": "a", "source_id": "1"}, {"prompt": "b", "source_id": "1"}], r"row 2: the same `id` as in row 1"),
        ([{"prompt": "a"}, {"prompt": None}], r"row 2: expected an object with a non-empty text under `prompt`"),
        ([{"question": "a"}], r"row 1: expected .* under `prompt`; found keys 'question'"),
    ],
)
def test_parquet_for_a_run_is_held_to_the_same_rules_as_jsonl(tmp_path: Path, rows: list[Row], told: str) -> None:
    path = write_as(tmp_path / "prompts.parquet", rows)
    with pytest.raises(BadInput, match=rf"prompts\.parquet, {told}"):
        read_jsonl(path, key="prompt")


# Real data.


def real(name: str) -> str:
    if not (REAL / name).is_file():
        pytest.skip(f"{REAL / name} is not here (PCO_SHARED_DATA names the folder)")
    return str(REAL / name)


def test_the_real_alpaca_eval_preferences_lose_their_ties_and_duplicates_and_nothing_else(tmp_path: Path) -> None:
    source = real("alpacaeval1_gpt4_pairs.jsonl.gz")
    held = tmp_path / "held.parquet"
    done = import_data(Request(source, "preferences", tmp_path / "out.parquet", heldout_share=0.1, heldout_out=held))
    assert done.rows_in == 42_665
    assert done.dropped == {"empty answer": 10, "exact duplicate": 1_052, "tie or no preference": 276}
    train, heldout = done.outputs
    assert (train.rows, heldout.rows) == (37_016, 4_311)
    assert len(train.prompts) + len(heldout.prompts) == 805
    assert not train.prompts & heldout.prompts
    assert 0.83 < train.longer_chosen / (train.longer_chosen + train.longer_rejected) < 0.85


def test_the_real_alpaca_prompts_all_come_in_and_can_be_run(tmp_path: Path) -> None:
    done = import_data(Request(real("alpaca_5000.json"), "prompts", tmp_path / "out.parquet"))
    assert (done.rows_in, done.dropped) == (5000, {})
    assert len(read_jsonl(tmp_path / "out.parquet", key="prompt")) == 5000
    assert importing.told(done.dropped) == "none"
