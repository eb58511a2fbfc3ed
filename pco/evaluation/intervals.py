"""Intervals and tests of the difference of two policies: all on differences per prompt, since both answer the same."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from data.errors import BadInput

_ROUNDING = 1e-9  # differences closer than this share of their range are equal
_FEWEST_CHANGES = 3  # two prompts with a change, both for the better, are chance one time in four
_FEWEST_JUDGED = 4  # a slope takes two degrees of freedom
_SMALLEST_SHARE = 0.1  # of a residual that leverage may leave


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
    return mean, *_with_common(values, mean - margin, mean + margin)


def prediction_powered_interval(
    judged: Sequence[float], cheap: Sequence[float], cheap_rest: Sequence[float], *, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of a costly measure that is known of some prompts, with the help of a cheap one that is known of all.

    `judged` are paired differences by the costly measure, `cheap` those of the same prompts by the cheap one, in the
    same order, and `cheap_rest` those of all other prompts. The judged prompts must be a random draw. The cheap measure
    may have any unit and any bias: it narrows the interval as far as it goes with the costly one, and does not bias its
    mean. Returns (mean, low, high).

    Prediction-powered inference (Angelopoulos et al., arXiv 2301.09633) with the power-tuned lambda of PPI++ (arXiv
    2311.01453), which is not clipped, since the units differ:

        mean = mean(judged) + lambda (mean(cheap_rest) - mean(cheap)),
        lambda = cov(judged, cheap) / var(cheap) * N / (n + N)     for n judged prompts and N others.

    For small samples the variance is that of the regression estimator (Cochran 1977, section 12.3), in which lambda is
    itself estimated: the residuals' has n - 2 degrees of freedom, grows with the distance of the means, and has each
    residual scaled by its leverage (HC3, MacKinnon and White 1985). The quantile is Student's by Satterthwaite's
    degrees of freedom. Where fewer than four prompts are judged, or the cheap measure does not differ, it is
    `paired_interval(judged)`, as it is where there are no others. Where `paired_interval` would cover the common
    value of rare changes, so does this.

    Raises BadInput as `paired_interval` does, or for a `cheap` of another length than `judged`.
    """
    from scipy.special import stdtrit  # heavy to import

    mean, low, high = paired_interval(judged, level=level)
    known, near, rest = (np.asarray(values, dtype=np.float64) for values in (judged, cheap, cheap_rest))
    if near.shape != known.shape or not (np.isfinite(near).all() and np.isfinite(rest).all()):
        raise BadInput(
            f"prediction_powered_interval: expected a finite cheap difference for each of {known.size} judged ones and "
            f"for the rest; found {near.size}."
        )
    apart = near - near.mean()
    squares = float(apart @ apart)
    if known.size < _FEWEST_JUDGED or rest.size < 2 or squares <= _ROUNDING * float(near @ near) or np.ptp(known) == 0:
        return mean, low, high
    slope = float(apart @ known) / squares
    weight = slope * rest.size / (known.size + rest.size)
    shift = float(rest.mean() - near.mean())
    estimate = mean + weight * shift
    # Each residual has its part in the estimate, both by the mean and by the slope.
    leverage = 1 / known.size + apart**2 / squares
    residuals = (known - mean - slope * apart) / np.maximum(1 - leverage, _SMALLEST_SHARE)
    parts = (1 / known.size + apart * shift * rest.size / (known.size + rest.size) / squares) * residuals
    # What the slope does not remove of the judged prompts, and the sampling of all prompts by the cheap measure.
    of_residuals = float(parts @ parts)
    of_cheap = slope**2 * float(np.var(np.concatenate([near, rest]), ddof=1)) / (known.size + rest.size)
    variance = of_residuals + of_cheap
    freedom = variance**2 / (of_residuals**2 / (known.size - 2) + of_cheap**2 / (known.size + rest.size - 1))
    margin = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(variance)
    return estimate, *_with_common(known, estimate - margin, estimate + margin)


def _with_common(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """An interval that also covers the common value of more than half of the values, if fewer than three differ."""
    common = float(np.median(values))  # the value of more than half of them, if there is one
    changes = int(np.count_nonzero(np.abs(values - common) > _ROUNDING * float(np.ptp(values))))
    if changes < values.size / 2 and changes < _FEWEST_CHANGES:
        return min(low, common), max(high, common)
    return low, high


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


def prompts_to_decide(
    excess: Sequence[float], *, level: float, interval: tuple[float, float, float] | None = None
) -> int | None:
    """How many prompts would put the whole interval above 0 if mean and spread stayed what they are.

    `excess` are paired differences by how much each lies above a bound. None where no number would: the mean is not
    above 0, or there is a single difference, which tells no spread. `interval` is the one that is used where it is not
    `paired_interval`, such as a prediction-powered one: (mean, low, high), which shrinks alike.

    Raises BadInput as `paired_interval` does.
    """
    from scipy.special import stdtrit  # heavy to import

    mean, low, high = interval or paired_interval(excess, level=level)
    count = len(excess)
    if not mean > 0 or count < 2:
        return None
    spread = float(np.std(excess, ddof=1))
    if interval is not None:  # as wide as one of Student's with this spread
        spread = (high - low) / 2 * math.sqrt(count) / float(stdtrit(count - 1, (1 + level) / 2))

    def decides(prompts: int) -> bool:
        return mean > float(stdtrit(prompts - 1, (1 + level) / 2)) * spread / math.sqrt(prompts)

    while not decides(count):
        count *= 2
    least = 2
    while least < count:  # the margin shrinks with every prompt
        middle = (least + count) // 2
        least, count = (least, middle) if decides(middle) else (middle + 1, count)
    return count


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
