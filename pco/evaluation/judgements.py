"""A judge's word on a policy's answers against another's, one for each prompt: AlpacaEval's, or of our own asking."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from data.errors import BadInput
from data.rows import JudgementRow
from pco.evaluation.export import Answer, rows_of, text_of
from pco.evaluation.intervals import paired_interval
from pco.evaluation.length_control import Games, controlled_interval, style_controlled_interval

STRONG = 3  # Arena-Hard counts a verdict of much better so often

_CODE = re.compile(r"```.*?(```|\Z)", re.DOTALL)
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
_LIST = re.compile(r"^\s*([-*+]|\d+[.)])\s", re.MULTILINE)
_BOLD = re.compile(r"(\*\*|__)(?=\S).+?\1")


@dataclass(frozen=True)
class Rate:
    """A win rate over prompts and its interval; a tie is half a win."""

    name: str
    rate: float
    low: float
    high: float


def row(
    prompt_id: str, text: str, other: str, win: float, *, first: float | None = None, second: float | None = None
) -> JudgementRow:
    """A judgement with what it may have gone by beside quality: length in characters, and marks of style."""
    own_style, other_style = style(text), style(other)
    return {
        "prompt_id": prompt_id,
        "win": win,
        "as_first": first,
        "as_second": second,
        "length": len(text),
        "other_length": len(other),
        "style": own_style,
        "other_style": other_style,
    }


def style(text: str) -> list[int]:
    """Headers, list items and bold passages of Markdown, outside of blocks of code: what Arena-Hard controls for."""
    prose = _CODE.sub("", text)
    return [sum(1 for _ in mark.finditer(prose)) for mark in (_HEADER, _LIST, _BOLD)]


def annotated(path: Path, answers: Mapping[str, Answer]) -> list[JudgementRow]:
    """The preferences of AlpacaEval's `annotations.json` for a policy's answers, by prompt id.

    `preference` is 1 where `output_1` is better, 2 where `output_2` is, 1.5 or 0 for a tie, or in between the
    probability of `output_2` plus 1. The policy's output is the one whose text is its answer. An annotation without a
    preference has no row.

    Raises BadInput for a row that is no annotation, and, with their numbers, for annotations of other prompts or other
    texts than those of the evaluation, or of a prompt that has one.
    """
    prompt_ids = {answer.prompt: prompt_id for prompt_id, answer in answers.items()}
    faults = {"of a prompt that was not evaluated": 0, "of other texts than the policy's": 0, "of a prompt again": 0}
    unknown, foreign, again = faults
    judged: set[str] = set()
    rows: list[JudgementRow] = []
    count = 0
    for where, raw in rows_of(path):
        count += 1
        instruction, first, second = (text_of(raw, name, where) for name in ("instruction", "output_1", "output_2"))
        share_of_second = _share_of_second(raw.get("preference"), where)
        prompt_id = prompt_ids.get(instruction)
        if prompt_id is None:
            faults[unknown] += 1
        elif answers[prompt_id].text not in {first, second}:
            faults[foreign] += 1
        elif prompt_id in judged:
            faults[again] += 1
        else:
            judged.add(prompt_id)
            is_second = answers[prompt_id].text == second
            other = first if is_second else second
            if share_of_second is not None:
                win = share_of_second if is_second else 1 - share_of_second
                rows.append(row(prompt_id, answers[prompt_id].text, other, win))
    if any(faults.values()):
        told = ", ".join(f"{many} {fault}" for fault, many in faults.items() if many)
        raise BadInput(
            f"{path}: of {count} annotations, {told}. They must be of the file that `pco export` wrote of this very "
            "evaluation; nothing was imported."
        )
    if not rows:
        raise BadInput(f"{path}: none of {count} annotations has a `preference`; nothing was imported.")
    return rows


def _share_of_second(preference: object, where: str) -> float | None:
    if preference is None:
        return None
    if isinstance(preference, int | float) and not isinstance(preference, bool):
        if preference == 0:
            return 0.5
        if 1 <= preference <= 2:
            return float(preference) - 1
    raise BadInput(f"{where}: expected a number from 1 to 2, 0 or null under `preference`; found {preference!r}.")


def rates(rows: Sequence[JudgementRow], *, five_way: bool = False, level: float = 0.95) -> list[Rate]:
    """The win rate, that at equal length, that at equal length and style, and of five-way verdicts Arena-Hard's score.

    Raises BadInput where there is no row.
    """
    if not rows:
        raise BadInput("judgements: there is none.")
    wins = [row["win"] for row in rows]
    longer = [float(row["length"] - row["other_length"]) for row in rows]
    games = Games([row["prompt_id"] for row in rows], wins, longer)
    found = [
        Rate("win rate", *_within(paired_interval(wins, level=level))),
        Rate("at equal length", *controlled_interval([games], level=level)),
        Rate("at equal length and style", *style_controlled_interval(wins, list(map(_differences, rows)), level=level)),
    ]
    if five_way:
        found.append(Rate("Arena-Hard score", *_within(_arena_hard(rows, level))))
    return found


def _within(interval: tuple[float, float, float]) -> tuple[float, float, float]:
    rate, low, high = interval
    return rate, max(0.0, low), min(1.0, high)


def _differences(row: JudgementRow) -> list[float]:
    """By how much longer and more marked up an answer is: of length (a - b) / (a + b), of marks per 1000 characters
    (a - b) / (a + b + 1), as Arena-Hard has them of tokens.
    """
    own, other = row["length"], row["other_length"]
    differences = [(own - other) / max(1, own + other)]
    for mark, other_mark in zip(row["style"], row["other_style"], strict=True):
        density, other_density = 1000 * mark / max(1, own), 1000 * other_mark / max(1, other)
        differences.append((density - other_density) / (density + other_density + 1))
    return differences


def _arena_hard(rows: Sequence[JudgementRow], level: float) -> tuple[float, float, float]:
    """Arena-Hard 2's score: the mean over verdicts of wins, those of much better or worse counted `STRONG` times.

    A ratio of sums over prompts; its interval is that of each prompt's part in it (Cochran 1977, section 6.3).
    """
    sums, counts = [], []
    for row in rows:
        verdicts = [share for share in (row["as_first"], row["as_second"]) if share is not None]
        weights = [STRONG if share in {0.0, 1.0} else 1 for share in verdicts]
        sums.append(sum(weight * _outcome(share) for weight, share in zip(weights, verdicts, strict=True)))
        counts.append(float(sum(weights)))
    score, mean_count = sum(sums) / sum(counts), fmean(counts)
    parts = [score + (total - score * count) / mean_count for total, count in zip(sums, counts, strict=True)]
    return paired_interval(parts, level=level)


def _outcome(share: float) -> float:
    """A win, a loss or a tie, whatever its strength."""
    return 0.5 if share == 0.5 else float(share > 0.5)


def followed_position(rows: Sequence[JudgementRow]) -> float | None:
    """How often both orders named the answer in the same place; None of annotations, which have one order."""
    both = [(row["as_first"], row["as_second"]) for row in rows]
    known = [(first - 0.5) * (second - 0.5) < 0 for first, second in both if first is not None and second is not None]
    return fmean(known) if known else None
