"""The plots of a report as inline SVG that takes its text colour from the page, light or dark."""

import base64
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pco.config.train import PairwiseCringe, is_divided_by_pairs
from pco.report.numbers import Interval, RunReport
from pco.reward_training.accuracy import Bin

_INK = "#123457"  # stands for the page's text colour until the SVG is placed
_BOUND = "#d1495b"
_SERIES = ("#3b82c4", "#e08a1e", "#2a9d6f")
_SIZE_INCHES = (4.4, 2.9)
_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "svg.hashsalt": "pco",
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "axes.unicode_minus": True,
}
_DROPPED = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>| xmlns(:xlink)?=\"[^\"]*\"", re.DOTALL)
_IDS = re.compile(r"( id=\"|url\(#|href=\"#)")

_BARS = "Bars: 95 % intervals of the change from the start."

Draw = Callable[[Axes], None]


@dataclass(frozen=True)
class Plot:
    """One drawing, with what it shows in words."""

    title: str
    caption: str
    svg: str


def address(plot: Plot) -> str:
    """The drawing as a `data:` address: on its own it needs its namespace, a background and a colour."""
    alone = '<svg xmlns="http://www.w3.org/2000/svg" style="background: white; color: #222" '
    return "data:image/svg+xml;base64," + base64.b64encode(plot.svg.replace("<svg ", alone, 1).encode()).decode()


def rewards(report: RunReport) -> list[Plot]:
    """Reward, wins and repetition of every evaluated policy; none with fewer than two of them."""
    if len(report.evaluated) < 2:
        return []
    return [
        drawing("Reward", f"Mean held-out reward; higher is better. {_BARS}", _over_rounds(report, "reward")),
        *_second_reward(report),
        drawing("Wins", _wins_caption(report), _wins(report)),
        drawing(
            "Repetition",
            f"Share of repeated token 3-grams in held-out completions; lower is better. {_BARS}",
            _over_rounds(report, "repetition", share=True),
        ),
    ]


def _second_reward(report: RunReport) -> list[Plot]:
    if any(policy.value("second_reward") is None for policy in report.evaluated):
        return []
    caption = f"A reward that makes no labels; higher is better. {_BARS}"
    return [drawing("Second reward", caption, _over_rounds(report, "second_reward"))]


def _wins_caption(report: RunReport) -> str:
    shares = "Share of held-out completions with more reward than the starting policy's, with 95 % intervals; "
    if _has_second_wins(report):
        return f"{shares}where the second reward, which makes no labels, does not follow the first, that may be gamed."
    return f"{shares}above the dashed line is better."


def _has_second_wins(report: RunReport) -> bool:
    return any(policy.value("second_win_vs_start") is not None for policy in report.evaluated)


class _Point(NamedTuple):
    """A round's number, a metric of its policy, and the interval of it."""

    number: int
    value: float
    low: float
    high: float


def _wins(report: RunReport) -> Draw:
    numbers = [policy.number for policy in report.evaluated if policy.number]
    series = {"win_vs_start": "by the reward"}
    if _has_second_wins(report):
        series["second_win_vs_start"] = "by the second reward"

    def draw(axes: Axes) -> None:
        for i, (metric, label) in enumerate(series.items()):
            _with_bars(axes, _shares(report, metric), i, label)
        axes.axhline(0.5, color=_BOUND, linestyle="--", linewidth=1.2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:g} %"))
        axes.set_ylim(-0.03, 1.03)
        round_axis(axes, numbers)
        legend_above(axes, 2)

    return draw


def _shares(report: RunReport, metric: str) -> list[_Point]:
    """A win rate against the start, of all policies but the start."""
    points = []
    for policy in report.evaluated:
        value = policy.value(metric)
        if policy.number and value is not None:
            interval = policy.intervals.get(metric, Interval(value, value))
            points.append(_Point(policy.number, value, interval.low, interval.high))
    return points


def _with_bars(axes: Axes, points: Sequence[_Point], i: int, label: str) -> None:
    """The i-th series and its intervals, a little beside the others so that bars do not hide each other."""
    if not points:
        return
    numbers, values, lows, highs = map(np.array, zip(*points, strict=True))
    bars = [np.maximum(0, values - lows), np.maximum(0, highs - values)]
    at = numbers + 0.05 * i
    axes.errorbar(at, values, yerr=bars, marker="o", color=_SERIES[i], label=label, capsize=3, elinewidth=1)


