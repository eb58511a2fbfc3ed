"""Rewards that are computed from a completion alone, or from it and the prompt's reference."""

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Protocol

from data.errors import BadInput
from pco.config.reward import (
    ExactAnswerReward,
    JsonSchemaReward,
    LengthReward,
    RegexReward,
    RepetitionReward,
    schema_fault,
)
from pco.rewards.scores import Candidate


def repetition(row: Candidate, config: RepetitionReward) -> float:
    """Minus the share of repeated n-grams."""
    return 0.0 - repeated_share(row["token_ids"], config.ngram)


def repeated_share(tokens: Sequence[int], n: int) -> float:
    """Share of a completion's n-grams that occurred in it before (arXiv 2312.16682, section 4.1); 0 when it has none.

    1 - distinct / all: 0 means that nothing is repeated, values near 1 that nearly everything is.
    """
    total = len(tokens) - n + 1
    if total <= 0:
        return 0.0
    return 1 - len({tuple(tokens[i : i + n]) for i in range(total)}) / total


def length(row: Candidate, config: LengthReward) -> float:
    """0 inside the window, (tokens - min) / min below, (max - tokens) / max above: -1 is nothing, or twice too much."""
    tokens = len(row["token_ids"])
    if tokens < config.min_tokens:
        return (tokens - config.min_tokens) / config.min_tokens
    return min(0.0, (config.max_tokens - tokens) / config.max_tokens)


def regex(row: Candidate, config: RegexReward) -> float:
    """Whether the pattern is found."""
    return float(re.search(config.pattern, row["completion"]) is not None)


def exact_answer(row: Candidate, config: ExactAnswerReward) -> float:
    """Whether the last match of the pattern is the reference; 0 without a match."""
    answers = re.findall(config.pattern, row["completion"])
    reference = row["reference"]
    assert reference is not None  # `rewards.check` refuses prompts without one
    if not answers:
        return 0.0
    return float(same_answer(answers[-1], reference) if config.numbers else answers[-1].strip() == reference.strip())


# As lm-eval's gsm8k: without thousands separators, a dollar sign before and a full stop after.
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)\$?(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?P<exponent>[eE][+-]?[0-9]{1,4})?\.?"
)


def same_answer(answer: str, reference: str) -> bool:
    """Whether two answers are the same: numbers by their value, other texts by their characters.

    White space around them is left aside. A number is written in decimal digits, with a sign, a point and an exponent
    if any; commas only between groups of three digits. A dollar sign before it and a full stop after it are left aside.
    """
    one, other = number(answer), number(reference)
    if one is not None and other is not None:
        return one == other
    return answer.strip() == reference.strip()


def number(text: str) -> Decimal | None:
    """The exact value of a text that is a number; None of any other."""
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return None
    return Decimal(f"{found['sign']}{found['digits'].replace(',', '')}{found['exponent'] or ''}")


def json_schema(config: JsonSchemaReward) -> Callable[[Candidate], float]:
    """Whether a completion is one JSON value, nothing but white space around it, that fits the schema."""
    import jsonschema
    from referencing import Registry

    document = schema(config)
    kind = jsonschema.validators.validator_for(document, default=jsonschema.Draft202012Validator)
    validator = kind(document, registry=Registry())  # an empty registry fetches nothing
    return lambda row: float(_fits(validator, row["completion"]))


class _Validator(Protocol):
    def is_valid(self, instance: object) -> bool: ...


def _fits(validator: _Validator, text: str) -> bool:
    from referencing.exceptions import Unresolvable

    try:
        return validator.is_valid(json.loads(text, parse_constant=_refuse))
    except (ValueError, RecursionError):  # not JSON, or nested beyond reason
        return False
    except Unresolvable as error:
        raise BadInput(f"reward.kind json_schema: the schema refers to a part it does not have ({error}).") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def schema(config: JsonSchemaReward) -> object:
    """The schema, from the config or its file; raises BadInput when the file holds none."""
    if config.file is None:
        return config.inline
    path = Path(config.file)
    try:
        document: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: could not be read ({error.strerror}). Name a JSON Schema as `reward.file`.") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not valid JSON ({error}). `reward.file` must hold a JSON Schema.") from error
    if fault := schema_fault(document):
        raise BadInput(f"{path}: {fault} (`reward.file`).")
    return document
