"""What a win rate would be if both sides' completions were equally long, or of one style."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import BadInput

_STEPS = 1000
_SMALLEST_STEP = 1e-9
_RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 50  # so that memory stays small
_PRECISE_ENOUGH = 1e-4  # of a resample's weights: far below what the interval's ends are known to


@dataclass(frozen=True)
class Games:
    """Completions of one mode against another policy's: of which prompt, the win (a tie 0.5), and the length.

    `longer` says by how many tokens each completion is longer than the other's.
    """

    prompts: Sequence[str]
    wins: Sequence[float]
    longer: Sequence[float]


def controlled_rate(wins: Sequence[float], longer: Sequence[float]) -> float:
    """The win rate at equal length; `longer` says by how many tokens each completion is longer than the other's.

    The idea of length-controlled AlpacaEval (arXiv 2404.04475): a logistic regression of the wins (1, a tie 0.5, 0) on
    tanh(difference / its standard deviation), of which the prediction at difference 0 is taken. The slope has a
    standard normal prior, without which no fit exists where the longer one always wins. Wins alone, losses alone and
    equal lengths leave nothing to control: the plain rate.
    """
    won, length = np.asarray(wins, dtype=np.float64), np.asarray(longer, dtype=np.float64)
    rate, spread = float(won.mean()), float(length.std())
    if rate in {0.0, 1.0} or spread == 0:
        return rate
    inputs = np.stack([np.ones_like(won), np.tanh(length / spread)], axis=1)
    return 1 / (1 + math.exp(-float(_fitted(inputs, won)[0])))


def _fitted(inputs: np.ndarray, won: np.ndarray) -> np.ndarray:
    """Intercept and slopes of greatest posterior probability.

    Newton's steps with an upper bound in place of the curvature, which never overshoot (Boehning and Lindsay 1988).
    """
    prior = np.array([0.0] + [1.0] * (inputs.shape[1] - 1))
    bound = inputs.T @ inputs / 4 + np.diag(prior)
    weights = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        predicted = 1 / (1 + np.exp(-inputs @ weights))
        step = np.linalg.solve(bound, inputs.T @ (won - predicted) - prior * weights)
        weights += step
        if np.abs(step).max() < _SMALLEST_STEP:
            break
    return weights


def controlled_interval(modes: Sequence[Games], *, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """The mean of the modes' win rates at equal length and its confidence interval: (rate, low, high).

    A percentile bootstrap over prompts (Efron 1979): the rate has no value per prompt, so the prompts are drawn anew,
    with all completions of each, and the whole regression is fitted again. A single prompt says nothing of the spread:
    (rate, 0, 1).

    Raises BadInput where there are no completions, or for a level outside (0, 1).
    """
    if not modes or not all(games.wins for games in modes):
        raise BadInput("controlled_interval: expected completions of each mode; found none.")
    if not 0 < level < 1:
        raise BadInput(f"controlled_interval: level is {level}; expected a share between 0 and 1, such as 0.95.")
    rate = float(np.mean([controlled_rate(games.wins, games.longer) for games in modes]))
    prompts = list(dict.fromkeys(prompt for games in modes for prompt in games.prompts))
    if len(prompts) == 1:
        return rate, 0.0, 1.0
    place = {prompt: i for i, prompt in enumerate(prompts)}
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), size=_RESAMPLES)
    rates = [resampled_rates(games, drawn[:, [place[prompt] for prompt in games.prompts]]) for games in modes]
    low, high = np.nanquantile(np.mean(rates, axis=0), [(1 - level) / 2, (1 + level) / 2])
    return rate, float(low), float(high)


def resampled_rates(games: Games, times: np.ndarray) -> np.ndarray:
    """`controlled_rate` where each completion counts as often as its prompt was drawn, a row of `times` a resample.

    Not a number where no completion was drawn.
    """
    won, length = np.asarray(games.wins, dtype=np.float64), np.asarray(games.longer, dtype=np.float64)
    parts = np.array_split(times.astype(np.float64), math.ceil(len(times) / _RESAMPLES_AT_ONCE))
    return np.concatenate([_rates(won, length, part) for part in parts])


def _rates(won: np.ndarray, length: np.ndarray, times: np.ndarray) -> np.ndarray:
    total = times.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate, mean = times @ won / total, times @ length / total
        spread = np.sqrt(np.maximum(times @ length**2 / total - mean**2, 0))
    plain = ~((rate > 0) & (rate < 1) & (spread > 0))
    input_ = np.tanh(length / np.where(plain, 1.0, spread)[:, None])
    # The upper bound of `_fitted`, for all resamples at once: two by two, and so inverted by hand.
    a, b, d = total / 4, (times * input_).sum(axis=1) / 4, (times * input_**2).sum(axis=1) / 4 + 1
    determinant = np.where(plain, 1.0, a * d - b * b)
    intercept, slope = np.zeros(len(times)), np.zeros(len(times))
    for _ in range(_STEPS):
        missed = times * (won - 1 / (1 + np.exp(-(intercept[:, None] + slope[:, None] * input_))))
        first, second = missed.sum(axis=1), (missed * input_).sum(axis=1) - slope
        steps = np.array([d * first - b * second, a * second - b * first]) / determinant * ~plain
        intercept, slope = intercept + steps[0], slope + steps[1]
        if np.abs(steps).max() < _PRECISE_ENOUGH:
            break
    return np.where(plain, rate, 1 / (1 + np.exp(-intercept)))


def style_controlled_interval(
    wins: Sequence[float], features: Sequence[Sequence[float]], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """The win rate at equal style and its confidence interval: (rate, low, high). One win for each prompt, 0 to 1.

    `features` has for each prompt the differences of style between both answers, each 0 where they are alike. As
    Arena-Hard's style control (arXiv 2406.11939), the regression of `controlled_rate` with several inputs, here each
    divided by its standard deviation. A feature that never differs has no part. The interval is a percentile bootstrap
    over prompts; a single prompt says nothing of the spread: (rate, 0, 1).

    Raises BadInput where there are no wins.
    """
    won = np.asarray(wins, dtype=np.float64)
    if won.size == 0:
        raise BadInput("style_controlled_interval: expected a win for each prompt; found none.")
    differences = np.asarray(features, dtype=np.float64).reshape(won.size, -1)
    spread = differences.std(axis=0)
    inputs = np.column_stack([np.ones_like(won), differences[:, spread > 0] / spread[spread > 0]])
    rate, start = float(won.mean()), np.zeros(inputs.shape[1])
    if 0 < rate < 1:  # else there is nothing to control, and no finite intercept
        start = _fitted(inputs, won)
        rate = 1 / (1 + math.exp(-float(start[0])))
    if won.size == 1:
        return rate, 0.0, 1.0
    drawn = np.random.default_rng(seed).multinomial(won.size, np.full(won.size, 1 / won.size), size=_RESAMPLES)
    parts = np.array_split(drawn.astype(np.float64), math.ceil(_RESAMPLES / _RESAMPLES_AT_ONCE))
    rates = np.concatenate([_weighted_rates(inputs, won, part, start) for part in parts])
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return rate, float(low), float(high)


def _weighted_rates(inputs: np.ndarray, won: np.ndarray, times: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The fit of `_fitted` where each prompt counts `times`, a row of which is a resample; rates at inputs of 0.

    `start` are the weights of all prompts, from which those of a resample are not far.
    """
    rate = times @ won / times.sum(axis=1)
    plain = (rate <= 0) | (rate >= 1)
    prior = np.array([0.0] + [1.0] * (inputs.shape[1] - 1))
    bound = np.einsum("rn,nk,nl->rkl", times, inputs, inputs) / 4 + np.diag(prior)
    weights = np.tile(start, (len(times), 1)) * ~plain[:, None]
    for _ in range(_STEPS):
        missed = times * (won - 1 / (1 + np.exp(-weights @ inputs.T)))
        slopes = missed @ inputs - prior * weights
        steps = np.linalg.solve(bound, slopes[:, :, None])[:, :, 0] * ~plain[:, None]
        weights += steps
        if np.abs(steps).max() < _PRECISE_ENOUGH:
            break
    return np.where(plain, rate, 1 / (1 + np.exp(-weights[:, 0])))