def guards(report: RunReport) -> list[Plot]:
    """Perplexity and length against the start, with the gate's bounds."""
    if len(report.evaluated) < 2 or report.start.summary is None:
        return []
    return [
        drawing(
            "Perplexity",
            f"On human text, as a multiple of the starting policy's. Dashed: the gate's bound. {_BARS}",
            _ratio(report, "perplexity"),
        ),
        drawing(
            "Length",
            f"Mean completion length as a multiple of the starting policy's. Dashed: the gate's bounds. {_BARS}",
            _ratio(report, "length"),
        ),
    ]


def training(report: RunReport) -> list[Plot]:
    """Training curves, a line per round; quantities that the loss does not have are left out."""
    loss = report.config.train.loss
    half_open = loss.b if isinstance(loss, PairwiseCringe) else None
    unit = "Mean over the pairs" if is_divided_by_pairs(loss) else "Per completion token, over the pairs"
    panels: list[tuple[str, str, str, float | None]] = [
        ("loss", "Loss", f"{unit} of each optimizer step.", None),
        (
            "margin",
            "Margin (nats)",
            "Log-probability of chosen minus rejected, mean over pairs. Dashed: where the gate is half open.",
            half_open,
        ),
        ("gate", "Gate", "Weight of a pair in the loss, mean over pairs: near 0 once pairs are well separated.", None),
    ]
    shown = []
    for column, title, caption, level in panels:
        steps = chain.from_iterable(policy.train_log for policy in report.rounds)
        if any(step[column] is not None for step in steps):
            shown.append(drawing(title, caption, _curves(report, column, level)))
    return shown


def series(curves: Mapping[str, Sequence[tuple[int, float, float, float]]]) -> list[Plot]:
    """Reward and perplexity over the runs of a series: number, value and interval of each; 0 is the series' start."""
    panels = {
        "reward": "On held-out prompts that all runs share; higher is better. Bars: 95 % intervals of a run's gain.",
        "perplexity": "On human text, as a multiple of that of the policy that the series began from.",
    }
    shown = []
    for name, caption in panels.items():
        if points := [_Point(*point) for point in curves.get(name, [])]:
            shown.append(drawing(name.capitalize(), caption, _over_runs(points, name)))
    return shown


def _over_runs(points: Sequence[_Point], name: str) -> Draw:
    def draw(axes: Axes) -> None:
        _with_bars(axes, points, 0, name)
        axes.margins(y=0.18)
        if name == "perplexity":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        round_axis(axes, [point.number for point in points], name="run")

    return draw


def calibration(bins: Sequence[Bin]) -> Plot:
    """Of a reward model: the probability it gave its winners against how often these were preferred."""

    def draw(axes: Axes) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=_BOUND, linestyle="--", linewidth=1.2)
        pairs = sum(bin.pairs for bin in bins)
        sizes = [10 + 190 * bin.pairs / pairs for bin in bins]
        predicted, observed = [bin.predicted for bin in bins], [bin.observed for bin in bins]
        axes.plot(predicted, observed, color=_SERIES[0])
        axes.scatter(predicted, observed, sizes, color=_SERIES[0])
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("share preferred")

    caption = "Held-out pairs by the probability given to the predicted winner; larger points are more pairs."
    return drawing("Calibration", caption, draw)


def learning(log: Sequence[Mapping[str, float]]) -> list[Plot]:
    """The training curves of a reward model."""
    panels = (("loss", "Loss", "Per training pair."), ("accuracy", "Accuracy", "Share of each step's pairs."))
    return [drawing(title, caption, _steps(log, column)) for column, title, caption in panels]


def _steps(log: Sequence[Mapping[str, float]], column: str) -> Draw:
    def draw(axes: Axes) -> None:
        axes.plot([row["step"] + 1 for row in log], [row[column] for row in log], color=_SERIES[0], linewidth=1)
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    return draw


def _over_rounds(report: RunReport, metric: str, *, share: bool = False) -> Draw:
    def draw(axes: Axes) -> None:
        for i, mode in enumerate(("greedy", "sampled")):
            _with_bars(axes, _values(report, f"{metric}/{mode}"), i, mode)
        if share:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:g} %"))
            axes.set_ylim(bottom=0)
        axes.margins(y=0.12)
        round_axis(axes, [policy.number for policy in report.evaluated])
        legend_above(axes, 2)

    return draw


