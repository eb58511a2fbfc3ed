"""Stage `decide`: the gate. A round is promoted when every rule passes; the table says why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data import schemas, store
from pco import evaluate, measures
from pco.config import Gate
from pco.measures import Summary
from pco.stage import Stage
from pco.statistics import paired_interval

_LEVEL = 0.95  # of the interval that is told where the gate demands none


@dataclass(frozen=True)
class Ruling:
    """One rule of the gate applied to one round."""

    rule: str
    value: float
    bound: str
    passed: bool
    reason: str


def run(stage: Stage) -> store.Manifest:
    """Write the `decisions` table, a row per rule; `outputs["promoted"]` is `yes` or `no`."""
    started = stage.launched()
    new, previous, start = (evaluate.read(stage.inputs[name].folder) for name in ("evaluation", "previous", "start"))
    rulings = judge(
        measures.summarise(new),
        measures.summarise(previous),
        measures.summarise(start),
        stage.config.gate,
        gains=measures.gains(new, previous),
    )
    promoted = all(ruling.passed for ruling in rulings)
    rows = [{"round": stage.round, **vars(ruling), "promoted": promoted} for ruling in rulings]
    store.write_part(stage.folder, "decisions", 0, schemas.build("decisions", rows), stage.fingerprint)
    return stage.finish(
        unit="rules",
        rows_in=len(rows),
        rows_out=len(rows),
        dropped={},
        started=started,
        outputs={"promoted": "yes" if promoted else "no", "reason": explain(stage.round, rulings)},
    )


def judge(new: Summary, previous: Summary, start: Summary, gate: Gate, *, gains: Sequence[float] = ()) -> list[Ruling]:
    """Apply every rule of the gate to the summaries of the new, the previous and the starting policy.

    `gains` are the reward gains over the previous policy, one per prompt: they say how sure the mean gain is.
    """
    gain = new["reward"] - previous["reward"]
    level = gate.confidence or _LEVEL
    low, high = paired_interval(gains, level=level)[1:] if gains else (-math.inf, math.inf)
    interval = f", {level:.0%} interval {low:+.4f} to {high:+.4f}" if gains else ""
    perplexity = new["perplexity"] / start["perplexity"]
    length = new["length"] / start["length"] if start["length"] else math.inf
    return [
        Ruling(
            "reward gain",
            gain,
            f"> {gate.min_reward_gain:g}" + (f" with {level:.0%} confidence" if gate.confidence else ""),
            (low if gate.confidence else gain) > gate.min_reward_gain,
            f"held-out reward {previous['reward']:.4f} -> {new['reward']:.4f} ({gain:+.4f}{interval})",
        ),
        Ruling(
            "perplexity ratio",
            perplexity,
            f"<= {gate.max_perplexity_ratio:g}",
            perplexity <= gate.max_perplexity_ratio,
            f"perplexity on human text {start['perplexity']:.1f} -> {new['perplexity']:.1f} ({perplexity - 1:+.0%})",
        ),
        Ruling(
            "length ratio",
            length,
            f"{gate.min_length_ratio:g} to {gate.max_length_ratio:g}",
            gate.min_length_ratio <= length <= gate.max_length_ratio,
            f"mean length {start['length']:.1f} -> {new['length']:.1f} tokens ({length - 1:+.0%})",
        ),
    ]


def explain(number: int, rulings: list[Ruling]) -> str:
    """The verdict as a sentence, with every number that led to it."""
    failed = [ruling for ruling in rulings if not ruling.passed]
    told = "; ".join(f"{ruling.reason}, must be {ruling.bound}" for ruling in failed)
    if failed:
        return f"round {number} refused: {told}"
    return f"round {number} promoted: " + "; ".join(ruling.reason for ruling in rulings)
