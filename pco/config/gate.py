"""The `gate` section of the config: what a round must show, what it must not harm, and what happens otherwise."""

import difflib
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pco.config.section import Section

_RIVALS = ("start", "previous", "reference")
# What a rule can be about: the names in an evaluation's summary (docs/evaluation.md).
MEASURES = (
    *("reward", "second_reward", "repetition", "repetition_4", "length", "entropy", "f1", "kl"),
    *(f"{kind}_vs_{rival}" for kind in ("win", "second_win", "lc_win", "lc_second_win") for rival in _RIVALS),
    *("distinct_1", "distinct_2", "distinct_3", "perplexity", "drift"),
)

TASK = "task_"  # begins the measure of a task of lm-eval

# One number of all completions together: there is nothing per prompt that an interval could be taken over.
_WHOLE = ("distinct_", "lc_")
# What compares with another policy, and so is not known of the start.
_RELATIVE = (*(f"_vs_{rival}" for rival in _RIVALS), "kl", "drift")


class _Rule(Section):
    min: float | None = None
    """Bound on the measure itself."""
    max: float | None = None
    """Bound on the measure itself."""
    min_change: float | None = None
    """Bound on the measure less the other policy's."""
    max_change: float | None = None
    """Bound on the measure less the other policy's."""
    min_ratio: float | None = Field(None, ge=0)
    """Bound on the measure as a multiple of the other policy's."""
    max_ratio: float | None = Field(None, gt=0)
    """Bound on the measure as a multiple of the other policy's."""

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Self:
        bounds = {
            kind: (getattr(self, f"min{kind}"), getattr(self, f"max{kind}")) for kind in ("", "_change", "_ratio")
        }
        if all(bound is None for pair in bounds.values() for bound in pair):
            raise ValueError("has no bound: give min, max, min_change, max_change, min_ratio or max_ratio")
        for kind, (least, most) in bounds.items():
            if least is not None and most is not None and least > most:
                raise ValueError(f"min{kind} ({least}) is above max{kind} ({most}), so no round could pass")
        return self


class Requirement(_Rule):
    """What a round must show on one measure: it lies beyond the bounds, not on them."""

    against: Literal["previous", "start"] = "previous"
    """The other policy: `previous` is the best one so far, `start` the one that the run began with."""
    confidence: float | None = Field(None, gt=0, lt=1)
    """Demand that the whole confidence interval of this level, such as 0.95, lies beyond; null: the mean does."""


class Guard(_Rule):
    """What a round must not do to one measure: it stays within the bounds, or on them."""

    against: Literal["previous", "start"] = "start"
    """The other policy: `previous` is the best one so far, `start` the one that the run began with."""
    confidence: float | None = Field(None, gt=0, lt=1)
    """Refuse only when the whole confidence interval of this level, corrected for the number of such guards, lies
    outside; null: when the mean does."""


_REQUIRE: dict[str, Requirement | None] = {"reward": Requirement(min_change=0.0, confidence=0.9)}
_GUARDS: dict[str, Guard | None] = {
    "perplexity": Guard(max_ratio=1.5),
    "length": Guard(min_ratio=0.8, max_ratio=1.5),
    "repetition": Guard(max_change=0.1),
}


class Gate(Section):
    """When a round's policy is promoted, and what happens when it is not (docs/evaluation.md)."""

    require: dict[str, Requirement | None] = _REQUIRE
    """Bounds by measure, all of which must be shown; null drops a default. 0.9 lets 1 of 20 lucky rounds pass."""
    guards: dict[str, Guard | None] = _GUARDS
    """Bounds by measure, none of which may be broken; null drops a default."""
    otherwise: Literal["stop", "roll_back", "continue_anyway", "ask"] = "stop"
    """After a refused round: `stop`; `roll_back` to the best policy and try another round from it, with fresh samples;
    `continue_anyway` from the refused policy (the best stays the best); `ask` a person to promote it or to stop."""
    patience: int = Field(3, ge=1)
    """So many refused rounds one after the other end the run (`roll_back` and `continue_anyway`)."""
    retry_learning_rate: float = Field(0.5, gt=0)
    """`roll_back` multiplies the learning rate by this for each refused round since the last promoted one."""
    answer_within_s: int = Field(7 * 24 * 3600, ge=1)
    """`ask` waits so long for an answer in the Prefect UI, in seconds; the flow run then fails, and may be retried."""

    @model_validator(mode="after")
    def _rules_can_be_held(self) -> Self:
        for measure, rule in [*self.require.items(), *self.guards.items()]:
            if rule is not None and (fault := _fault(measure, rule)):
                raise ValueError(f"the rule on `{measure}` {fault}")
        return self

    @field_validator("require", "guards", mode="before")
    @classmethod
    def _over_the_defaults(cls, given: Any, info: Any) -> Any:
        """What is given changes a default rule or adds one; the defaults that are not named stay."""
        if not isinstance(given, dict):
            return given
        if unknown := sorted((name for name in given if not _is_known(name)), key=str):
            close = difflib.get_close_matches(str(unknown[0]), MEASURES, n=1)
            hint = f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(MEASURES)}."
            raise ValueError(f"no measure is called `{unknown[0]}`. {hint}")
        rules = {name: rule.model_dump() for name, rule in cls.model_fields[info.field_name].default.items()}
        return rules | {
            name: rules.get(name, {}) | rule if isinstance(rule, dict) else rule for name, rule in given.items()
        }


def _is_known(name: object) -> bool:
    return name in MEASURES or str(name).startswith(TASK)


def _fault(measure: str, rule: Requirement | Guard) -> str:
    """Why a rule could never be held as it is meant; empty when it can."""
    changes = not (rule.min_change is None and rule.max_change is None)
    ratios = not (rule.min_ratio is None and rule.max_ratio is None)
    if rule.confidence is not None and measure.startswith(_WHOLE):
        return "has a `confidence`, but it is one number of all completions together and has no interval"
    if rule.confidence is not None and measure == "perplexity" and not ratios:
        return "has a `confidence`, which goes with min_ratio and max_ratio"
    if ratios and measure in {"reward", "second_reward"}:
        return "bounds a ratio, which means nothing where rewards may be negative: use min_change or max_change"
    if (changes or ratios) and rule.against == "start" and measure.endswith(_RELATIVE):
        return "compares with the start, of which it is not known: use min or max"
    return ""
