"""Prompt files: what can be read is read exactly; all else is refused by file and line."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadInput
from data.prompts import readable
from data.readers import prompt_id, prompt_key, read_feedback, read_jsonl, read_preferences
from tests.builders import write_jsonl

texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers") / "prompts.jsonl"


def write(file: Path, content: str) -> Path:
    file.write_text(content, encoding="utf-8", newline="")
    return file


@given(prompts=st.lists(texts, min_size=1, unique=True), escaped=st.booleans())
def test_every_text_comes_back_unchanged_and_in_order(file: Path, prompts: list[str], escaped: bool) -> None:
    write(file, "\n".join(json.dumps({"prompt": text}, ensure_ascii=escaped) for text in prompts))
    rows = read_jsonl(file, key="prompt")
    assert [row["prompt"] for row in rows] == prompts
    assert [row["prompt_id"] for row in rows] == [prompt_id(text) for text in prompts]


@given(content=st.binary(max_size=60))
def test_any_bytes_either_are_rows_or_are_refused_by_name(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    try:
        assert read_jsonl(file, key="prompt")
    except BadInput as error:
        assert str(file) in str(error)


@given(value=st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=4))
def test_any_json_value_in_place_of_a_text_is_refused_with_its_line(file: Path, value: object) -> None:
    if isinstance(value, str) and value.strip():
        return
    write(file, json.dumps({"prompt": "good"}) + "\n" + json.dumps({"prompt": value}))
    with pytest.raises(BadInput, match=r"prompts\.jsonl, line 2: expected an object with a non-empty text"):
        read_jsonl(file, key="prompt")


@given(a=texts, b=texts)
def test_equal_texts_have_equal_ids_and_others_do_not(a: str, b: str) -> None:
    assert (prompt_id(a) == prompt_id(b)) == (a == b)


@given(before=st.integers(0, 3), between=st.integers(0, 3))
def test_blank_lines_are_skipped_but_counted(file: Path, before: int, between: int) -> None:
    write(file, "\n" * before + '{"prompt": "a"}\n' + " \n" * between + "{broken")
    with pytest.raises(BadInput, match=f"line {before + between + 2}: not valid JSON"):
        read_jsonl(file, key="prompt")


def test_windows_line_ends_are_line_ends(file: Path) -> None:
    write(file, '{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
    assert [row["prompt"] for row in read_jsonl(file, key="prompt")] == ["a", "b"]


def test_the_users_own_ids_are_kept_as_text(file: Path) -> None:
    write_jsonl(file, [{"prompt": "a", "id": 7}, {"prompt": "b", "id": "x"}, {"prompt": "c"}])
    assert [row["source_id"] for row in read_jsonl(file, key="prompt")] == ["7", "x", None]


def test_references_are_kept_as_text(file: Path) -> None:
    write_jsonl(
        file, [{"prompt": text, "reference": found} for text, found in zip("abc", ["x y", 42, 0.5], strict=True)]
    )
    assert [row["reference"] for row in read_jsonl(file, key="prompt")] == ["x y", "42", "0.5"]
    write_jsonl(file, [{"prompt": "a"}, {"prompt": "b", "reference": None}])
    assert [row["reference"] for row in read_jsonl(file, key="prompt")] == [None, None]


def test_a_reference_of_nan_is_none(file: Path) -> None:
    write(file, '{"prompt": "a", "reference": NaN}\n{"prompt": "b", "reference": 4.0}')
    assert [row["reference"] for row in read_jsonl(file, key="prompt")] == [None, "4.0"]


@pytest.mark.parametrize("reference", [float("inf"), "", " ", True, ["a"], {"a": 1}])
def test_a_reference_that_is_neither_text_nor_number_is_refused_with_its_line(file: Path, reference: object) -> None:
    write_jsonl(file, [{"prompt": "a"}, {"prompt": "b", "reference": reference}])
    with pytest.raises(BadInput, match="line 2: expected a text or a number under `reference`; found "):
        read_jsonl(file, key="prompt")


def test_the_limit_keeps_the_first_rows_but_all_lines_are_checked(file: Path) -> None:
    write_jsonl(file, [{"prompt": text} for text in "abc"])
    assert [row["prompt"] for row in read_jsonl(file, key="prompt", limit=2)] == ["a", "b"]
    write(file, '{"prompt": "a"}\n{"prompt": "b"}\n{broken')
    with pytest.raises(BadInput, match="line 3"):
        read_jsonl(file, key="prompt", limit=1)


@pytest.mark.parametrize("key", ["prompt", "id"])
def test_a_repeated_prompt_or_id_is_refused_with_both_lines(file: Path, key: str) -> None:
    rows = [{"prompt": "a", "id": 1}, {"prompt": "b", "id": 2}, {"prompt": "c", "id": 3}]
    rows[2][key] = rows[0][key]
    write_jsonl(file, rows)
    with pytest.raises(BadInput, match=f"line 3: the same `{key}` as in line 1"):
        read_jsonl(file, key="prompt")


@pytest.mark.parametrize("content", ["", "\n", " \n\t\n"])
def test_a_file_without_rows_is_refused(file: Path, content: str) -> None:
    write(file, content)
    with pytest.raises(BadInput, match=r'holds no rows. Expected .* \{"text": "..."\}'):
        read_jsonl(file, key="text")


def test_a_missing_key_is_refused_with_the_keys_that_are_there(file: Path) -> None:
    write_jsonl(file, [{"text": "a", "id": 1}])
    with pytest.raises(BadInput, match="line 1: expected .* under `prompt`; found keys 'text', 'id'"):
        read_jsonl(file, key="prompt")


@pytest.mark.parametrize(("line", "found"), [('"a"', "str"), ("3", "int"), ("null", "NoneType")])
def test_a_line_that_is_no_object_is_refused(file: Path, line: str, found: str) -> None:
    write(file, line)
    with pytest.raises(BadInput, match=f"line 1: expected .*found {found}"):
        read_jsonl(file, key="prompt")


def test_another_encoding_is_refused_with_the_place(file: Path) -> None:
    file.write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(BadInput, match=r"line 1: not UTF-8 \(byte 12"):
        read_jsonl(file, key="prompt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_jsonl(tmp_path / "absent.jsonl", key="prompt")
    with pytest.raises(BadInput, match="could not be read"):
        read_jsonl(tmp_path, key="prompt")


def test_half_a_character_is_refused_rather_than_written_on(file: Path) -> None:
    write(file, '{"prompt": "a"}\n{"prompt": "\\ud83d"}')
    with pytest.raises(BadInput, match="line 2"):
        read_jsonl(file, key="prompt")


def test_absurd_nesting_is_refused(file: Path) -> None:
    write(file, "[" * 100_000)
    with pytest.raises(BadInput, match="row 1: not valid JSON"):
        read_jsonl(file, key="prompt")


NAMES = ["a.jsonl", "a.jsonl.gz", "array.json", "array.json.gz", "a.csv", "a.csv.gz", "a.txt"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_format_is_read_alike_with_and_without_a_byte_order_mark(
    tmp_path: Path, name: str, encoding: str
) -> None:
    text = "id,prompt\n1,hé\n" if ".csv" in name else '{"id": "1", "prompt": "hé"}'
    written = (f"[{text}]" if name.startswith("array") else text).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(written) if name.endswith(".gz") else written)
    (row,) = read_jsonl(tmp_path / name, key="prompt")
    assert (row["source_id"], row["prompt"]) == ("1", "hé")


def test_a_pointer_of_git_lfs_is_called_so(file: Path) -> None:
    write(file, "version https://git-lfs.example/spec/v1\noid sha256:abc\nsize 12\n")
    with pytest.raises(BadInput, match="a pointer of Git LFS, not the data.*git lfs pull"):
        read_jsonl(file, key="prompt")


# Conversations written as text.

MESSAGES = json.dumps([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_preferences_that_are_the_json_of_messages_are_refused(file: Path, column: str) -> None:
    write_jsonl(file, [{"prompt": "a", "chosen": "b", "rejected": "c"} | {column: MESSAGES}])
    with pytest.raises(BadInput, match=f"line 1: `{column}` is a conversation written as text.*pco data import"):
        read_preferences(file)


def test_answers_that_are_transcripts_are_refused_but_prompts_may_be(file: Path) -> None:
    transcript = "\n\nHuman: a\n\nAssistant:"
    write_jsonl(file, [{"prompt": transcript, "chosen": " b", "rejected": " c"}])
    assert read_preferences(file)[0]["prompt"] == transcript
    write_jsonl(file, [thumb(completion=f"{transcript} b")])
    with pytest.raises(BadInput, match="line 1: `completion` is a conversation written as text"):
        read_feedback(file)


def test_an_answer_about_a_conversation_is_an_answer(file: Path) -> None:
    about = "Such as:\n\nHuman: Hi\n\nAssistant: Hello"
    write_jsonl(file, [{"prompt": "Write a dialogue.", "chosen": about, "rejected": '{"from": "Ann", "value": "5"}'}])
    assert read_preferences(file)[0]["chosen"] == about


# Unpaired feedback.


def thumb(**changes: object) -> dict[str, object]:
    return {"prompt": "a", "completion": " b", "good": True, **changes}


@given(prompts=st.lists(texts, min_size=1), good=st.booleans())
def test_all_feedback_comes_back_even_several_times_for_one_prompt(file: Path, prompts: list[str], good: bool) -> None:
    write_jsonl(file, [thumb(prompt=text, completion=text, good=good) for text in prompts])
    expected = [
        {"prompt_id": prompt_id(text), "prompt": text, "messages": None, "completion": text, "good": good}
        for text in prompts
    ]
    assert read_feedback(file) == expected


@pytest.mark.parametrize("good", [None, 1, 0, "true", [], "good"])
def test_a_rating_that_is_neither_true_nor_false_is_refused_with_its_line(file: Path, good: object) -> None:
    write_jsonl(file, [thumb(), thumb(good=good)])
    with pytest.raises(BadInput, match=r"prompts\.jsonl, line 2: expected true or false under `good`; found "):
        read_feedback(file)


@pytest.mark.parametrize("key", ["prompt", "completion"])
@pytest.mark.parametrize("text", [None, "", " ", 3])
def test_feedback_without_a_text_is_refused_with_its_line(file: Path, key: str, text: object) -> None:
    write_jsonl(file, [thumb(), thumb(**{key: text})])
    with pytest.raises(BadInput, match=f"line 2: expected an object with a non-empty text under `{key}`"):
        read_feedback(file)


def test_a_feedback_file_without_rows_is_refused(file: Path) -> None:
    write(file, "\n")
    with pytest.raises(BadInput, match="holds no feedback. Put rows into it, or leave `prompts.feedback` out"):
        read_feedback(file)


# Conversations.

turns = st.lists(texts, min_size=2, max_size=6)


def said(*words: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages in turns, the last of them the user's."""
    roles = [("user", "assistant")[(len(words) - 1 - i) % 2] for i in range(len(words))]
    messages = [{"role": role, "content": text} for role, text in zip(roles, words, strict=True)]
    return [{"role": "system", "content": system}, *messages] if system else messages


