"""The gate: the rules that a round has to pass, applied to evaluation rows (docs/evaluation.md)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pco.config.gate import Gate, Guard, Judged, Requirement
from pco.config.metrics import TASK
from pco.evaluation import metrics
from pco.evaluation.differences import (
    differences_by_prompt,
    per_prompt_differences,
    per_prompt_means,
    per_text_drifts,
    text_differences,
)
from pco.evaluation.intervals import paired_interval, prediction_powered_interval, prompts_to_decide
from pco.evaluation.rows import EvaluationRow

Bounds = tuple[float | None, float | None]
Rows = Sequence[EvaluationRow]

_SHOWN_LEVEL = 0.95  # of the interval in a message where a rule demands none
_AFFORDABLE = 100  # times as many prompts as there are


@dataclass(frozen=True)
class RuleResult:
    """One rule of the gate applied to one round; `low` and `high` bound `value` where it has an interval.

    Its fields are columns of the table `decisions`.
    """

    rule: str
    value: float
    bound: str
    passed: bool
    reason: str
    low: float | None = None
    high: float | None = None
    doubt: str | None = None
    """Where the mean and its interval say different things: how many prompts would decide."""


def apply_rules(new: Rows, others: Mapping[str, Rows], gate: Gate) -> list[RuleResult]:
    """Apply every rule of the gate to a policy's evaluation rows; `others` are those of `previous` and `start`.

    Where several guards have a confidence, each has the level that lets all of them together keep it (Bonferroni's
    correction).
    """
    policies = {"new": new, **others}
    unsure_guards = sum(guard is not None and guard.confidence is not None for guard in gate.guards.values())
    rules: list[tuple[str, Requirement | Guard | None]] = [*gate.require.items(), *gate.guards.items()]
    results: list[RuleResult] = []
    for name, rule in rules:
        if rule is not None:
            results += _apply(name, rule, policies, level=_level(rule, unsure_guards), judged=gate.judged)
    return results


def _level(rule: Requirement | Guard, unsure_guards: int) -> float | None:
    if rule.confidence is None or isinstance(rule, Requirement):
        return rule.confidence
    return 1 - (1 - rule.confidence) / unsure_guards


def _apply(
    metric: str,
    rule: Requirement | Guard,
    policies: Mapping[str, Rows],
    *,
    level: float | None,
    judged: Judged | None,
) -> list[RuleResult]:
    """One result for each kind of bound that the rule has."""
    results = []
    for kind, statistic_of in {"": _value, "_change": _change, "_ratio": _ratio}.items():
        bounds = rule.bounds[kind]
        if bounds != (None, None):
            statistic = statistic_of(metric, policies["new"], policies[rule.against], rule.against)
            if judged is not None and metric == "reward" and kind == "_change":
                statistic = _powered(policies["new"], policies[rule.against], rule.against, judged.beside)
            results.append(_result(statistic, rule, bounds=bounds, level=level))
    return results


@dataclass(frozen=True)
class _Statistic:
    """A number of a policy that is held to bounds.

    `message` says it in two halves; its interval stands between them. `values` are that number of each prompt, and
    `excess` says by how much each prompt, or text, lies above a bound on it. Both are empty for a number of all
    completions together; a ratio has no `values`.
    """

    rule: str
    number: float
    message: tuple[str, str]
    values: list[float]
    excess: Callable[[float], list[float]]
    cheap: tuple[list[float], list[float]] | None = None
    """Where only some prompts are judged: the differences by a cheap metric of these, in order, and of all others."""

    def interval(self, values: Sequence[float], level: float) -> tuple[float, float, float]:
        """The mean of `values`, or of what is derived from them, and its interval."""
        if self.cheap is None:
            return paired_interval(values, level=level)
        return prediction_powered_interval(values, *self.cheap, level=level)


def _value(metric: str, new: Rows, other: Rows, against: str) -> _Statistic:
    number = _summary(new, metric)
    values = per_text_drifts(new) if metric == "drift" else per_prompt_means(new, metric)
    return _Statistic(
        metric, number, (f"{metric} {number:.4g}", ""), values, lambda bound: [value - bound for value in values]
    )


def _change(metric: str, new: Rows, other: Rows, against: str) -> _Statistic:
    now, before = _summary(new, metric), _summary(other, metric)
    values = per_prompt_differences(new, other, metric=metric)
    message = (f"{metric} {before:.4f} -> {now:.4f} ({now - before:+.4f}", f" vs {against})")
    return _Statistic(
        f"{metric} change", now - before, message, values, lambda bound: [value - bound for value in values]
    )


def _powered(new: Rows, other: Rows, against: str, beside: str) -> _Statistic:
    """The change of a reward that judged some prompts, with the help of a metric of all."""
    cheap = differences_by_prompt(new, other, metric=beside)
    judged = differences_by_prompt(new, other, metric="reward")
    judged = {prompt_id: value for prompt_id, value in judged.items() if prompt_id in cheap}
    values, near = list(judged.values()), [cheap[prompt_id] for prompt_id in judged]
    rest = [value for prompt_id, value in cheap.items() if prompt_id not in judged]
    number = prediction_powered_interval(values, near, rest)[0] if values else math.nan
    how = f" vs {against}, judged on {len(values)} of {len(cheap)} prompts with {beside} beside)"
    return _Statistic(
        "reward change",
        number,
        (f"reward ({number:+.4f}", how),
        values,
        lambda bound: [value - bound for value in values],
        (near, rest),
    )


def _ratio(metric: str, new: Rows, other: Rows, against: str) -> _Statistic:
    now, before = _summary(new, metric), _summary(other, metric)
    ratio = math.inf if now else 1.0
    if before:
        ratio = now / before
    message = (f"{metric} {before:.4g} -> {now:.4g} ({ratio - 1:+.0%}", f" vs {against})")
    excess = partial(per_prompt_differences, new, other, metric=metric)
    if metric == "perplexity":
        excess = partial(text_differences, new, other)
    return _Statistic(f"{metric} ratio", ratio, message, [], lambda bound: excess(times=bound))


def _summary(rows: Rows, metric: str) -> float:
    return metrics.summarise(rows).get(metric, math.nan)


def _result(statistic: _Statistic, rule: Requirement | Guard, *, bounds: Bounds, level: float | None) -> RuleResult:
    low = high = None
    interval = ""
    if statistic.values and math.isfinite(statistic.number):
        _, low, high = statistic.interval(statistic.values, level or _SHOWN_LEVEL)
        interval = f" [{low:+.4f}, {high:+.4f}]"
    lower, upper = bounds
    passed = (
        math.isfinite(statistic.number)
        and (lower is None or _is_beyond(statistic, rule, bound=lower, sign=1, level=level))
        and (upper is None or _is_beyond(statistic, rule, bound=upper, sign=-1, level=level))
    )
    reason = interval.join(statistic.message)
    doubt = _doubt(statistic, rule, bounds=bounds, level=level) if math.isfinite(statistic.number) else None
    return RuleResult(statistic.rule, statistic.number, _in_words(rule, bounds), passed, reason, low, high, doubt)


def _doubt(statistic: _Statistic, rule: Requirement | Guard, *, bounds: Bounds, level: float | None) -> str | None:
    """Which number of prompts would decide a rule whose mean says one thing, and whose interval does not; else None.

    A requirement is in doubt when its mean is beyond the bound and it failed, a guard when its mean is and it passed.
    """
    if level is None:
        return None
    for bound, sign in zip(bounds, (1, -1), strict=True):
        if bound is None:
            continue
        towards = sign if isinstance(rule, Requirement) else -sign  # where the rule would be decided
        excess = [towards * value for value in statistic.excess(bound)]
        mean, low, high = statistic.interval(excess, level)
        if mean > 0 >= low:
            return _needed(excess, statistic, level=level, interval=(mean, low, high))
    return None


def _needed(excess: list[float], statistic: _Statistic, *, level: float, interval: tuple[float, float, float]) -> str:
    unit, now = _unit(statistic), len(excess)
    needed = prompts_to_decide(excess, level=level, interval=interval if statistic.cheap else None)
    if needed is None:
        return f"a single one of the {unit} does not say how much they differ"
    if needed <= now:
        return f"too few {unit} changed to tell; only more {unit} would"
    if needed > _AFFORDABLE * now:
        return f"no affordable number of {unit} would decide: at this difference it takes {needed:,}; {now:,} are there"
    alike = " among as many more of all" if statistic.cheap else ""
    return f"at this difference {needed:,} {unit} would decide, {needed - now:,} more than now{alike}"


def _unit(statistic: _Statistic) -> str:
    if statistic.cheap:
        return "judged prompts"
    metric = statistic.rule.partition(" ")[0]
    if metric in {"perplexity", "drift"}:
        return "human texts"
    return "documents" if metric.startswith(TASK) else "prompts"


def _is_beyond(
    statistic: _Statistic, rule: Requirement | Guard, *, bound: float, sign: int, level: float | None
) -> bool:
    """Whether the number is above a lower bound (`sign` 1) or below an upper one (-1); for a guard it may be on it."""
    strictly = isinstance(rule, Requirement)
    if level is None:
        excess = sign * (statistic.number - bound)
        return excess > 0 if strictly else excess >= 0
    _, low, high = statistic.interval([sign * value for value in statistic.excess(bound)], level)
    return low > 0 if strictly else high >= 0


def _in_words(rule: Requirement | Guard, bounds: Bounds) -> str:
    """The bounds in words, e.g. `> 0 with 90% confidence`, `0.8 to 1.5`."""
    lower, upper = bounds
    or_equal = "" if isinstance(rule, Requirement) else "="
    confidence = f" with {100 * rule.confidence:.4g}% confidence" if rule.confidence else ""
    if lower is not None and upper is not None:
        return f"{lower:g} to {upper:g}{confidence}"
    if lower is not None:
        return f">{or_equal} {lower:g}{confidence}"
    return f"<{or_equal} {upper:g}{confidence}"


def promise(gate: Gate, rounds: int) -> str:
    """What the gate's requirements promise of a run that brings nothing, in a sentence; empty if nothing."""
    if gate.error_rate is not None:
        return (
            f"Of runs that bring nothing, at most {_one_in(gate.error_rate)} promotes something (gate.error_rate "
            f"{gate.error_rate:g}, shared by {rounds} round{'s' if rounds > 1 else ''})."
        )
    if gate.share is None:
        return ""
    whole = 1 - (1 - gate.share) ** rounds
    every = f"Of rounds that bring nothing, at most {_one_in(gate.share)} is promoted"
    return (
        f"{every}." if rounds == 1 else f"{every}; of runs of {rounds} such rounds up to {whole:.0%} promote something."
    )


def _one_in(share: float) -> str:
    return f"one in {1 / share:.3g}"


def explain(number: int, results: Sequence[RuleResult]) -> str:
    """The decision on a round as a sentence, with every number that led to it."""
    failed = [f"{result.reason}, must be {result.bound}" for result in results if not result.passed]
    doubts = [f". In doubt: {result.rule}, {result.doubt}" for result in results if result.doubt]
    if failed:
        return f"round {number} refused: {'; '.join(failed)}" + "".join(doubts)
    return f"round {number} promoted: " + "; ".join(result.reason for result in results) + "".join(doubts)
