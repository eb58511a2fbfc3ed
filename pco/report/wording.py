"""Numbers and sentences as people read them; every number of a report is written by a function of this module."""

import math
from datetime import UTC, datetime

from data.rows import FinalTestRow
from pco.config.metrics import metric
from pco.config.run import RunConfig
from pco.evaluation.rows import Summary
from pco.evaluation.tested import of_rule
from pco.report.numbers import FinalTest, RoundReport, RunReport
from pco.runs.final_test import times

ABSENT = "–"
USED = "held-out prompts, used for decisions"


def clipped(text: str, limit: int) -> str:
    """The beginning of a long text, and how much is left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def percent(share: float, digits: int = 1) -> str:
    """0.199 as `19.9 %`."""
    return f"{share * 100:.{digits}f} %".replace("-", "−")


def points(change: float) -> str:
    """A change of a share in percentage points."""
    return f"{signed(change * 100, 1)} pp"


def relative(now: float, before: float) -> str:
    """A change as a signed percentage of what it was before."""
    return f"{signed((now / before - 1) * 100, 0)} %" if before else ABSENT


def nats(value: float) -> str:
    """A small change of a log-probability, signed, with three digits that count."""
    return f"{value:+.3g} nats".replace("-", "−")


def decimal(value: float, digits: int = 3) -> str:
    """A plain number with a real minus sign; a dash for one that is not known."""
    if math.isnan(value):
        return ABSENT
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")  # + 0.0: no "−0.000"


def signed(value: float, digits: int = 3) -> str:
    """A change of a plain number: its sign is always shown."""
    text = f"{value:+,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        return f"±{text[1:]}"
    return text.replace("-", "−")


def count(number: int | None) -> str:
    """A number of things, or a dash for one not known yet."""
    return ABSENT if number is None else f"{number:,}"


def seconds(value: float) -> str:
    """Seconds with one decimal."""
    return f"{value:,.1f}"


def duration(value: float) -> str:
    """Seconds as `1 h 02 min`, `12 min 05 s` or `8.3 s`."""
    minutes, rest = divmod(round(value), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes_left:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{value:.1f} s"


def moment(epoch_s: float) -> str:
    """A time in UTC."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def headline(report: RunReport) -> str:
    """The result of the run, in plain words."""
    improvement = test_result(report.config, report.test) or _improvement(report)
    return f"{_outcome(report)}: {improvement}." if improvement else f"{_outcome(report)}."


def _outcome(report: RunReport) -> str:
    total, promoted, refused = report.config.rounds, len(report.promoted), report.refused
    if refused is not None:
        best = report.promoted[-1].number if promoted else 0
        kept = f"the policy of round {best} is kept" if best else "the starting policy is kept"
        return f"Round {refused.number} of {total} refused by the gate ({_faults(refused)}), {kept}"
    counted = f"{promoted} of {total} {'round' if total == 1 else 'rounds'} promoted"
    if report.unfinished is None:
        return counted
    unfinished = report.unfinished
    place = f"round {unfinished.round} has" if unfinished.round else "the start has"
    return f"Unfinished, {counted}; {place} yet to finish its {unfinished.name} stage"


def _improvement(report: RunReport) -> str:
    """How the policy at the top differs from the start; empty when there is none."""
    start, subject = report.start.summary, report.subject
    if subject is None or subject.summary is None or start is None:
        return ""
    changes = f"{_repetition(start, subject.summary)}, {_perplexity(start, subject.summary)} ({USED})"
    # A sentence about the policy that is kept need not say which policy it means.
    return changes if subject in report.promoted else f"in round {subject.number}'s policy {changes}"


def test_result(config: RunConfig, test: FinalTest | None) -> str:
    """The best policy against the start on the test prompts, by the metrics of the gate; empty without a test of it."""
    if test is None or not test.is_of_best:
        return ""
    gate = config.gate
    ruled = [of_rule(name) for rules in (gate.require, gate.guards) for name, rule in rules.items() if rule is not None]
    rows = {row["metric"]: row for row in test.rows}
    shown = [rows[name] for name in dict.fromkeys(ruled) if name in rows] or [rows["reward"]]
    differences = "; ".join(f"{row['metric']} {test_difference(row)}" for row in shown)
    where = f"on {count(test.prompts)} test prompts (looked at {times(test.looks)})"
    return f"{where}, round {test.round}'s policy less the start: {differences}"


def test_difference(row: FinalTestRow) -> str:
    """A difference between the best and the starting policy on the test prompts, and its interval."""
    about = metric(row["metric"])
    number = points if about is not None and about.unit == "share" else signed
    if row["low"] is None or row["high"] is None:
        return number(row["difference"])
    return f"{number(row['difference'])} (95 % interval {number(row['low'])} to {number(row['high'])})"


def _repetition(start: Summary, now: Summary) -> str:
    before, after = (percent(summary["repetition/greedy"]) for summary in (start, now))
    if before == after:
        return f"greedy repetition stayed at {after}"
    fell = now["repetition/greedy"] < start["repetition/greedy"]
    return f"greedy repetition {'fell' if fell else 'rose'} from {before} to {after}"


def _perplexity(start: Summary, now: Summary) -> str:
    change = now["perplexity"] / start["perplexity"] - 1
    if round(change * 100) == 0:
        return "perplexity stayed the same"
    return f"perplexity {'rose' if change > 0 else 'fell'} {percent(abs(change), 0)}"


def status(report: RunReport, number: int) -> str:
    """A round's state in a few words."""
    gate = report.rounds[number].decision
    if gate is not None:
        return "promoted" if gate.promoted else "refused"
    if any(stage.round == number and stage.status == "not run" for stage in report.stages):
        return "not run"
    return "unfinished" if number else "start"


def decision(report: RunReport, number: int) -> str:
    """The decision on a round as a sentence, with the reasons of the gate."""
    gate = report.rounds[number].decision
    if gate is None:
        return f"Round {number}: {status(report, number)}." if number else "The starting policy."
    if gate.promoted:
        return f"Round {number} promoted: every rule of the gate passed."
    return f"Round {number} refused: {_faults(report.rounds[number])}."


def _faults(refused: RoundReport) -> str:
    results = refused.decision.results if refused.decision else []
    return "; ".join(
        f"{result.rule} {result.value:.4g}, must be {result.bound}" for result in results if not result.passed
    )
