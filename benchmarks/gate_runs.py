"""How often does a whole run that brings nothing promote something, and how much of real gains does a run keep?

    python benchmarks/gate_runs.py [--runs 4000] [--rounds 4 8] [--prompts 64 200] [--error-rate 0.05] [--seed 0]

Simulates whole runs under `roll_back`: each round's policy is held against the best so far, on the same prompts, whose
completions by the starting policy all rounds share until one is promoted. `benchmarks/gate_level.py` asks the same of a
single round. Rules:

- per round: Student's t at the default confidence, as without `gate.error_rate`.
- equal: the error rate is shared equally by the planned rounds (Bonferroni).
- handed on: as `gate.error_rate` does it: each round has an equal share of what is left, of which refused rounds have
  taken theirs; so a promoted round hands its share on to those after it.
- one kept: the same, with a share kept for a round that may be added.
- 1/k(k+1): a share for round k that needs no plan; promoted rounds hand theirs on.
- e mean: e-values of the differences' signs, whose mean over the planned rounds is held against 1 / error rate. Valid
  however rounds depend on each other.
- e product: their product, an e-process where rounds are independent of each other. They are not: all share the start.
- e bets: as `e mean`, with bets on bounded differences (Waudby-Smith and Ramdas 2024) where they are bounded.

Prints, in percent: of runs whose policies all equal the start, how many promote something; of runs whose every round is
better by a gain that the default gate finds in about 70 % of the rounds, how many rounds are promoted; and of runs in
which only the last round brings that gain, how many promote it.

Predictions, written before the first run:
1. Per round: 10 to 14 % of 4 rounds and 18 to 24 % of 8 promote something.
2. Equal, handed on and one kept hold 5 %, and stay at 3 to 4.5 % because rounds share the start.
3. Handed on finds more than equal where every round brings something; both find the same where only the last one does.
4. The mean of e-values holds it, and finds fewer than equal everywhere, by 10 points or more.
5. The product of e-values breaks its level.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

Vector = np.ndarray  # a number per run
Matrix = np.ndarray  # a row per run, a column per prompt
Draw = Callable[[np.random.Generator, Vector, int], Matrix]  # scores of policies of these qualities

TILTS = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5])  # effects, in standard errors, that an e-value looks for
BETS = np.array([0.02, 0.05, 0.1, 0.2, 0.35, 0.5])  # shares of its wealth that a bet stakes
COMPLETIONS = 3
ROUNDING = 1e-9
DEFAULT_SHARE = 0.05  # of a round, at 90 % confidence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000, help="simulated runs of each cell")
    parser.add_argument("--rounds", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--prompts", type=int, nargs="+", default=[64, 200])
    parser.add_argument("--error-rate", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        "Nothing: runs that promote something | every round better: rounds promoted | only the last: runs that see it"
    )
    print(f"{'scores':<20}{'prompts':>8}{'rounds':>7}  " + "".join(f"{name:>22}" for name in RULES))
    for name, family in FAMILIES.items():
        for prompts in arguments.prompts:
            draw, gain = family(prompts)
            for rounds in arguments.rounds:
                row = []
                for rule in RULES.values():
                    generator = np.random.default_rng([arguments.seed, prompts, rounds])
                    plan = Plan(rule, draw, prompts, rounds, arguments.runs, arguments.error_rate)
                    nothing = plan.promoted(generator, np.zeros(rounds)).any(axis=1).mean()
                    every = plan.promoted(generator, np.full(rounds, gain)).mean()
                    last = plan.promoted(generator, np.append(np.zeros(rounds - 1), gain))[:, -1].mean()
                    row.append(f"{100 * nothing:.1f} |{100 * every:5.1f} |{100 * last:5.1f}")
                print(f"{name:<20}{prompts:>8}{rounds:>7}  " + "".join(f"{cell:>22}" for cell in row), flush=True)


@dataclass
class Ledger:
    """What a rule remembers of each run: the error that is left, and its e-values."""

    rounds: int
    error_rate: float
    left: Vector
    share: Vector
    evidence: Vector
    bets: dict[str, Vector] = field(default_factory=dict)


Rule = Callable[[Ledger, int, Matrix], Vector]  # which runs promote this round


@dataclass(frozen=True)
class Plan:
    """Runs under one rule."""

    rule: Rule
    draw: Draw
    prompts: int
    rounds: int
    runs: int
    error_rate: float

    def promoted(self, generator: np.random.Generator, gains: Vector) -> Matrix:
        """Which rounds of which runs are promoted; each round's policy is better than the best by its gain."""
        ledger = Ledger(
            self.rounds, self.error_rate, np.full(self.runs, self.error_rate), np.zeros(self.runs), np.zeros(self.runs)
        )
        quality = np.zeros(self.runs)
        best = self.draw(generator, quality, self.prompts)
        result = np.zeros((self.runs, self.rounds), dtype=bool)
        for number in range(self.rounds):
            new = self.draw(generator, quality + gains[number], self.prompts)
            yes = self.rule(ledger, number, new - best)
            result[:, number] = yes
            quality = np.where(yes, quality + gains[number], quality)
            best = np.where(yes[:, None], new, best)
        return result


