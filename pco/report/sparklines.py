"""Curves as characters, for pages that show no pictures: Prefect's (3.7.7, /v2) drop `data:` addresses and HTML."""

import math
from collections.abc import Sequence
from statistics import fmean

_BARS = "▁▂▃▄▅▆▇█"
_MISSING = " "
WIDTH = 40  # characters


def sparkline(values: Sequence[float | None], *, width: int = WIDTH) -> str:
    """A character for each value, its height between those of the lowest and the highest; all are low if all are equal.

    More than `width` values are taken together, as means of runs of equal length. What is None or not finite leaves a
    gap.
    """
    means = [_mean(values[begin:end]) for begin, end in _runs(len(values), width)]
    known = [mean for mean in means if mean is not None]
    if not known:
        return _MISSING * len(means)
    low, high = min(known), max(known)
    steps = (high - low) / (len(_BARS) - 1) or 1.0
    return "".join(_MISSING if mean is None else _BARS[round((mean - low) / steps)] for mean in means)


def _runs(count: int, width: int) -> list[tuple[int, int]]:
    shown = min(count, width)
    return [(i * count // shown, (i + 1) * count // shown) for i in range(shown)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None
