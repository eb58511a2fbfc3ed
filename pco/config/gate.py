"""The `gate` section of the config: what a round must show, what it must not harm, and what happens otherwise."""

import difflib
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pco.config.metrics import METRICS, TASK, metric
from pco.config.section import Section, added


class _Rule(Section):
    min: float | None = None
    """Bound on the metric itself."""
    max: float | None = None
    """Bound on the metric itself."""
    min_change: float | None = None
    """Bound on the metric minus the other policy's."""
    max_change: float | None = None
    """Bound on the metric minus the other policy's."""
    min_ratio: float | None = Field(None, ge=0)
    """Bound on the metric as a multiple of the other policy's."""
    max_ratio: float | None = Field(None, gt=0)
    """Bound on the metric as a multiple of the other policy's."""

    @property
    def bounds(self) -> dict[str, tuple[float | None, float | None]]:
        """The lower and the upper bound by what they bound: the value, its change or its ratio."""
        return {
            "": (self.min, self.max),
            "_change": (self.min_change, self.max_change),
            "_ratio": (self.min_ratio, self.max_ratio),
        }

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Self:
        if all(bounds == (None, None) for bounds in self.bounds.values()):
            raise ValueError("has no bound: give min, max, min_change, max_change, min_ratio or max_ratio")
        for kind, (lower, upper) in self.bounds.items():
            if lower is not None and upper is not None and lower > upper:
                raise ValueError(f"min{kind} ({lower}) is above max{kind} ({upper}), so no round could pass")
        return self


class Requirement(_Rule):
    """What a round must show on one metric: it lies beyond the bounds, not on them."""

    against: Literal["previous", "start"] = "previous"
    """The other policy: `previous` is the best one so far, `start` the one that the run began with."""
    confidence: float | None = Field(None, gt=0, lt=1)
    """Demand that the whole confidence interval of this level, such as 0.95, lies beyond; null: the mean does."""


class Guard(_Rule):
    """What a round must not do to one metric: it stays within the bounds, or on them."""

    against: Literal["previous", "start"] = "start"
    """The other policy: `previous` is the best one so far, `start` the one that the run began with."""
    confidence: float | None = Field(None, gt=0, lt=1)
    """Refuse only when the whole confidence interval of this level, corrected for the number of such guards, lies
    outside; null: when the mean does."""


class Judged(Section):
    """A costly reward for a share of the held-out prompts, beside a cheap metric of all."""

    share: float = Field(gt=0, lt=1)
    """The share of the held-out prompts whose completions get the `reward`, drawn by the run's seed, the same in all
    rounds."""
    beside: str
    """The metric of all prompts that helps, such as `second_reward` or `length`. It may have any unit and bias."""

    @field_validator("beside")
    @classmethod
    def _is_of_each_completion(cls, beside: str) -> str:
        about = metric(beside)
        of_texts = about is not None and (about.key in {"perplexity", "drift", "kl"} or about.key.startswith(TASK))
        if about is None or not about.paired or about.relative or of_texts or beside == "reward":
            raise ValueError("expected a metric of each completion other than the reward, such as second_reward")
        return beside


_REQUIRE: dict[str, Requirement | None] = {"reward": Requirement(min_change=0.0, confidence=0.9)}
_GUARDS: dict[str, Guard | None] = {
    "perplexity": Guard(max_ratio=1.5),
    "length": Guard(min_ratio=0.8, max_ratio=1.5),
    "repetition": Guard(max_change=0.1),
}


