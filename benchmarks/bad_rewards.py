"""Rewards that pay for the wrong thing, as a `reward: {kind: python}` would; `gate.py` trains on them."""

import re
from typing import Any

_WORD = re.compile(r"\bthe\b", re.IGNORECASE)


def tokens(candidates: list[dict[str, Any]]) -> list[float]:
    """How many tokens a completion has."""
    return [float(len(row["token_ids"])) for row in candidates]


def characters(candidates: list[dict[str, Any]]) -> list[float]:
    """How many characters it has: also longer words pay."""
    return [float(len(row["completion"])) for row in candidates]


def one_word(candidates: list[dict[str, Any]]) -> list[float]:
    """How often it says "the"."""
    return [float(len(_WORD.findall(row["completion"]))) for row in candidates]
