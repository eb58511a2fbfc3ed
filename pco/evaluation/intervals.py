"""How sure a difference between two policies is: all on differences per prompt, since both answer the same prompts."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from data.errors import BadInput

_RESAMPLES = 2000
_ROUNDING = 1e-9  # a spread of so small a share of the sample's is that of equal values
_RESAMPLED_AT_ONCE = 2**22  # numbers in memory at a time


def paired_interval(differences: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean of paired differences and its confidence interval: (mean, low, high).

    The studentized bootstrap (Efron and Tibshirani 1993, section 12.5) over prompts, which holds its level for the few
    dozen to few hundred skewed or three-valued differences of an evaluation better than percentiles do. Equal seeds
    give equal intervals. A single difference says nothing of its spread: (mean, -inf, inf). Equal ones: (mean, mean,
    mean).

    Raises BadInput for no differences, ones that are not finite numbers, or a level outside (0, 1).
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise BadInput(f"paired_interval: expected finite differences, at least one; found {differences!r:.200}.")
    if not 0 < level < 1:
        raise BadInput(f"paired_interval: level is {level}; expected a share between 0 and 1, such as 0.95.")
    mean = float(values.mean())
    if values.size == 1:
        return mean, -math.inf, math.inf
    if np.ptp(values) == 0:  # of which std() makes some 1e-17
        return mean, mean, mean
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    low, high = np.quantile(_studentized(values, seed), [(1 - level) / 2, (1 + level) / 2])
    return mean, mean - float(high) * error, mean - float(low) * error


def _studentized(values: "np.ndarray[tuple[int], np.dtype[np.float64]]", seed: int) -> "np.ndarray":
    """For each resample, how many of its own standard errors its mean lies from the sample's."""
    draw, size = np.random.default_rng(seed), values.size
    at_once = max(1, _RESAMPLED_AT_ONCE // size)
    found = []
    least = _ROUNDING * values.std(ddof=1) / math.sqrt(size)
    for start in range(0, _RESAMPLES, at_once):
        drawn = values[draw.integers(0, size, (min(at_once, _RESAMPLES - start), size))]
        errors = drawn.std(axis=1, ddof=1) / math.sqrt(size)
        # A resample of equal values has no spread to measure by but that of rounding, and is no evidence of a far mean.
        apart = drawn.mean(axis=1) - values.mean()
        found.append(np.divide(apart, errors, out=np.zeros_like(apart), where=errors > least))
    return np.concatenate(found)


def sign_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of the exact sign test: could as many be above zero by chance? Zeros are left out."""
    above, below = (sum(sign * difference > 0 for difference in differences) for sign in (1, -1))
    trials = above + below
    tail = sum(math.comb(trials, i) for i in range(min(above, below) + 1))
    return float(min(1.0, 2 * tail / 2**trials))


def detectable_difference(deviation: float, count: int, *, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest true mean difference that `count` pairs whose differences spread by `deviation` find with `power`.

    In the unit of the differences; by the normal approximation, two-sided.
    """
    normal = NormalDist()
    return (normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)) * deviation / math.sqrt(count)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979) for several tests: each value may then be held against the level as if it were alone."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    found, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        found[i] = least
    return found
