"""The tables of a report: cells of text that HTML and Markdown render alike."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from data.rows import FinalTestRow
from pco.config.metrics import METRICS, TASK, Metric, Unit, metric
from pco.evaluation.gate import RuleResult, promise
from pco.evaluation.tested import of_rule
from pco.report import wording
from pco.report.cells import Cell, Column, Table, Tone
from pco.report.numbers import Funnel, RoundReport, RunReport
from pco.runs.final_test import times

_HEADLINES = ("repetition/greedy", "win_vs_start", "perplexity", "length")
_RELATIVE: frozenset[Unit] = frozenset({"tokens", "perplexity"})  # a change is shown as a share of what was before
_SAMPLED = "the same at the sampling temperature"
_EVEN = 0.5  # the share that wins are compared with


@dataclass(frozen=True)
class _Row:
    """A row of the table of metrics: `key` is a metric's name in a summary, with its mode where modes stand apart."""

    key: str
    label: str
    meaning: str
    metric: Metric


def _rows(report: RunReport) -> list[_Row]:
    rows = []
    tasks = [metric(f"{TASK}{name}") for name in report.config.evaluate.tasks]
    for about in (*METRICS, *tasks):
        if about is None or not (about.shown or about in tasks):
            continue
        if about.by_mode:
            rows.append(_Row(f"{about.key}/greedy", f"{about.label}, greedy", about.meaning, about))
            rows.append(_Row(f"{about.key}/sampled", f"{about.label}, sampled", _SAMPLED, about))
        else:
            rows.append(_Row(about.key, about.label, about.meaning, about))
    return rows


def metrics(report: RunReport, shown: Sequence[RoundReport] | None = None) -> Table:
    """A row per metric, a column per evaluated policy, each with its change against the start."""
    rounds = [round_report for round_report in shown or report.rounds if round_report.summary is not None]
    rows = [row for row in _rows(report) if any(row.key in (policy.summary or {}) for policy in rounds)]
    return Table(
        "Held-out prompts, which no training sees; used for decisions, as the gate chose the policies by them. Small "
        "print: change against the start "
        "(pp: percentage points; for wins: against 50 %).",
        [Column("Metric", number=False), *(_round_column(report, round_report) for round_report in rounds)],
        [[Cell(row.label, row.meaning), *(_value(row, policy, report.start) for policy in rounds)] for row in rows],
    )


def final_test(report: RunReport) -> Table:
    """The best policy against the starting one on the test prompts."""
    test = report.test
    if test is None:
        return Table("", [], [])
    gate = report.config.gate
    required, guarded = (
        {of_rule(name) for name, rule in rules.items() if rule is not None} for rules in (gate.require, gate.guards)
    )
    looked = f"looked at {times(test.looks)}"
    caption = (
        f"{wording.count(test.prompts)} test prompts, which decided nothing ({looked}): the policy of round "
        f"{test.round} against the starting one, with 95 % intervals over prompts. Human texts and tasks of lm-eval "
        "are measured on the held-out side alone."
    )
    notes = [f"{test.note}." if test.note else ""]
    if test.rows and not test.is_of_best:
        notes.append("This test is of a policy that is the best no longer.")
    return Table(
        " ".join(filter(None, [caption if test.rows else "", *notes])),
        [
            Column("Metric", number=False),
            Column("Gate", "whether the gate required or guarded it", number=False),
            Column("Start"),
            Column("Best"),
            Column("Difference"),
        ],
        [_tested_row(row, required, guarded) for row in test.rows],
    )


def _tested_row(row: FinalTestRow, required: Collection[str], guarded: Collection[str]) -> list[Cell]:
    about = metric(row["metric"])
    assert about is not None, "a test has metrics of the registry alone"
    roles = [name for name, metrics in (("required", required), ("guarded", guarded)) if about.key in metrics]
    is_clear = row["low"] is not None and row["high"] is not None and (row["low"] > 0 or row["high"] < 0)
    tone: Tone = ""
    if is_clear and about.direction:
        tone = "good" if about.direction * row["difference"] > 0 else "bad"
    return [
        Cell(about.label, about.meaning),
        Cell(", ".join(roles) or wording.ABSENT),
        Cell(_as_text(about.unit, row["start"])),
        Cell(_as_text(about.unit, row["best"])),
        Cell(wording.test_difference(row), tone=tone),
    ]


def headlines(report: RunReport) -> list[tuple[str, Cell]]:
    """The few metrics that stand at the top: from the starting policy to the one kept last."""
    start, subject = report.start, report.subject
    if subject is None or subject.summary is None or start.summary is None:
        return []
    rows = [row for row in _rows(report) if row.key in _HEADLINES and row.key in subject.summary]
    return [(row.label, _from_start(row, subject, start)) for row in rows]


def _from_start(row: _Row, subject: RoundReport, start: RoundReport) -> Cell:
    cell = _value(row, subject, start)
    before = _value(row, start, start).text
    return cell if before == wording.ABSENT else Cell(f"{before} → {cell.text}", cell.note, cell.tone)


def _round_column(report: RunReport, round_report: RoundReport) -> Column:
    if not round_report.number:
        return Column("Start", "the policy before any training")
    status = wording.status(report, round_report.number)
    label = f"Round {round_report.number}" + ("" if status == "promoted" else f" ({status})")
    return Column(label, f"this policy: {status}")