def normal(prompts: int) -> tuple[Draw, float]:
    def draw(generator: np.random.Generator, quality: Vector, n: int) -> Matrix:
        return quality[:, None] + generator.normal(0, 1, (len(quality), n))

    return draw, 2.2 * np.sqrt(2 / prompts)


def repetition(prompts: int) -> tuple[Draw, float]:
    """Three completions a prompt; each repeats itself with a probability, and then by a share of its tokens."""

    def draw(generator: np.random.Generator, quality: Vector, n: int) -> Matrix:
        repeats = np.clip(0.6 - quality, 0, 1)[:, None, None]
        shape = (len(quality), n, COMPLETIONS)
        return -((generator.random(shape) < repeats) * generator.beta(2, 5, shape)).mean(axis=2)

    return draw, 1.75 / np.sqrt(prompts * COMPLETIONS)


def passing(prompts: int) -> tuple[Draw, float]:
    """Three completions a prompt, of which half pass at first."""

    def draw(generator: np.random.Generator, quality: Vector, n: int) -> Matrix:
        rate = np.clip(0.5 + quality, 0, 1)[:, None]
        return generator.binomial(COMPLETIONS, rate, (len(quality), n)) / COMPLETIONS

    return draw, 1.55 / np.sqrt(prompts * COMPLETIONS)


FAMILIES = {"normal": normal, "repetition of 60 %": repetition, "pass rate 50 %": passing}


# Rules.


def t_above(differences: Matrix, share: Vector | float) -> Vector:
    n = differences.shape[1]
    error = differences.std(axis=1, ddof=1) / np.sqrt(n)
    return differences.mean(axis=1) > stats.t.isf(share, n - 1) * error + ROUNDING


def per_round(_: Ledger, number: int, differences: Matrix) -> Vector:
    return t_above(differences, DEFAULT_SHARE)


def equal(ledger: Ledger, number: int, differences: Matrix) -> Vector:
    return t_above(differences, ledger.error_rate / ledger.rounds)


def handed_on(ledger: Ledger, number: int, differences: Matrix) -> Vector:
    return _spend(ledger, ledger.left / (ledger.rounds - number), differences)


def one_kept(ledger: Ledger, number: int, differences: Matrix) -> Vector:
    return _spend(ledger, ledger.left / (ledger.rounds - number + 1), differences)


def harmonic(ledger: Ledger, number: int, differences: Matrix) -> Vector:
    """Round k has 1/k - 1/(k + 1) of the error rate, and what was handed on."""
    ledger.share = ledger.share + ledger.error_rate / ((number + 1) * (number + 2))
    yes = t_above(differences, ledger.share)
    ledger.share = np.where(yes, ledger.share, 0.0)
    return yes


def _spend(ledger: Ledger, share: Vector, differences: Matrix) -> Vector:
    yes = t_above(differences, share)
    ledger.left = np.where(yes, ledger.left, ledger.left - share)
    return yes


def of_signs(differences: Matrix) -> Vector:
    """An e-value of the hypothesis that each difference is as likely above 0 as below, whatever its size.

    The mean over tilts of prod exp(tilt x) / cosh(tilt x), the tilts in units of 1 / sqrt(sum of squares).
    """
    unit = np.sqrt((differences**2).sum(axis=1, keepdims=True)) + ROUNDING
    scaled = differences / unit
    logs = []
    for tilt in TILTS:
        logs.append((tilt * scaled - np.log(np.cosh(tilt * scaled))).sum(axis=1))
    return np.exp(logs).mean(axis=0)


def of_bets(differences: Matrix) -> Vector:
    """An e-value of a mean of at most 0 of differences between -1 and 1."""
    bounded = np.clip(differences, -1, 1)  # changes nothing where they are bounded
    return np.exp([np.log1p(bet * bounded).sum(axis=1) for bet in BETS]).mean(axis=0)


def mean_of(e_value: Callable[[Matrix], Vector]) -> Rule:
    """What earlier rounds have shown counts until one is promoted."""

    def rule(ledger: Ledger, number: int, differences: Matrix) -> Vector:
        ledger.evidence = ledger.evidence + e_value(differences) / ledger.rounds
        yes = ledger.evidence >= 1 / ledger.error_rate
        ledger.evidence = np.where(yes, 0.0, ledger.evidence)
        return yes

    return rule


def e_product(ledger: Ledger, number: int, differences: Matrix) -> Vector:
    ledger.evidence = np.where(number == 0, 1.0, np.where(ledger.evidence == 0, 1.0, ledger.evidence))
    ledger.evidence = ledger.evidence * of_signs(differences)
    yes = ledger.evidence >= 1 / ledger.error_rate
    ledger.evidence = np.where(yes, 1.0, ledger.evidence)
    return yes


RULES: dict[str, Rule] = {
    "per round": per_round,
    "equal": equal,
    "handed on": handed_on,
    "one kept": one_kept,
    "1/k(k+1)": harmonic,
    "e mean": mean_of(of_signs),
    "e product": e_product,
    "e bets": mean_of(of_bets),
}

if __name__ == "__main__":
    main()
