"""`pco data`: other people's data sets into files that a run can read."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from data import card, checking, importing, shapes, sources
from data.checking import Checked
from data.conversations import SEVERAL_TURNS, Turns
from data.importing import Imported, Request
from data.shapes import Kind
from flows.console import clear_errors, errors, print_rows, say

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Import, check and show data sets: prompts, preferences and feedback.",
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="Parquet, JSON, JSONL or CSV; also with .gz.")]


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A JSON, JSONL, CSV or Parquet file, also .gz; or a hub data set.")
    ],
    kind: Annotated[Kind, typer.Option(help="What it holds.")],
    out: Annotated[Path, typer.Option(metavar="FILE.parquet", help="Where to; a data card FILE.md comes beside it.")],
    names: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="COLUMN=NAME", help="What a column is, e.g. `--map question=prompt`."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a hub data set.")] = None,
    subset: Annotated[str | None, typer.Option(help="Subset (config) of a hub data set.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only so many rows.")] = None,
    turns: Annotated[
        Turns,
        typer.Option(
            help="Conversations: keep those of one question, or write all out as Human/Assistant transcripts."
        ),
    ] = "single",
    heldout_share: Annotated[
        float | None, typer.Option(help="Share of the prompts to hold out, e.g. 0.1; decided by the prompt alone.")
    ] = None,
    heldout_out: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="Where the held-out rows go.")
    ] = None,
) -> None:
    """Make one Parquet file of known columns out of a data set of any common shape.

    The shape is told by the columns. Rows that cannot be kept are counted by reason; a line that is broken is an error.

    Examples:
    - `pco data import alpaca.json --kind prompts --out prompts.parquet`

    - `pco data import Anthropic/hh-rlhf --kind preferences --split train --out hh.parquet --turns transcript`

    - `pco data import votes.csv --kind feedback --map thumbs_up=good --out votes.parquet --heldout-share 0.1
      --heldout-out votes-heldout.parquet`

    """
    with clear_errors("Nothing was written."):
        request = Request(
            source,
            kind,
            out,
            names=shapes.read_map(names or []),
            split=split,
            subset=subset,
            limit=limit,
            turns=turns,
            heldout_share=heldout_share,
            heldout_out=heldout_out,
        )
        with errors.status("Reading"):
            imported = importing.import_data(request)
            cards = card.write(imported)
        _tell(imported, cards)


def _tell(imported: Imported, cards: list[Path]) -> None:
    say(f"Shape: {imported.shape.name}, from {', '.join(imported.used)}")
    if imported.unused:
        say(f"Columns not used: {', '.join(imported.unused)}")
    say(f"Rows in: {imported.rows_in:,}")
    for side, written, path in zip(("Rows out", "Held out"), imported.outputs, cards, strict=False):
        say(f"{side}: {written.rows:,} with {len(written.prompts):,} different prompts: {written.path}, card {path}")
    say(f"Dropped: {sum(imported.dropped.values()):,}")
    for reason, count in imported.dropped.items():
        say(f"  {reason}: {count:,}")
    if SEVERAL_TURNS in imported.dropped:
        say("To keep conversations of several turns, written out as text: --turns transcript.")


@app.command()
def check(
    file: File,
    against: Annotated[
        Path | None, typer.Option(metavar="FILE2", help="Another file that must share no prompt with this one.")
    ] = None,
) -> None:
    """Check a file that was imported or written by hand, and that it shares no prompt with another.

    Prompts are compared without regard to case and whitespace.

    Example: `pco data check train.parquet --against heldout.parquet`
    """
    with clear_errors("Nothing was changed."):
        checked = [checking.check_file(path) for path in (file, against) if path is not None]
        for one in checked:
            _tell_checked(one)
        if len(checked) == 2:
            checking.refuse_leakage(*checked)
            say("No prompt is in both.")


def _tell_checked(checked: Checked) -> None:
    content = checked.content
    say(
        f"{checked.path}: {content.rows:,} rows of {checked.kind}, {len(content.prompts):,} different prompts, "
        f"{checked.duplicates:,} exact duplicates"
    )
    if longer := card.told_longer(content):
        say(f"  longer answer chosen: {longer}")


@app.command()
def show(
    file: File,
    limit: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 10,
) -> None:
    """Print the first rows of a file.

    Example: `pco data show train.parquet --limit 3`
    """
    with clear_errors("Nothing was changed."):
        rows = [row for _, row in islice(sources.open_source(str(file)).rows, limit)]
        say(f"{file}: the first {len(rows):,} rows")
        print_rows(rows)
