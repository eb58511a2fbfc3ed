"""The plots of a study: curves with bands over seeds, reward against guards, reward against cost."""

from collections.abc import Callable, Sequence
from statistics import fmean

from matplotlib.axes import Axes

from pco.config.metrics import metric
from pco.report.plots import Plot, colours_of, drawing, legend_above, round_axis
from pco.runs.study_results import Evaluated, RoundCost

_BAND = "Line: mean over seeds; band: from the lowest to the highest seed."
_POINTS = "A line per variant, from the start on, mean over seeds; small points: the seeds."
Value = Callable[[Evaluated], float | None]


def curves(policies: Sequence[Evaluated], measures: Sequence[str]) -> list[Plot]:
    """Each measure over the rounds."""
    return [
        drawing(label_of(name), f"{_meaning(name)}. {_BAND}", _curve(policies, name))
        for name in measures
        if len({policy.round for policy in policies if name in policy.summary}) > 1
    ]


def against_guards(policies: Sequence[Evaluated], measure: str, guards: Sequence[str]) -> list[Plot]:
    """The measure that is wanted against each that is watched."""
    label = label_of(measure)
    return [
        drawing(
            f"{label} against {label_of(guard)}", _POINTS, _path(policies, _value_of(guard), measure, label_of(guard))
        )
        for guard in guards
        if any(guard in policy.summary for policy in policies)
    ]


def against_cost(policies: Sequence[Evaluated], measure: str) -> list[Plot]:
    """The measure that is wanted against what was spent up to each round."""
    label, spent = label_of(measure), _spent(policies)

    def tokens(policy: Evaluated) -> float:
        cost = spent[policy.variant, policy.seed, policy.round]
        return float(cost.tokens_sampled + cost.tokens_trained)

    def seconds(policy: Evaluated) -> float:
        return spent[policy.variant, policy.seed, policy.round].seconds

    of_tokens, of_time = "tokens sampled and trained on", "seconds of all stages"
    return [
        drawing(
            f"{label} against tokens",
            f"{_POINTS} Tokens of evaluations are left out.",
            _path(policies, tokens, measure, of_tokens),
        ),
        drawing(
            f"{label} against time",
            f"{_POINTS} Shared stages count in full.",
            _path(policies, seconds, measure, of_time),
        ),
    ]


def label_of(name: str) -> str:
    """A measure's name for people."""
    about = metric(name)
    return about.label if about else name


def _meaning(name: str) -> str:
    about = metric(name)
    return about.meaning[0].upper() + about.meaning[1:] if about else name


def _spent(policies: Sequence[Evaluated]) -> dict[tuple[str, int, int], RoundCost]:
    """What a run took up to a round, that round included."""
    spent: dict[tuple[str, int, int], RoundCost] = {}
    for policy in sorted(policies, key=lambda policy: policy.round):
        run = (policy.variant, policy.seed)
        before = [cost for (*other, _), cost in spent.items() if tuple(other) == run]
        spent[*run, policy.round] = (before[-1] if before else RoundCost()) + policy.cost
    return spent


def _value_of(name: str) -> Value:
    return lambda policy: policy.summary.get(name)


def _curve(policies: Sequence[Evaluated], name: str) -> Callable[[Axes], None]:
    variants = list(dict.fromkeys(policy.variant for policy in policies))
    shown = [policy for policy in policies if name in policy.summary]

    def draw(axes: Axes) -> None:
        for variant, colour in zip(variants, colours_of(len(variants)), strict=True):
            own = [policy for policy in shown if policy.variant == variant]
            rounds = sorted({policy.round for policy in own})
            values = [[policy.summary[name] for policy in own if policy.round == number] for number in rounds]
            axes.plot(rounds, [fmean(of_round) for of_round in values], marker="o", color=colour, label=variant)
            axes.fill_between(rounds, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2)
        axes.margins(y=0.12)
        round_axis(axes, sorted({policy.round for policy in shown}))
        legend_above(axes, min(3, len(variants)))

    return draw


def _path(policies: Sequence[Evaluated], across: Value, measure: str, across_label: str) -> Callable[[Axes], None]:
    variants = list(dict.fromkeys(policy.variant for policy in policies))

    def draw(axes: Axes) -> None:
        for variant, colour in zip(variants, colours_of(len(variants)), strict=True):
            points: dict[int, list[tuple[float, float]]] = {}
            for policy in policies:
                x, y = across(policy), policy.summary.get(measure)
                if policy.variant == variant and x is not None and y is not None:
                    points.setdefault(policy.round, []).append((x, y))
            means = [tuple(map(fmean, zip(*points[number], strict=True))) for number in sorted(points)]
            axes.plot([x for x, _ in means], [y for _, y in means], marker="o", color=colour, label=variant)
            every = [point for of_round in points.values() for point in of_round]
            axes.scatter([x for x, _ in every], [y for _, y in every], s=9, color=colour, alpha=0.5)
        axes.set_xlabel(across_label)
        axes.margins(0.1)
        legend_above(axes, min(3, len(variants)))

    return draw
