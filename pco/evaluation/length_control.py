"""What a win rate would be if both sides' completions were equally long."""

import math
from collections.abc import Sequence

import numpy as np

_STEPS = 1000
_SMALLEST_STEP = 1e-9


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
    """Intercept and slope of greatest posterior probability.

    Newton's steps with an upper bound in place of the curvature, which never overshoot (Boehning and Lindsay 1988).
    """
    prior = np.array([0.0, 1.0])
    bound = inputs.T @ inputs / 4 + np.diag(prior)
    weights = np.zeros(2)
    for _ in range(_STEPS):
        predicted = 1 / (1 + np.exp(-inputs @ weights))
        step = np.linalg.solve(bound, inputs.T @ (won - predicted) - prior * weights)
        weights += step
        if np.abs(step).max() < _SMALLEST_STEP:
            break
    return weights