def _value(row: _Row, round_report: RoundReport, start: RoundReport) -> Cell:
    """A metric of one round's policy, and beside it by how much it differs from the start."""
    value = (round_report.summary or {}).get(row.key)
    if value is None:
        return Cell(wording.ABSENT)
    unit = row.metric.unit
    before = (start.summary or {}).get(row.key)
    if unit == "share" and row.metric.relative:
        before = _EVEN
    if not round_report.number or before is None:
        return Cell(_as_text(unit, value))
    change = _change(unit, value, before)
    sign = {"+": 1, "−": -1}.get(change[0], 0)  # what rounds to no change is neither good nor bad
    tone: dict[int, Tone] = {1: "good", -1: "bad", 0: ""}
    arrowed = change.replace("+", "▲ ").replace("−", "▼ ")
    interval = round_report.intervals.get(row.key)
    if row.key.startswith("lc_") and interval is not None:
        arrowed = f"{arrowed}, 95 % interval {wording.percent(interval.low)} to {wording.percent(interval.high)}"
    return Cell(_as_text(unit, value), arrowed, tone[sign * row.metric.direction])


def _as_text(unit: Unit, value: float) -> str:
    if unit == "share":
        return wording.percent(value)
    return wording.decimal(value, 1 if unit in _RELATIVE else 3)


def _change(unit: Unit, now: float, before: float) -> str:
    if unit == "share":
        return wording.points(now - before)
    return wording.relative(now, before) if unit in _RELATIVE else wording.signed(now - before)


def gate(report: RunReport, shown: Sequence[RoundReport] | None = None) -> Table:
    """Every rule of the gate in every decided round."""
    rows = []
    for round_report in shown or report.rounds:
        results = round_report.decision.results if round_report.decision else []
        rows += [_result_row(round_report.number, result) for result in results]
    return Table(
        "A round's policy is promoted when every rule passes. The previous policy is the best one before the round, "
        "the start the one that the run began with. Brackets hold intervals over prompts, of 95 % where a rule demands "
        f"none. {promise(report.config.gate, report.config.rounds)}".strip(),
        [
            Column("Round"),
            Column("Rule", number=False),
            Column("Value"),
            Column("Bound", "what the value must be", number=False),
            Column("Result", number=False),
            Column("Reason", number=False),
        ],
        rows,
    )


def _result_row(number: int, result: RuleResult) -> list[Cell]:
    return [
        Cell(str(number)),
        Cell(result.rule),
        Cell(f"{result.value:.4g}".replace("-", "−")),
        Cell(result.bound),
        Cell("✓ passed" if result.passed else "✗ failed", tone="good" if result.passed else "bad"),
        Cell(result.reason, note=f"in doubt: {result.doubt}" if result.doubt else ""),
    ]


def funnel(report: RunReport, shown: Sequence[RoundReport] | None = None) -> Table:
    """From training prompts to the pairs trained on, a row per round."""
    rounds = [(entry.number, entry.funnel) for entry in shown or report.rounds if entry.funnel is not None]
    return Table(
        "From training prompts to the pairs trained on. A prompt's best completion is paired against its worst, or as "
        "pair.strategy says. What is left out is counted by reason.",
        [
            Column("Round"),
            Column("Prompts", "training prompts of the run"),
            Column("Candidates", "sampled completions"),
            Column("Scored", "candidates with a finite reward"),
            Column("Pairs", "prompts that gave a pair, and their share of all"),
            Column("Trained on", "pairs, replayed ones included, that fit into train.max_pair_tokens"),
            Column("Dropped, by reason", number=False),
        ],
        [_funnel_row(number, funnel, report.train_prompts) for number, funnel in rounds],
    )


def _funnel_row(number: int, funnel: Funnel, train_prompts: int | None) -> list[Cell]:
    dropped = [f"{wording.count(count)} {unit}: {reason}" for (_, unit, reason), count in funnel.dropped.items()]
    share = wording.percent(funnel.pairs / funnel.prompts) if funnel.pairs is not None and funnel.prompts else ""
    return [
        Cell(str(number)),
        Cell(wording.count(train_prompts)),
        Cell(wording.count(funnel.candidates)),
        Cell(wording.count(funnel.scored)),
        Cell(wording.count(funnel.pairs), share),
        Cell(wording.count(funnel.trained)),
        Cell("; ".join(dropped) or "nothing"),
    ]


def pairs(report: RunReport, shown: Sequence[RoundReport] | None = None) -> Table:
    """Chosen against rejected, a row per round."""
    rounds = [(entry.number, entry.pairs) for entry in shown or report.rounds if entry.pairs is not None]
    return Table(
        "Means over a round's pairs. Chosen and rejected should differ in reward and not in length: "
        "training on a length gap teaches length.",
        [
            Column("Round"),
            Column("Chosen reward"),
            Column("Rejected reward"),
            Column("Margin", "chosen minus rejected reward"),
            Column("Chosen length (tokens)"),
            Column("Rejected length (tokens)"),
        ],
        [
            [
                Cell(str(number)),
                Cell(wording.decimal(statistics.chosen_reward)),
                Cell(wording.decimal(statistics.rejected_reward)),
                Cell(wording.decimal(statistics.chosen_reward - statistics.rejected_reward)),
                Cell(wording.decimal(statistics.chosen_length, 1)),
                Cell(wording.decimal(statistics.rejected_length, 1)),
            ]
            for number, statistics in rounds
        ],
    )
