"""A prompt becomes the same tokens in every stage."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadInput
from pco.config.run import Policy
from pco.models.rendering import load_tokenizer, render
from tests import tiny_model

RAW = Policy(model="any", prompt_format="raw")
CHAT = Policy(model="any", prompt_format="chat")
prompts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)


def test_the_tokenizer_of_these_tests_doubles_the_beginning_of_text_if_it_is_allowed_to(tokenizer: Any) -> None:
    text = render(tokenizer, "hi", CHAT).text
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 2


@given(prompt=prompts, policy=st.sampled_from([RAW, CHAT]))
def test_there_is_exactly_one_beginning_of_text_and_it_comes_first(tokenizer: Any, prompt: str, policy: Policy) -> None:
    ids = render(tokenizer, prompt, policy).token_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.bos_token_id not in ids[1:] or tiny_model.BOS in prompt


@given(prompt=prompts)
def test_raw_prompts_are_read_as_they_are(tokenizer: Any, prompt: str) -> None:
    rendered = render(tokenizer, prompt, RAW)
    assert rendered.text == prompt
    assert tokenizer.decode(rendered.token_ids[1:]) == prompt


@given(prompt=prompts)
def test_chat_prompts_are_a_user_message_and_the_opening_of_the_answer(tokenizer: Any, prompt: str) -> None:
    rendered = render(tokenizer, prompt, CHAT)
    assert rendered.text == f"<s><|user|>{prompt}</s><|assistant|>"
    assert tokenizer.decode(rendered.token_ids) == rendered.text


def test_a_system_message_comes_before_the_users(tokenizer: Any) -> None:
    told = CHAT.model_copy(update={"system": "Be brief."})
    assert render(tokenizer, "hi", told).text == "<s><|system|>Be brief.</s><|user|>hi</s><|assistant|>"


def test_a_folder_without_a_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"{tmp_path}: .*tokenizer"):
        load_tokenizer(tmp_path)


def test_a_broken_tokenizer_is_refused_by_name(tmp_path: Path, tiny: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match=f"{tmp_path}: .*tokenizer"):
        load_tokenizer(tmp_path)
