"""`--map`, `--ignore`, `--labels` and votes: what is read is told, and what could mean two things is refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import card, columns, detecting, importing, labels
from data.errors import BadInput
from data.importing import Imported, Request, import_data
from tests.builders import Row, write_jsonl
from tests.data.messy import BAD, GOOD, OUTPUTS, SIDES, Q, hh, said


def imported(folder: Path, rows: list[Row], kind: detecting.Kind = "preferences", **settings: object) -> Imported:
    source = write_jsonl(folder / "a.jsonl", rows)
    return import_data(Request(**{"source": str(source), "kind": kind, "out": folder / "out.parquet"} | settings))


def test_labels_are_told_with_their_meanings_and_counts(tmp_path: Path) -> None:
    rows = [OUTPUTS | {"instruction": str(i), "preference": i % 3} for i in range(10)]
    coding = labels.read_labels(["first=0,second=1", "tie=2"])
    done = imported(tmp_path, rows, coding=coding)
    assert card.told_read(done) == "0 -> output_1: 4, 1 -> output_2: 3, 2 -> tie: 3"
    text = card.text(done, done.outputs[0])
    assert "| labels given | first = 0, second = 1, tie = 2 |" in text
    assert "| labels read | 0 -> output_1: 4, 1 -> output_2: 3, 2 -> tie: 3 |" in text


def test_values_of_labels_are_compared_whatever_type_the_file_gives_them(tmp_path: Path) -> None:
    coding = labels.read_labels(["first=model_a,second=1.0,tie=true"])
    values = ["model_a", " model_a ", 1, "1", 1.0, True]
    done = imported(
        tmp_path, [OUTPUTS | {"instruction": str(i), "preference": v} for i, v in enumerate(values)], coding=coding
    )
    assert card.told_read(done) == "1 -> output_2: 3, model_a -> output_1: 2, true -> tie: 1"


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["first"], "expected first, second, tie, good, bad with a value"),
        (["better=1"], "expected first, second, tie, good, bad with a value"),
        (["first=1,second=1.0"], "the value 1.0 is there twice"),
    ],
)
def test_labels_that_say_nothing_or_two_things_are_refused(words: list[str], refused: str) -> None:
    with pytest.raises(BadInput, match=refused):
        labels.read_labels(words)


def test_a_good_that_labels_name_as_a_preference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="`good` is 1, which --labels does not name as good or bad or tie"):
        imported(tmp_path, [{"prompt": Q, "completion": GOOD, "good": 1}], "feedback", coding={"1": "first"})


def test_the_card_tells_how_far_annotators_agree(tmp_path: Path) -> None:
    rows = [
        OUTPUTS | {"instruction": str(i), "preference": votes} for i, votes in enumerate([[1, 1, 2], [2, 2, 2], [1]])
    ]
    done = imported(tmp_path, rows)
    assert card.told_agreement(done) == "66.7% of 6 pairs of votes on the same row say the same"
    assert f"| agreement of annotators | {card.told_agreement(done)} |" in card.text(done, done.outputs[0])


def test_rows_without_any_vote_are_dropped(tmp_path: Path) -> None:
    done = imported(tmp_path, [OUTPUTS | {"preference": [1]}, OUTPUTS | {"preference": [None, None]}])
    assert done.dropped == {"tie or no preference": 1}


def test_answers_left_out_and_pairs_made_are_told(tmp_path: Path) -> None:
    rows = [
        {"prompt": Q, "responses": ["a", "b", "c", " ", "d"], "scores": [1, 2, 3, 4, None]},
        {"prompt": Q, "responses": ["a"]},
    ]
    done = imported(tmp_path, rows, pairs="all")
    assert (done.rows_in, done.considered, done.outputs[0].rows) == (2, 4, 3)
    assert card.told_notes(done) == [
        "Answers left out without a score or rank: 2",
        "Answers left out without a text: 1",
    ]
    assert "| pairs that they give, or rows without any | 4 |" in card.text(done, done.outputs[0])


def test_generators_and_margins_go_with_ranked_answers(tmp_path: Path) -> None:
    answers = [{"text": BAD, "rank": 3, "model": "b"}, {"text": GOOD, "rank": 1, "model": "a"}]
    imported(tmp_path, [{"prompt": Q, "answers": answers}])
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (row["chosen_generator"], row["rejected_generator"], row["margin"]) == ("a", "b", 2.0)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"responses": "a"}, "`responses` is a text, not a list of answers"),
        ({"responses": ["a", {"n": 1}]}, "`responses` is a list whose first is an object of n, not a list of texts"),
        (
            {"responses": ["a", "b"], "scores": [1, 2], "ranks": [2, 1]},
            "several columns of scores or ranks: scores, ranks",
        ),
        ({"responses": ["a", "b"], "scores": 3}, "`scores` is no list as long as `responses`"),
    ],
)
def test_a_ranking_that_cannot_be_read_is_refused_with_what_stood_there(
    tmp_path: Path, answers: Row, reason: str
) -> None:
    with pytest.raises(BadInput, match=reason):
        imported(tmp_path, [{"prompt": Q, **answers}])


def test_a_score_that_is_no_number_is_refused_by_row_and_column(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="line 1: `answers.score` is 'high'"):
        imported(tmp_path, [{"prompt": Q, "answers": [{"text": "a", "score": "high"}, {"text": "b", "score": 1}]}])


# Columns.


def read_map(*words: str) -> dict[str, str]:
    return columns.read_map(words, detecting.known_names())


def test_paths_reach_into_objects_and_lists(tmp_path: Path) -> None:
    rows = [{"data": {"turns": [{"q": Q}], "n": 1}, "answers": [{"a": GOOD, "s": 2}, {"a": BAD, "s": 1}]}]
    names = read_map("data.turns.0.q=prompt", "answers.a=responses", "answers.s=scores")
    done = imported(tmp_path, rows, names=names)
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (row["prompt"], row["chosen"], row["rejected"]) == (Q, GOOD, BAD)
    assert done.unused == ()


def test_a_column_whose_name_has_a_dot_is_that_column(tmp_path: Path) -> None:
    imported(tmp_path, [{"data.prompt": Q, "data": {"prompt": "no"}}], "prompts", names=read_map("data.prompt=prompt"))
    assert pq.read_table(tmp_path / "out.parquet").column("prompt").to_pylist() == [Q]


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"names": {"data.nothing": "prompt"}}, "--map names `data.nothing`, but the columns are data, prompt"),
        ({"names": {"data.prompt.x": "prompt"}}, "--map names `data.prompt.x`"),
        ({"ignored": ("nothing",)}, "--ignore names `nothing`, but the columns are data, prompt"),
    ],
)
def test_a_column_that_is_not_there_is_refused(tmp_path: Path, settings: Row, refused: str) -> None:
    with pytest.raises(BadInput, match=refused):
        imported(tmp_path, [{"data": {"prompt": Q}, "prompt": Q}], "prompts", **settings)


@pytest.mark.parametrize("word", ['"Go on=prompt', '"=prompt'])
def test_a_constant_that_is_no_text_is_refused(word: str) -> None:
    with pytest.raises(BadInput, match="expected a constant as one text in double quotes"):
        read_map(word)


def test_an_ignored_column_is_not_read_and_the_card_says_so(tmp_path: Path) -> None:
    done = imported(tmp_path, [{"prompt": Q, "question": "Other?", **SIDES}], ignored=("question",))
    assert done.unused == ()
    assert "| columns ignored | question |" in card.text(done, done.outputs[0])


def test_a_later_column_that_changes_nothing_is_only_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}?", **SIDES} for i in range(100)] + [{"prompt": Q, **SIDES, "mood": "fine"}]
    assert imported(tmp_path, rows).unused == ("mood",)


# What contradicts itself.


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": said("a", system="Be kind."), "system": "Be rude."}, "`system` contradicts the system message"),
        ({"messages": said("a"), "system": 3}, "`system` is a number, not a text"),
        ({"messages": said("a", "b", "c"), "history": [["x", "y"]]}, "`history` contradicts the conversation"),
        ({"prompt": "a", "history": "once"}, "`history` is a text, not pairs of question and answer, or messages"),
        ({"instruction": "a", "input": 3}, "`input` is a number, not a text"),
        ({"messages": [{"role": "user", "from": "gpt", "content": "a"}]}, "unknown role user and gpt"),
        ({"messages": [{"content": "a"}]}, "`messages` has an object of content, without a role"),
        ({"messages": [{"role": "user", "content": "a", "value": "b"}]}, "a message with 2 contents"),
        ({"messages": ["a"]}, "`messages` is a list whose first is a text"),
    ],
)
def test_a_row_that_contradicts_itself_or_is_of_no_known_type_is_counted_by_what_stood_there(
    tmp_path: Path, row: Row, reason: str
) -> None:
    done = imported(tmp_path, [{"prompt": Q}, row], "prompts") if "prompt" in row else None
    if done is None:
        with pytest.raises(BadInput, match=reason):
            imported(tmp_path, [row], "prompts")
    else:
        ((counted, count),) = done.dropped.items()
        assert reason in counted
        assert count == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": said("a"), "chosen": said("b", GOOD), "rejected": said("b", BAD)}, "contradicts the conversation"),
        ({"prompt": hh("a", "b"), **SIDES}, "last turn is an answer"),
        ({"prompt": Q, "chosen": hh("x"), "rejected": hh("y")}, "the last message of `chosen` is not the assistant's"),
    ],
)
def test_prompts_and_answers_that_do_not_fit_are_refused(tmp_path: Path, row: Row, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        imported(tmp_path, [row])


@pytest.mark.parametrize(
    ("prompt", "context", "written"),
    [
        (said("a", system="Be kind."), said("a"), "Be kind." + hh("a")),
        (said("a", "b"), said("c"), hh("a", "b", "c")),
        ([{"role": "system", "content": "Be kind."}], said("a"), "Be kind." + hh("a")),
        (said("a"), said("a", "b", "c"), hh("a", "b", "c")),
    ],
)
def test_a_prompt_that_the_answers_go_on_from_is_not_lost(
    tmp_path: Path, prompt: list[Row], context: list[Row], written: str
) -> None:
    row = {"prompt": prompt, "chosen": [*context, said("", GOOD)[1]], "rejected": [*context, said("", BAD)[1]]}
    imported(tmp_path, [row], turns="transcript")
    (pair,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (pair["prompt"], pair["chosen"]) == (f"{written}\n\nAssistant:", f" {GOOD}")


def test_a_feedback_conversation_of_one_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="`messages` is a text, not a conversation"):
        imported(tmp_path, [{"messages": "Hello", "label": 1}], "feedback")


def test_reasons_are_counted_apart_only_so_far(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": f"role {i}", "content": "a"}]} for i in range(60)]
    done = imported(tmp_path, [*rows, {"messages": said(Q)}], "prompts")
    assert done.dropped[importing.OTHER_REASONS] == 20
    assert sum(done.dropped.values()) == 60


def test_a_messages_column_of_two_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="messages and conversations may each be"):
        imported(tmp_path, [{"messages": said(Q), "conversations": said(Q)}], "prompts")


# Bytes.


def test_bytes_are_text_where_they_are_utf8_and_refused_by_name_where_not(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    sides = {"chosen": GOOD.encode(), "rejected": b"\xc3\xa9"}
    pq.write_table(pa.Table.from_pylist([{"prompt": Q.encode(), **sides, "picture": b"\xff"}]), path)
    import_data(Request(str(path), "preferences", tmp_path / "out.parquet"))
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (row["prompt"], row["chosen"], row["rejected"]) == (Q, GOOD, "é")
    pq.write_table(pa.Table.from_pylist([{"prompt": Q.encode(), **sides, "chosen": b"\xff"}]), path)
    with pytest.raises(BadInput, match="row 1: `chosen` holds bytes that are not UTF-8"):
        import_data(Request(str(path), "preferences", tmp_path / "out.parquet"))


def test_bytes_within_messages_are_text_too(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": [{"role": b"user", "content": Q.encode()}]}]), path)
    import_data(Request(str(path), "prompts", tmp_path / "out.parquet"))
    assert pq.read_table(tmp_path / "out.parquet").column("prompt").to_pylist() == [Q]
