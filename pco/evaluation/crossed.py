"""Differences of two methods over prompts and seeds: each seed trains anew, and all answer the same prompts."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from data.errors import BadInput
from pco.evaluation.intervals import paired_interval


def crossed_interval(differences: Sequence[Mapping[str, float]], *, level: float = 0.95) -> tuple[float, float, float]:
    """Mean difference over prompts and seeds, and its interval for new prompts and new seeds: (mean, low, high).

    Args:
        differences: For each seed, the difference of each prompt by the prompt's id. Prompts that a seed lacks are left
            out of all.
        level: Confidence level.

    Prompts and seeds are crossed random effects. By the mean squares MS of a two-way layout of S seeds and P prompts,
    the squared half-width is (t_prompts^2 MS_prompts + t_seeds^2 max(0, MS_seeds - MS_rest)) / (S P): each component of
    the mean's variance has Student's t of its own degrees of freedom (Howe 1974). It is never narrower than
    `paired_interval` over the prompts' means, and with one seed it is that one, and says nothing of other seeds. Where
    seeds have prompts of their own, the seeds' means count. `benchmarks/study_level.py` measures its level and power.

    Raises BadInput for no seed, a seed without differences, or ones that are not finite.

    """
    if not differences or not all(differences):
        raise BadInput("crossed_interval: expected differences of at least one prompt for each seed.")
    shared = sorted(set.intersection(*map(set, differences)))
    if len(differences) == 1:
        return paired_interval(list(differences[0].values()), level=level)
    if len(shared) < 2:
        return paired_interval([float(np.mean(list(of_seed.values()))) for of_seed in differences], level=level)
    values = np.array([[of_seed[prompt] for prompt in shared] for of_seed in differences], dtype=np.float64)
    mean, low, high = paired_interval(list(values.mean(axis=0)), level=level)
    margin = _margin(values, level)
    return mean, min(low, mean - margin), max(high, mean + margin)


def _margin(values: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", level: float) -> float:
    """Half of the interval over both; `values` has a row per seed and a column per prompt."""
    from scipy.special import stdtrit  # heavy to import

    seeds, prompts = values.shape
    mean = values.mean()
    of_prompts, of_seeds = values.mean(axis=0) - mean, values.mean(axis=1) - mean
    rest = values - mean - of_prompts[None, :] - of_seeds[:, None]
    of_prompt = seeds * float((of_prompts**2).sum()) / (prompts - 1)
    of_seed = prompts * float((of_seeds**2).sum()) / (seeds - 1)
    of_rest = float((rest**2).sum()) / ((prompts - 1) * (seeds - 1))
    t_prompts, t_seeds = (float(stdtrit(count - 1, (1 + level) / 2)) for count in (prompts, seeds))
    return math.sqrt((t_prompts**2 * of_prompt + t_seeds**2 * max(0.0, of_seed - of_rest)) / values.size)
