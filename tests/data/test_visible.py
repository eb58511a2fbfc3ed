"""Text of models is shown so that nothing in it acts on a terminal, or hides."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\u241b[31mred"),
        ("a\x7fb", "a\u2421b"),
        ("a\u202eb", "a\ufffdb"),
        ("a\u200bb", "a<U+200B>b"),
        ("soft\u00adhyphen", "soft<U+00AD>hyphen"),
        ("one\u2028two", "one<U+2028>two"),
        ("tag\U000e0041", "tag<U+E0041>"),
        ("line\r\nline\ttab", "line\nline\ttab"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),
    ],
)
def test_what_acts_or_hides_is_marked(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Zl", "Zp"))))
def test_text_without_such_characters_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == text


@given(st.text())
def test_nothing_shown_controls_a_terminal(text: str) -> None:
    assert not {character for character in visible(text) if unicodedata.category(character) == "Cc"} - set("\n\t")
