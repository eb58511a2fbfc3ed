"""`pco data`: other people's data sets into files that a run can read."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from data import card, checking, columns, detecting, explaining, importing, labels, sources
from data.checking import Checked
from data.conversations import SEVERAL_TURNS, Turns
from data.detecting import Kind
from data.errors import BadInput
from data.importing import Imported, Request
from data.ranking import Pairs
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
    kind: Annotated[
        Kind | None, typer.Option(help="What it holds. With --explain, told by the columns if left out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="Where to; a data card FILE.md comes beside it.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print what the first rows would become. Nothing is written.")
    ] = False,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="COLUMN=NAME",
            help="What a column is, e.g. `--map question=prompt`. A path reaches into nested values, `--map "
            "data.prompt=prompt`; a text in double quotes is a constant. Several columns given as `preference`, `good` "
            "or `label` are the votes of several annotators.",
        ),
    ] = None,
    ignored: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="COLUMN", help="A column to leave out of account.")
    ] = None,
    codes: Annotated[
        list[str] | None,
        typer.Option(
            "--labels",
            metavar="MEANING=VALUE,...",
            help="What the labels mean: `first=0,second=1,tie=2` for preferences, `good=up,bad=down` for feedback.",
        ),
    ] = None,
    pairs: Annotated[
        Pairs,
        typer.Option(
            help="Of several answers with scores or ranks: the best and the worst, all, or those side by side."
        ),
    ] = "best_worst",
    split: Annotated[str | None, typer.Option(help="Split of a hub data set.")] = None,
    subset: Annotated[str | None, typer.Option(help="Subset (config) of a hub data set.")] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub data set. The card names the commit.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Read only so many rows.")] = None,
    turns: Annotated[
        Turns,
        typer.Option(
            help="Conversations: keep them as messages, keep only those of one question, or write all out as "
            "Human/Assistant transcripts."
        ),
    ] = "messages",
    heldout_share: Annotated[
        float | None, typer.Option(help="Share of the prompts to hold out, e.g. 0.1; decided by the prompt alone.")
    ] = None,
    heldout_out: Annotated[
        Path | None, typer.Option(metavar="FILE.parquet", help="Where the held-out rows go.")
    ] = None,
) -> None:
    """Make one Parquet file of known columns out of a data set of any common shape.

    The shape is told by the columns. Rows that cannot be kept are counted by reason; a line that is broken, and a
    column or label that could mean two things, is an error.

    Examples:
    - `pco data import alpaca.json --kind prompts --out prompts.parquet`

    - `pco data import --explain comparisons.jsonl`

    - `pco data import votes.parquet --kind preferences --map annotator1=preference --map annotator2=preference --map
      annotator3=preference --labels first=1,second=2,tie=0 --out majority.parquet`

    - `pco data import Anthropic/hh-rlhf --kind preferences --split train --out hh.parquet --turns transcript`

    - `pco data import votes.csv --kind feedback --map thumbs_up=good --out votes.parquet --heldout-share 0.1
      --heldout-out votes-heldout.parquet`

    """
    with clear_errors("Nothing was written."):
        request = Request(
            source,
            kind or "prompts",
            out,
            names=columns.read_map(names or [], detecting.known_names()),
            ignored=tuple(ignored or ()),
            coding=labels.read_labels(codes or []),
            pairs=pairs,
            split=split,
            subset=subset,
            revision=revision,
            limit=limit,
            turns=turns,
            heldout_share=heldout_share,
            heldout_out=heldout_out,
        )
        if explain:
            _tell_explained(explaining.explain(request, told_kind=kind is None))
            return
        if kind is None or out is None:
            raise BadInput("--kind and --out: both are needed, such as --kind preferences --out pairs.parquet.")
        with errors.status("Reading"):
            imported = importing.import_data(request)
            cards = card.write(imported)
        _tell(imported, cards)


def _tell_explained(explained: explaining.Explained) -> None:
    say(f"Kind: {explained.kind}")
    _tell_shape(explained.shape, explained.used, explained.unused)
    for row in explained.rows:
        say(f"{row.place}{':' if row.columns else f': dropped: {row.dropped}'}")
        for column, text in row.columns.items():
            say(f"  {column}: {text}")
    say("Nothing was written. Texts are shown as JSON, so that blanks and line ends can be seen.")


def _tell_shape(shape: detecting.Shape, used: Sequence[str], unused: Sequence[str]) -> None:
    say(f"Shape: {shape.name}, from {', '.join(used)}")
    if unused:
        say(f"Columns not used: {', '.join(unused)}")


def _tell(imported: Imported, cards: list[Path]) -> None:
    _tell_shape(imported.shape, imported.used, imported.unused)
    read = card.told_read(imported)
    if read:
        say(f"Read: {read}")
    say(f"Rows in: {imported.rows_in:,}")
    if imported.considered != imported.rows_in:
        say(f"Pairs or rows without any: {imported.considered:,}")
    for fact in card.told_notes(imported):
        say(fact)
    for side, written, path in zip(("Rows out", "Held out"), imported.outputs, cards, strict=False):
        say(f"{side}: {written.rows:,} with {len(written.prompts):,} different prompts: {written.path}, card {path}")
    say(f"Dropped: {sum(imported.dropped.values()):,}")
    for reason, count in imported.dropped.items():
        say(f"  {reason}: {count:,}")
    if SEVERAL_TURNS in imported.dropped:
        say("To keep conversations of several turns: --turns messages; written out as text: --turns transcript.")


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
        for checked_file in checked:
            _tell_checked(checked_file)
        if len(checked) == 2:
            checking.refuse_leakage(*checked)
            say("No prompt is in both.")


def _tell_checked(checked: Checked) -> None:
    content = checked.content
    say(
        f"{checked.path}: {content.rows:,} rows of {checked.kind}, {len(content.prompts):,} different prompts, "
        f"{checked.duplicates:,} exact duplicates"
    )
    longer = card.told_longer(content)
    if longer:
        say(f"  longer answer chosen: {longer}")
    if checked.references or checked.not_numbers:
        nans = f"; {checked.not_numbers:,} are NaN, which is none" if checked.not_numbers else ""
        say(f"  references: {checked.references:,} of {content.rows:,} rows{nans}")


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
