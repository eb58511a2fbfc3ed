"""The report's numbers as Markdown, for Prefect's artifacts. Text of models is data here and never markup."""

import re
import string

from pco.report import run_tables, tables, wording
from pco.report.cells import Cell, Column, Table
from pco.report.numbers import RoundReport, RunReport, SamplePair

_TEXT_LIMIT = 400  # characters of a prompt or completion in a table cell
# Readable as they are; every other punctuation mark may mean something to some Markdown dialect.
_HARMLESS = frozenset(" ,.;'()?%/+-")
# Backslashes, not entities: Prefect's pages show entities as they are written.
_ESCAPES = {ord(mark): f"\\{mark}" for mark in string.punctuation if mark not in _HARMLESS}


def escape(text: str) -> str:
    """Text for a table cell: one line, nothing in it markup, neither Markdown nor HTML."""
    return re.sub(r"\s+", " ", wording.visible(text)).strip().translate(_ESCAPES)


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
    """The whole run: what came of it, measures, gate, pairs, time, and what is missing."""
    sections = {
        "Measures": tables.measures(report),
        "Gate": tables.gate(report),
        "Pairs": tables.funnel(report),
        "Chosen and rejected": tables.pairs(report),
        "Held-out completions, start and now": _changes(report),
        "Time": run_tables.time_split(report),
        "Missing": run_tables.missing(report),
    }
    told = [f"## {name}\n\n{table(content)}" for name, content in sections.items() if content.rows]
    return "\n\n".join([f"# Run {report.config.run}", wording.headline(report), *told]) + "\n"


def one_round(report: RunReport, number: int) -> str:
    """One round beside the starting policy and the previous one, with sample pairs."""
    one = report.rounds[number]
    beside = [report.rounds[i] for i in sorted({0, max(0, number - 1), number})]
    sections = {
        "Measures": tables.measures(report, beside),
        "Gate": tables.gate(report, [one]),
        "Pairs": tables.funnel(report, [one]),
        "Chosen and rejected": tables.pairs(report, [one]),
        "Sample pairs": _samples(one),
        "Time": run_tables.stage_times(report, number),
    }
    told = [f"## {name}\n\n{table(content)}" for name, content in sections.items() if content.rows]
    title = f"# Run {report.config.run}, {one.name}"
    return "\n\n".join([title, wording.verdict(report, number), *told]) + "\n"


def _changes(report: RunReport) -> Table:
    """The held-out prompts whose greedy completion gained and lost most reward."""
    found = report.changes
    changes = [*found.most_improved, *reversed(found.most_worsened)] if found else []
    labels = ("Change", "Prompt", "Start", f"Round {found.round}" if found else "Now")
    return Table(
        "The greedy completions that gained and lost most reward since the start.",
        [Column(label, number=False) for label in labels],
        [[Cell(wording.signed(one.gain)), *_clipped(one.prompt, one.before, one.after)] for one in changes],
    )


def _clipped(*texts: str) -> list[Cell]:
    return [Cell(wording.clipped(text, _TEXT_LIMIT)) for text in texts]


def _samples(one: RoundReport) -> Table:
    """The pair with the largest and the one with the smallest reward margin."""
    found = one.pairs
    kinds = [("largest", found.largest[:1]), ("smallest", found.smallest[:1])] if found else []
    labels = ("Margin", "Prompt", "Chosen", "Rejected")
    return Table(
        "The pairs with the largest and the smallest reward margin.",
        [Column(label, number=False) for label in labels],
        [_sample(kind, pair) for kind, shown in kinds for pair in shown],
    )


def _sample(kind: str, pair: SamplePair) -> list[Cell]:
    return [Cell(f"{kind}: {wording.decimal(pair.margin)}"), *_clipped(pair.prompt, pair.chosen, pair.rejected)]