class Gate(Section):
    """When a round's policy is promoted, and what happens when it is not (docs/evaluation.md)."""

    require: dict[str, Requirement | None] = _REQUIRE
    """Bounds by metric, all of which must be shown; null drops a default. 0.9 lets 1 of 20 lucky rounds pass."""
    guards: dict[str, Guard | None] = _GUARDS
    """Bounds by metric, none of which may be broken; null drops a default."""
    otherwise: Literal["stop", "roll_back", "continue_anyway", "ask"] = "stop"
    """After a refused round: `stop`; `roll_back` to the best policy and try another round from it, with fresh samples;
    `continue_anyway` from the refused policy (the best stays the best); `ask` a person to promote it or to stop."""
    patience: int = Field(3, ge=1)
    """So many refused rounds one after the other end the run (`roll_back` and `continue_anyway`)."""
    retry_learning_rate: float = Field(0.5, gt=0)
    """`roll_back` multiplies the learning rate by this for each refused round since the last promoted one."""
    answer_within_s: int = Field(7 * 24 * 3600, ge=1)
    """`ask` waits so long for an answer in the Prefect UI, in seconds; the flow run then fails, and may be retried."""
    error_rate: float | None = added(None, gt=0, lt=0.5)
    """How likely a whole run that brings nothing may promote something, such as 0.05. The rounds share it, and it sets
    the confidence of each requirement, which is left out then. null: each round has its own risk, by `confidence`."""
    judged: Judged | None = added(None)
    """Give the reward, such as a judge's, to a share of the held-out prompts only; null: to all."""

    @model_validator(mode="after")
    def _rules_can_be_applied(self) -> Self:
        for name, rule in [*self.require.items(), *self.guards.items()]:
            fault = "" if rule is None else _fault(name, rule)
            if fault:
                raise ValueError(f"the rule on `{name}` {fault}")
        return self

    @model_validator(mode="after")
    def _error_rate_sets_the_confidence(self) -> Self:
        if self.error_rate is None:
            return self
        for name, rule in self.require.items():
            default = _REQUIRE.get(name)
            if rule is not None and rule.confidence not in {None, default and default.confidence}:
                raise ValueError(
                    f"error_rate and the `confidence` of require.{name} both say how sure a promotion must be: leave "
                    "out one of them"
                )
        if not self._sure:
            raise ValueError("error_rate: no metric under `require` has an interval that could hold it: name `reward`")
        return self

    @property
    def _sure(self) -> list[str]:
        """The requirements that an error rate holds to their interval: those whose metric has one."""
        sure = []
        for name, rule in self.require.items():
            if rule is not None and not _fault(name, rule.model_copy(update={"confidence": 0.9})):
                sure.append(name)
        return sure

    def of_round(self, share: float) -> "Gate":
        """The gate of one round that has this share of the run's error rate, as confidence of its requirements.

        Equal policies are promoted by one end of the interval, so half of what a confidence leaves is the error.
        """
        require = dict(self.require)
        for name in self._sure:
            rule = self.require[name]
            require[name] = rule and rule.model_copy(update={"confidence": round(1 - 2 * share, 10)})
        return self.model_copy(update={"require": require, "error_rate": None})

    @property
    def share(self) -> float | None:
        """The chance with which a round that brings nothing is promoted; None where no requirement has a confidence.

        All must be met, so the surest one bounds it.
        """
        confidences = [rule.confidence for rule in self.require.values() if rule is not None and rule.confidence]
        return (1 - max(confidences)) / 2 if confidences else None

    @field_validator("require", "guards", mode="before")
    @classmethod
    def _changes_the_defaults(cls, rules: object, info: ValidationInfo) -> object:
        """A config changes a default rule or adds one; the defaults that it does not name stay."""
        if not isinstance(rules, dict):
            return rules
        _check_names(rules)
        defaults = _REQUIRE if info.field_name == "require" else _GUARDS
        merged: dict[str, object] = {name: rule and rule.model_dump() for name, rule in defaults.items()}
        for name, rule in rules.items():
            default = merged.get(name)
            merged[name] = {**default, **rule} if isinstance(default, dict) and isinstance(rule, dict) else rule
        return merged


def _check_names(rules: Mapping[str, object]) -> None:
    unknown = sorted(str(name) for name in rules if metric(str(name)) is None)
    if not unknown:
        return
    known = [about.key for about in METRICS]
    close = difflib.get_close_matches(unknown[0], known, n=1)
    hint = f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(known)}."
    raise ValueError(f"no metric is called `{unknown[0]}`. {hint}")


def _fault(name: str, rule: Requirement | Guard) -> str:
    """Why a rule could never be applied as it is meant; empty when it can."""
    about = metric(name)
    assert about is not None, f"{name}: an unknown name was refused before"
    changes, ratios = (rule.bounds[kind] != (None, None) for kind in ("_change", "_ratio"))
    if rule.confidence is not None and not about.paired:
        return "has a `confidence`, but it is one number of all completions together and has no interval"
    if rule.confidence is not None and about.unit == "perplexity" and not ratios:
        return "has a `confidence`, which goes with min_ratio and max_ratio"
    if ratios and about.unit == "reward":
        return "bounds a ratio, which means nothing where rewards may be negative: use min_change or max_change"
    if (changes or ratios) and rule.against == "start" and about.relative:
        return "compares with the start, of which it is not known: use min or max"
    return ""