@given(prompt=texts)
def test_one_user_message_is_the_same_prompt_as_its_text(file: Path, prompt: str) -> None:
    rows = []
    for value in (prompt, said(prompt), [{"role": "user", "content": [{"type": "text", "text": prompt}]}]):
        write_jsonl(file, [{"prompt": value}])
        rows += read_jsonl(file, key="prompt")
    assert rows[0] == rows[1] == rows[2]
    assert (rows[0]["prompt"], rows[0]["messages"]) == (prompt, None)


@given(words=turns)
def test_the_messages_of_a_conversation_come_back_as_they_are(file: Path, words: list[str]) -> None:
    write_jsonl(file, [{"prompt": said(*words)}])
    (row,) = read_jsonl(file, key="prompt")
    assert row["messages"] == said(*words)
    assert all(text in row["prompt"] for text in words)


@given(one=turns, other=turns)
def test_conversations_have_one_id_where_their_turns_are_the_same(one: list[str], other: list[str]) -> None:
    assert (prompt_id(said(*one)) == prompt_id(said(*other))) == (one == other)
    assert prompt_id(said(*one)) != prompt_id(said(*one, system="Rhyme."))


def test_conversations_leak_whatever_their_case_and_white_space() -> None:
    assert prompt_key(said("Hi", "Yes?", "Why\n so")) == prompt_key(said("hi ", "yes?", "why so"))
    assert prompt_key(said("Hi", "Yes?", "Why")) != prompt_key(said("Hi", "No.", "Why"))


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (said("a", "b")[::-1], "ends with an answer; leave that turn out"),
        ([{"role": "narrator", "content": "a"}], "unknown role narrator"),
        ([{"role": "user", "content": " "}], "empty prompt"),
        ([{"role": "system", "content": "a"}], "last turn before the answer is not the user's"),
        ([{"role": "user", "content": [{"type": "image"}]}], "not text but image"),
        ([{"role": "user"}], "with 0 contents"),
        (["a"], "a list whose first is a text"),
        ([], "empty prompt"),
    ],
)
def test_messages_that_ask_for_no_answer_are_refused_with_their_line(file: Path, prompt: object, told: str) -> None:
    write_jsonl(file, [{"prompt": "good"}, {"prompt": prompt}])
    with pytest.raises(BadInput, match=rf"line 2: .*{told}"):
        read_jsonl(file, key="prompt")


