"""Intervals and tests of the difference of two policies: all on differences per prompt, since both answer the same."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from data.errors import BadInput

_ROUNDING = 1e-9  # differences closer than this share of their range are equal
_FEWEST_CHANGES = 3  # two prompts with a change, both for the better, are chance one time in four


def paired_interval(differences: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """Mean of paired differences and its confidence interval: (mean, low, high).

    Student's t over prompts (Student 1908), wider where it would be too sure: when more than half of the differences
    are equal, as the zeros of a reward that rarely changes, and fewer than three differ from them, the interval also
    covers their common value. `benchmarks/gate_level.py` measures its level and power. A single difference says nothing
    of their spread: (mean, -inf, inf). Equal ones: (mean, mean, mean). `seed` changes nothing; it is kept for callers
    of the interval that was resampled.

    Raises BadInput for no differences, ones that are not finite numbers, or a level outside (0, 1).
    """
    from scipy.special import stdtrit  # heavy to import

    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise BadInput(f"paired_interval: expected finite differences, at least one; found {differences!r:.200}.")
    if not 0 < level < 1:
        raise BadInput(f"paired_interval: level is {level}; expected a share between 0 and 1, such as 0.95.")
    mean, spread = float(values.mean()), float(np.ptp(values))
    if values.size == 1:
        return mean, -math.inf, math.inf
    if spread == 0:  # of which std() makes some 1e-17
        return mean, mean, mean
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    margin = float(stdtrit(values.size - 1, (1 + level) / 2)) * error
    low, high = mean - margin, mean + margin
    common = float(np.median(values))  # the value of more than half of them, if there is one
    changes = int(np.count_nonzero(np.abs(values - common) > _ROUNDING * spread))
    if changes < values.size / 2 and changes < _FEWEST_CHANGES:
        low, high = min(low, common), max(high, common)
    return mean, low, high


def wilson_interval(mean: float, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927): (low, high), within 0 and 1 also where all or none of `count` succeeded.

    Also of the mean of values between 0 and 1, such as ties that count half: these vary at most as much as ones and
    zeros of the same mean, so that the interval is rather too wide.

    Raises BadInput for a mean outside of 0 and 1, or no values.
    """
    if not 0 <= mean <= 1 or count < 1:
        raise BadInput(
            f"wilson_interval: expected a mean between 0 and 1 of at least one value; found {mean}, {count}."
        )
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (mean + z * z / (2 * count)) / (1 + z * z / count)
    margin = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(0.0, min(middle - margin, mean)), min(1.0, max(middle + margin, mean))


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
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
