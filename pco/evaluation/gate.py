"""The gate: the rules that a round has to pass, applied to evaluation rows (docs/evaluation.md)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pco.config.gate import Gate, Guard, Requirement
from pco.evaluation import metrics
from pco.evaluation.intervals import paired_interval
from pco.evaluation.metrics import Row

_TOLD_LEVEL = 0.95  # of the interval that is told where a rule demands none


@dataclass(frozen=True)
class Ruling:
    """One rule of the gate applied to one round; `low` and `high` bound `value` where it has an interval."""

    rule: str
    value: float
    bound: str
    passed: bool
    reason: str
    low: float | None = None
    high: float | None = None


def judge(new: Sequence[Row], others: Mapping[str, Sequence[Row]], gate: Gate) -> list[Ruling]:
    """Apply every rule of the gate to a policy's evaluation rows; `others` are those of `previous` and `start`.

    Where several guards have a confidence, each is held at the level that lets all of them together keep it
    (Bonferroni's correction).
    """
    policies = {"new": new, **others}
    unsure = sum(guard is not None and guard.confidence is not None for guard in gate.guards.values())
    rules: list[tuple[str, Requirement | Guard | None]] = [*gate.require.items(), *gate.guards.items()]
    return [
        ruling
        for name, rule in rules
        if rule is not None
        for ruling in _rulings(name, rule, policies, _level(rule, unsure))
    ]


def _level(rule: Requirement | Guard, unsure_guards: int) -> float | None:
    if rule.confidence is None or isinstance(rule, Requirement):
        return rule.confidence
    return 1 - (1 - rule.confidence) / unsure_guards


def _rulings(
    measure: str, rule: Requirement | Guard, policies: Mapping[str, Sequence[Row]], level: float | None
) -> Iterator[Ruling]:
    """One for each kind of bound that the rule has."""
    other = policies[rule.against]
    for look_at, least, most in (
        (_value, rule.min, rule.max),
        (_change, rule.min_change, rule.max_change),
        (_ratio, rule.min_ratio, rule.max_ratio),
    ):
        if least is not None or most is not None:
            yield _ruling(look_at(measure, policies["new"], other, rule.against), rule, (least, most), level)


@dataclass(frozen=True)
class _Look:
    """One number of a policy, told in two halves with room for its interval in between.

    `each` is that number of each prompt, and `above` by how much each prompt, or text, lies above a bound on it. Both
    are empty for a number of all completions together; a ratio has no `each`.
    """

    rule: str
    number: float
    told: tuple[str, str]
    each: list[float]
    above: Callable[[float], list[float]]


def _value(measure: str, new: Sequence[Row], other: Sequence[Row], named: str) -> _Look:
    now = _summary(new, measure)
    each = metrics.drifts(new) if measure == "drift" else metrics.by_prompt(new, measure)
    return _Look(measure, now, (f"{measure} {now:.4g}", ""), each, lambda bound: [one - bound for one in each])


def _change(measure: str, new: Sequence[Row], other: Sequence[Row], named: str) -> _Look:
    now, then = _summary(new, measure), _summary(other, measure)
    each = metrics.gains(new, other, measure=measure)
    told = f"{measure} {then:.4f} -> {now:.4f} ({now - then:+.4f}", f" vs {named})"
    return _Look(f"{measure} change", now - then, told, each, lambda bound: [one - bound for one in each])


def _ratio(measure: str, new: Sequence[Row], other: Sequence[Row], named: str) -> _Look:
    now, then = _summary(new, measure), _summary(other, measure)
    ratio = now / then if then else 1.0 if now == 0 else math.inf
    told = f"{measure} {then:.4g} -> {now:.4g} ({ratio - 1:+.0%}", f" vs {named})"
    if measure == "perplexity":
        return _Look("perplexity ratio", ratio, told, [], lambda bound: metrics.surprise(new, other, times=bound))
    above = partial(metrics.gains, new, other, measure=measure)
    return _Look(f"{measure} ratio", ratio, told, [], lambda bound: above(times=bound))


def _summary(rows: Sequence[Row], measure: str) -> float:
    return metrics.summarise(rows).get(measure, math.nan)


def _ruling(
    look: _Look, rule: Requirement | Guard, bounds: tuple[float | None, float | None], level: float | None
) -> Ruling:
    known = look.each and math.isfinite(look.number)
    low, high = paired_interval(look.each, level=level or _TOLD_LEVEL)[1:] if known else (None, None)
    bracket = "" if low is None else f" [{low:+.4f}, {high:+.4f}]"
    passed = math.isfinite(look.number) and all(
        _holds(look, rule, bound, sign, level) for bound, sign in zip(bounds, (1, -1), strict=True) if bound is not None
    )
    return Ruling(look.rule, look.number, _bound(rule, bounds), passed, bracket.join(look.told), low, high)


def _holds(look: _Look, rule: Requirement | Guard, bound: float, sign: int, level: float | None) -> bool:
    """Whether the number is above a bound (`sign` 1) or below it (-1), or for a guard at it."""
    strictly = isinstance(rule, Requirement)
    if level is None:
        beyond = sign * (look.number - bound)
        return beyond > 0 if strictly else beyond >= 0
    _, low, high = paired_interval([sign * one for one in look.above(bound)], level=level)
    return low > 0 if strictly else high >= 0


def _bound(rule: Requirement | Guard, bounds: tuple[float | None, float | None]) -> str:
    """The bounds in words, e.g. `> 0 with 90% confidence`, `0.8 to 1.5`."""
    least, most = bounds
    beyond = "" if isinstance(rule, Requirement) else "="
    if least is not None and most is not None:
        told = f"{least:g} to {most:g}"
    else:
        told = f">{beyond} {least:g}" if least is not None else f"<{beyond} {most:g}"
    return told + (f" with {rule.confidence:.0%} confidence" if rule.confidence else "")


def explain(number: int, rulings: list[Ruling]) -> str:
    """The verdict as a sentence, with every number that led to it."""
    failed = [ruling for ruling in rulings if not ruling.passed]
    told = "; ".join(f"{ruling.reason}, must be {ruling.bound}" for ruling in failed)
    if failed:
        return f"round {number} refused: {told}"
    return f"round {number} promoted: " + "; ".join(ruling.reason for ruling in rulings)