def _values(report: RunReport, metric: str) -> list[_Point]:
    """A metric of all policies; the interval of its difference from the start stands around the value."""
    points: list[_Point] = []
    for policy in report.evaluated:
        value = policy.value(metric)
        if value is not None:
            start = points[0].value if points else value
            difference = policy.intervals.get(metric, Interval(value - start, value - start))
            points.append(_Point(policy.number, value, start + difference.low, start + difference.high))
    return points


def _ratio(report: RunReport, metric: str) -> Draw:
    guard = report.config.gate.guards.get(metric)
    limits = {"at least": guard.min_ratio, "at most": guard.max_ratio} if guard and guard.against == "start" else {}

    def draw(axes: Axes) -> None:
        _with_bars(axes, _ratios(report, metric), 0, metric)
        _bounds(axes, limits)
        axes.margins(y=0.18)
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
        round_axis(axes, [policy.number for policy in report.evaluated])

    return draw


def _ratios(report: RunReport, metric: str) -> list[_Point]:
    """A metric of all policies as a multiple of the start's; drift is the logarithm of the perplexities' ratio."""
    values = _values(report, metric)
    start = values[0].value
    points = []
    for policy, point in zip(report.evaluated, values, strict=True):
        ratio = point.value / start
        drift = policy.intervals.get("drift")
        low, high = point.low / start, point.high / start
        if metric == "perplexity":
            low, high = (math.exp(drift.low), math.exp(drift.high)) if drift else (ratio, ratio)
        points.append(_Point(point.number, ratio, low, high))
    return points


def _curves(report: RunReport, column: str, level: float | None) -> Draw:
    trained = [policy for policy in report.rounds if policy.train_log]
    colours = colours_of(len(trained))

    def draw(axes: Axes) -> None:
        for policy, colour in zip(trained, colours, strict=True):
            steps = np.array([row["step"] for row in policy.train_log], dtype=float) + 1
            values = np.array([row[column] for row in policy.train_log], dtype=float)  # nan where a step has none
            axes.plot(steps, values, color=colour, label=policy.name, marker=".")
        if level is not None:
            axes.axhline(level, color=_BOUND, linestyle="--", linewidth=1.2, label=f"b = {level:g}")
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(y=0.12)
        legend_above(axes, min(4, len(trained) + 1))

    return draw


def colours_of(number: int) -> list[str | tuple[float, float, float, float]]:
    """The fixed ones while they last, else a scale from the first round to the last."""
    if number <= len(_SERIES):
        return list(_SERIES[:number])
    scale = matplotlib.colormaps["viridis"]
    return [scale(0.15 + 0.7 * i / (number - 1)) for i in range(number)]


def _bounds(axes: Axes, bounds: Mapping[str, float | None]) -> None:
    for name, value in bounds.items():
        if value is None:
            continue
        axes.axhline(value, color=_BOUND, linestyle="--", linewidth=1.2)
        # At the left edge and just above the line, where the series, which start at 1, do not run.
        axes.annotate(
            f"{name} {value:g}×",
            (0, value),
            xycoords=("axes fraction", "data"),
            xytext=(3, 3),
            textcoords="offset points",
            color=_BOUND,
        )


def round_axis(axes: Axes, numbers: Sequence[int], *, name: str = "round") -> None:
    """Ticks at rounds, the first one called start."""
    axes.set_xlim(min(numbers) - 0.25, max(numbers) + 0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{name} {value:.0f}" if round(value) else "start"))
    if len(numbers) > 5:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}" if round(value) else "start"))
        axes.set_xlabel(name)


def legend_above(axes: Axes, columns: int) -> None:
    """Above the drawing, where it covers nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)


def drawing(title: str, caption: str, draw: Draw) -> Plot:
    """What `draw` draws, in the style of all plots."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        draw(figure.add_subplot())
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return Plot(title, caption, _placeable(drawn.getvalue(), title))


def _placeable(svg: str, title: str) -> str:
    """An SVG that can stand in a page beside others: ids of its own, no namespaces, the page's text colour."""
    prefix = re.sub(r"\W+", "-", title.lower())
    inline = _IDS.sub(rf"\g<1>{prefix}-", _DROPPED.sub("", svg).replace("xlink:href", "href"))
    labelled = inline.strip().replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    return labelled.replace(_INK, "currentColor")
