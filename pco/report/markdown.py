"""The report's numbers as Markdown, for Prefect's artifacts. Text of models is data here and never markup."""

import re
import string

from data.visible import visible
from pco.report import run_tables, tables, wording
from pco.report.cells import Cell, Column, Table
from pco.report.numbers import RoundReport, RunReport, SamplePair
from pco.report.sparklines import sparkline

_TEXT_LIMIT = 400  # characters of a prompt or completion in a table cell
# No dialect of Markdown gives these a meaning; every other punctuation mark is escaped.
_HARMLESS = frozenset(" ,.;'()?%/+-")
# Backslashes, not entities: Prefect's pages show entities as they are written.
_ESCAPES = {ord(mark): f"\\{mark}" for mark in string.punctuation if mark not in _HARMLESS}


def escape(text: str) -> str:
    """Text for a table cell: one line, nothing in it markup, neither Markdown nor HTML."""
    return re.sub(r"\s+", " ", visible(text)).strip().translate(_ESCAPES)


def table(content: Table) -> str:
    """A Markdown table under its caption; only the caption if it has no rows."""
    if not content.rows:
        return f"{escape(content.caption)}\n\nNothing yet."
    heading = [escape(column.label) for column in content.columns]
    rule = ["---:" if column.number else "---" for column in content.columns]
    rows = [[_cell(cell) for cell in row] for row in content.rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (heading, rule, *rows)]
    return f"{escape(content.caption)}\n\n" + "\n".join(lines)


def _cell(cell: Cell) -> str:
    return escape(f"{cell.text} ({cell.note})" if cell.note else cell.text)


def run(report: RunReport) -> str:
    """The whole run: its result, metrics, gate, pairs, time, and what is missing."""
    sections = {
        "Test": tables.final_test(report),
        "Metrics": tables.metrics(report),
        "Gate": tables.gate(report),
        "Pairs": tables.funnel(report),
        "Chosen and rejected": tables.pairs(report),
        "Held-out completions, start and now": _changes(report),
        "Time": run_tables.time_split(report),
        "Missing": run_tables.missing(report),
    }
    written = [f"## {name}\n\n{table(content)}" for name, content in sections.items() if content.rows]
    if report.test is not None and report.test.note:
        written.insert(0, f"{escape(report.test.note)}.")
    return "\n\n".join([f"# Run {report.config.run}", wording.headline(report), *written]) + "\n"


def one_round(report: RunReport, number: int) -> str:
    """One round beside the starting policy and the previous one, with sample pairs."""
    round_report = report.rounds[number]
    beside = [report.rounds[i] for i in sorted({0, max(0, number - 1), number})]
    sections = {
        "Metrics": tables.metrics(report, beside),
        "Curves": _curves(report, round_report),
        "Gate": tables.gate(report, [round_report]),
        "Pairs": tables.funnel(report, [round_report]),
        "Chosen and rejected": tables.pairs(report, [round_report]),
        "Sample pairs": _samples(round_report),
        "Time": run_tables.stage_times(report, number),
    }
    written = [f"## {name}\n\n{table(content)}" for name, content in sections.items() if content.rows]
    title = f"# Run {report.config.run}, {round_report.name}"
    return "\n\n".join([title, wording.decision(report, number), *written]) + "\n"


def _curves(report: RunReport, round_report: RoundReport) -> Table:
    """What the report draws, as far as this round: its training, and metrics over the rounds."""
    so_far = [policy for policy in report.evaluated if policy.number <= round_report.number]
    steps, rounds = "steps of the training", "policies, the start first"
    curves = [(name, steps, [step.get(name) for step in round_report.train_log]) for name in ("loss", "margin", "gate")]
    for name in ("reward/greedy", "repetition/greedy", "perplexity"):
        curves.append((name.replace("/", ", "), rounds, [policy.value(name) for policy in so_far]))
    rows = []
    for name, unit, values in curves:
        known = [value for value in values if value is not None]
        if len(known) > 1:
            ends = [Cell(wording.decimal(value)) for value in (known[0], known[-1])]
            rows.append([Cell(name), Cell(f"{len(values)} {unit}"), ends[0], Cell(sparkline(values)), ends[1]])
    labels = ("Curve", "Over", "First", "From the lowest to the highest", "Last")
    caption = "The plots are artifacts of their own when the run has ended, and in its report."
    return Table(caption, [Column(label, number=label in {"First", "Last"}) for label in labels], rows)


def _changes(report: RunReport) -> Table:
    """The held-out prompts whose greedy completion gained and lost most reward."""
    heldout = report.changes
    changes = [*heldout.most_improved, *reversed(heldout.most_worsened)] if heldout else []
    labels = ("Change", "Prompt", "Start", f"Round {heldout.round}" if heldout else "Now")
    return Table(
        "The greedy completions that gained and lost most reward since the start.",
        [Column(label, number=False) for label in labels],
        [
            [Cell(wording.signed(change.gain)), *_clipped(change.prompt, change.before, change.after)]
            for change in changes
        ],
    )


def _clipped(*texts: str) -> list[Cell]:
    return [Cell(wording.clipped(text, _TEXT_LIMIT)) for text in texts]


def _samples(round_report: RoundReport) -> Table:
    """The pair with the largest and the one with the smallest reward margin."""
    pairs = round_report.pairs
    rows = []
    if pairs is not None:
        rows += [_sample("largest", pair) for pair in pairs.largest[:1]]
        rows += [_sample("smallest", pair) for pair in pairs.smallest[:1]]
    labels = ("Margin", "Prompt", "Chosen", "Rejected")
    return Table(
        "The pairs with the largest and the smallest reward margin.",
        [Column(label, number=False) for label in labels],
        rows,
    )


def _sample(kind: str, pair: SamplePair) -> list[Cell]:
    return [Cell(f"{kind}: {wording.decimal(pair.margin)}"), *_clipped(pair.prompt, pair.chosen, pair.rejected)]
