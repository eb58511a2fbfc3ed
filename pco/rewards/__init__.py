"""Rewards: candidates in, one score each out; higher is better (docs/rewards.md).

A reward is a function of a batch of candidate rows, so that a learned reward can choose its own batches. Its digest
names it in every row that it scores.
"""

from pco.rewards.judging import check_unchanged, inputs, score_rows
from pco.rewards.llm_judge import metrics
from pco.rewards.loading import asks_a_judge, check, digest, load, reads_prompts
from pco.rewards.scores import NOT_FINITE, Candidate, Candidates, Reward, Score

__all__ = [
    "NOT_FINITE",
    "Candidate",
    "Candidates",
    "Reward",
    "Score",
    "asks_a_judge",
    "check",
    "check_unchanged",
    "digest",
    "inputs",
    "load",
    "metrics",
    "reads_prompts",
    "score_rows",
]