def test_messages_beside_a_prompt_are_read_where_they_are_its_conversation(file: Path) -> None:
    messages = said("a", "b", "c")
    write_jsonl(file, [{"prompt": readable(messages), "messages": messages}])
    assert read_jsonl(file, key="prompt")[0]["messages"] == messages
    write_jsonl(file, [{"prompt": "c", "messages": [*messages, {"role": "assistant", "content": "d"}]}])
    assert read_jsonl(file, key="prompt")[0]["messages"] is None
    write_jsonl(file, [{"prompt": "c", "messages": messages}])
    with pytest.raises(BadInput, match="line 1: `prompt` and `messages` are different prompts"):
        read_jsonl(file, key="prompt")


def test_preferences_of_conversations_share_all_turns_but_the_last(file: Path) -> None:
    asked = said("a", "b", "c", system="Rhyme.")
    better, worse = ({"role": "assistant", "content": text} for text in ("good", "bad"))
    layouts = [
        {"chosen": [*asked, better], "rejected": [*asked, worse]},
        {"prompt": asked, "chosen": [better], "rejected": [worse]},
        {"prompt": asked, "chosen": "good", "rejected": "bad"},
    ]
    write_jsonl(file, layouts)
    first, *others = read_preferences(file)
    assert others == [first] * 2
    assert (first["messages"], first["chosen"], first["rejected"]) == (asked, "good", "bad")


@pytest.mark.parametrize(
    ("chosen", "rejected", "told"),
    [
        (said("a", "b"), said("c", "b"), "last message of `chosen` is not the assistant's"),
        (said("a", "b", "x")[:2], said("c", "b", "x")[:2], "answer different prompts"),
        (said("a", "b", "x")[1:2], "b", "one answer is a text, the other messages"),
    ],
)
def test_preferences_of_other_conversations_are_refused_with_their_line(
    file: Path, chosen: object, rejected: object, told: str
) -> None:
    write_jsonl(file, [{"prompt": None, "chosen": chosen, "rejected": rejected}])
    with pytest.raises(BadInput, match=f"line 1: .*{told}"):
        read_preferences(file)


def test_feedback_may_be_on_a_conversation(file: Path) -> None:
    write_jsonl(file, [{"prompt": said("a", "b", "c"), "completion": "d", "good": True}])
    (row,) = read_feedback(file)
    assert (row["messages"], row["prompt_id"]) == (said("a", "b", "c"), prompt_id(said("a", "b", "c")))
