"""Variants of a study held against each other, paired by prompt and seed; and which one is best, if the data decide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from data.errors import BadInput
from pco.config import reward as reward_config
from pco.config.metrics import METRICS, TASK, Metric, metric
from pco.config.study import Study
from pco.evaluation.crossed import crossed_interval
from pco.runs.study import RunLine
from pco.runs.study_results import Evaluated

_EVEN = 0.5  # the win rate of a policy against itself
_OVER = ("finished", "refused by the gate")


@dataclass(frozen=True)
class Difference:
    """Of one measure, one variant minus another: mean over prompts and seeds, and its interval over both."""

    mean: float
    low: float
    high: float
    seeds: int
    prompts: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def difference(
    policies: Sequence[Evaluated], against: Sequence[Evaluated], measure: str, *, level: float = 0.95
) -> Difference | None:
    """By how much a measure of some policies is above that of others of the same seeds and prompts.

    None where no prompt of a seed has both.
    """
    others = {policy.seed: values(policy, measure) for policy in against}
    by_seed: list[dict[str, float]] = []
    for policy in policies:
        own, other = values(policy, measure), others.get(policy.seed, {})
        by_seed.append({prompt: own[prompt] - other[prompt] for prompt in own if prompt in other})
    by_seed = [of_seed for of_seed in by_seed if of_seed]
    if not by_seed:
        return None
    mean, low, high = crossed_interval(by_seed, level=level)
    return Difference(mean, low, high, len(by_seed), max(map(len, by_seed)))


def values(policy: Evaluated, measure: str) -> Mapping[str, float]:
    """A measure of each prompt or text by its id; against the start, the start itself is even."""
    about = metric(measure)
    if policy.round or about is None or not about.relative or measure.endswith("_vs_reference"):
        return policy.means.get(measure, {})
    if measure == "drift":
        return dict.fromkeys(policy.texts, 0.0)
    of = "second_reward" if measure.startswith("second_") else "reward"
    return dict.fromkeys(policy.means.get(of, {}), _EVEN if about.unit == "share" else 0.0)


def have_one_scale(study: Study, variants: Sequence[str], measure: str) -> bool:
    """Whether the rewards that a measure is made of are one and the same in all these variants."""
    is_second = measure.startswith("second_")
    if not (is_second or measure in {"reward", "best_of_n"} or "win_vs_" in measure):
        return True
    configs = [study.variants[name] for name in variants]
    used = [config.evaluate.second_reward if is_second else config.reward for config in configs]
    scales = [reward and reward_config.settings(reward) for reward in used]
    return all(scale == scales[0] for scale in scales)


def gate_measure(study: Study) -> str:
    """The measure that the first variant's gate requires a gain of; of wins those over the start, whom all share."""
    required = [name for name, rule in study.variants[study.first].gate.require.items() if rule is not None]
    return (required or ["reward"])[0].removeprefix("lc_").replace("_vs_previous", "_vs_start")


def check_measure(name: str) -> None:
    """Raise BadInput for a measure that variants cannot be ranked by."""
    about = metric(name)
    if about is not None and _ranks(about):
        return
    known = [known.key for known in METRICS if _ranks(known)]
    raise BadInput(f"--measure {name}: cannot rank variants. Take one of {', '.join(known)} or {TASK}NAME.")


def _ranks(about: Metric) -> bool:
    """Whether it has a value per prompt or text of which more, or less, is better; of perplexity that is `drift`."""
    is_paired = about.paired and about.unit != "perplexity"
    return bool(about.direction) and is_paired and not about.key.endswith("_vs_previous")


@dataclass(frozen=True)
class Best:
    """The variant that is best by a measure of the policies that its runs keep, and how sure that is.

    `differences` are those of the best variant less each other one, each with the level that lets all of them together
    keep `level` (Bonferroni). `left_out` says which variants and seeds do not count, and why.
    """

    variant: str
    measure: str
    level: float
    means: dict[str, float]
    differences: dict[str, Difference]
    seeds: list[int]
    left_out: list[str]

    @property
    def is_decided(self) -> bool:
        """Whether it is better than every other variant, beyond what prompts and seeds do by chance."""
        return len(self.differences) == len(self.means) - 1 and all(
            found.is_clear for found in self.differences.values()
        )


def best(
    study: Study, policies: Sequence[Evaluated], lines: Sequence[RunLine], *, measure: str, level: float = 0.95
) -> Best:
    """Rank the variants by the policies that their runs kept at the end, on the seeds that all of them have ended.

    Raises BadInput for a measure that cannot rank them or that was not measured, or when there is nothing to rank.
    """
    check_measure(measure)
    over = {(line.variant, line.seed) for line in lines if line.state in _OVER}
    ranked = [name for name in study.variants if any((name, seed) in over for seed in study.seeds)]
    seeds = [seed for seed in study.seeds if all((name, seed) in over for name in ranked)]
    left_out = [f"variant {name}: no run of it has ended" for name in study.variants if name not in ranked]
    left_out += [f"seed {seed}: not every variant's run has ended" for seed in study.seeds if seed not in seeds]
    if len(ranked) < 2 or not seeds:
        raise BadInput(
            f"{study.name}: nothing to rank yet: no two variants have runs of the same seed that have ended. "
            f"`pco study status {study.name}` shows what is done."
        )
    if not have_one_scale(study, ranked, measure):
        raise BadInput(
            f"--measure {measure}: the variants have different rewards, whose values do not compare. Rank by a measure "
            "that is the same for all, such as `second_reward` with one `evaluate.second_reward` in the base config."
        )
    kept = {name: [policy for policy in policies if policy.variant == name and policy.kept] for name in ranked}
    kept = {name: [policy for policy in of_name if policy.seed in seeds] for name, of_name in kept.items()}
    means: dict[str, float] = {}
    for name, of_variant in kept.items():
        by_seed = [values(policy, measure) for policy in of_variant]
        if not all(by_seed):
            raise BadInput(f"--measure {measure}: was not measured in every run of `{name}`.")
        means[name] = fmean(fmean(of_seed.values()) for of_seed in by_seed)
    about = metric(measure)
    direction = about.direction if about else 1
    winner = max(means, key=lambda name: direction * means[name])
    each = 1 - (1 - level) / (len(ranked) - 1)
    differences: dict[str, Difference] = {}
    for name in ranked:
        if name == winner:
            continue
        if (found := difference(kept[winner], kept[name], measure, level=each)) is None:
            left_out.append(f"variant {name}: it shares no prompt with {winner}, so they cannot be held together")
        else:
            differences[name] = found
    return Best(winner, measure, level, means, differences, seeds, left_out)
