"""Which of a prompt's scored candidates become preference pairs: pure functions of rewards, lengths and texts."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product

from pco.config.run import Pair


@dataclass(frozen=True)
class Scored:
    """One candidate of a prompt: its row in the shard, its reward, its length in tokens, and its text."""

    row: int
    reward: float
    tokens: int
    text: str


Chosen = tuple[Scored, Scored]  # (chosen, rejected)


@dataclass(frozen=True)
class Skipped:
    """A prompt that gives no pair, and why."""

    reason: str


def pairs_with(reference: Scored | None, candidates: Sequence[Scored], config: Pair) -> list[Chosen] | Skipped:
    """The prompt's reference against its candidates, the lowest reward first, or the reason why there is no pair.

    Among equal rewards the earlier sample is taken. A candidate with the same words as the reference is left out.
    """
    if reference is None:
        return Skipped("no reference")
    others = [candidate for candidate in candidates if candidate.text.split() != reference.text.split()]
    if not others:
        return Skipped("no scored candidate but the reference")
    worst_first = sorted(others, key=lambda candidate: candidate.reward)
    allowed = [(reference, candidate) for candidate in worst_first if not _fault(reference, candidate, config)]
    return allowed[: config.max_pairs] or Skipped(_fault(reference, worst_first[0], config))


def pairs_of(candidates: Sequence[Scored], config: Pair, *, seed: int) -> list[Chosen] | Skipped:
    """The pairs of one prompt in order of preference, or the reason why there is none.

    Equal rewards never become a pair: they express no preference. Among equal rewards the earlier sample is taken. A
    candidate is in one pair only, except the best one of `best_random`, which is in all.
    """
    if len(candidates) < 2:
        return Skipped("fewer than two scored candidates")
    ranked = sorted(candidates, key=lambda candidate: -candidate.reward)  # stable: among equals the earlier first
    if ranked[0].reward == ranked[-1].reward:
        return Skipped("all candidates tie")
    allowed = (pair for pair in _preferred(ranked, config, random.Random(seed)) if not _fault(*pair, config))
    limit = 1 if config.strategy == "best_worst" else config.max_pairs
    pairs = list(islice(allowed, limit))
    return pairs or Skipped(_fault(*_widest(ranked), config) or "no two candidates fit the limits")


def _preferred(ranked: list[Scored], config: Pair, draw: random.Random) -> Iterator[Chosen]:
    """The pairs of a strategy in order of preference."""
    worst_first = sorted(ranked, key=lambda candidate: candidate.reward)
    match config.strategy:
        case "best_worst":
            yield _widest(ranked)
            # If its lengths or its similarity break a limit, the next widest is taken.
            pairs = [pair for pair in product(ranked, worst_first) if pair[0].reward > pair[1].reward]
            yield from sorted(pairs, key=lambda pair: pair[1].reward - pair[0].reward)
        case "best_random":
            yield from ((ranked[0], other) for other in draw.sample(ranked, len(ranked)))
        case "halves":
            half = len(ranked) // 2
            yield from zip(ranked[:half], worst_first[:half], strict=True)


def _widest(ranked: list[Scored]) -> Chosen:
    return ranked[0], min(ranked, key=lambda candidate: candidate.reward)


def _fault(chosen: Scored, rejected: Scored, config: Pair) -> str:
    """Why two candidates may not be a pair; empty if they may."""
    margin = chosen.reward - rejected.reward
    if margin <= 0:
        return "all candidates tie"
    if margin < config.min_margin:
        return "margin below min_margin"
    if config.max_length_ratio is not None:
        shorter, longer = sorted((chosen.tokens, rejected.tokens))
        if longer > config.max_length_ratio * shorter:
            return "lengths differ more than max_length_ratio"
    if config.max_similarity < 1 and similarity(chosen.text, rejected.text) > config.max_similarity:
        return "more alike than max_similarity"
    return ""


def similarity(first: str, second: str) -> float:
    """Share of word 3-grams that two texts have in common (Jaccard index, 0 to 1); shorter texts count as one gram."""
    grams, others = _grams(first), _grams(second)
    return len(grams & others) / len(grams | others)


def _grams(text: str, n: int = 3) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}
