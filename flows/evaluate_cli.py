"""`pco evaluate`, `pco compare`, `pco export`: policies held against each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from data.errors import BadInput
from flows.console import Overrides, RunsDir, clear_errors, console, errors, say
from pco import status
from pco.config import RunConfig, load
from pco.rundir import find_round

app = typer.Typer(rich_markup_mode="markdown")

Level = Annotated[float, typer.Option(min=0.5, max=0.999, help="Confidence level of the intervals.")]
Rows = list[dict[str, Any]]

_KEPT = "What is finished is kept; the same command goes on."


@app.command()
def evaluate(
    policies: Annotated[
        list[str],
        typer.Argument(
            metavar="POLICY...",
            help="Model folders, hub ids, or RUN:ROUND; the first is what the others are held against.",
        ),
    ],
    config: Annotated[
        Path, typer.Option(help="Config whose settings are used: policy format, generate, engine, reward, evaluate.")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSONL or Parquet with a `prompt` a row; by default the config's held-out prompts."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results.")] = Path("evaluations"),
    overrides: Overrides = None,
    level: Level = 0.95,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Evaluate policies outside of a run, all on the same prompts and seeds, and compare each with the first.

    Each policy gets a folder of its own with the tables `candidates` and `evaluations`, which `pco show`, `pco compare`
    and `pco export` read like a run's. What is finished there is not done again.

    Examples:
    - `pco evaluate quickstart:0 quickstart:2 --config configs/quickstart.yaml --prompts other.jsonl`

    - `pco evaluate HuggingFaceTB/SmolLM2-135M-Instruct runs/mine/round-03/policy --config mine.yaml --out compared`

    """
    with clear_errors(_KEPT):
        from pco import standalone

        if len(set(policies)) < len(policies):
            raise BadInput(f"{' '.join(policies)}: names a policy twice, and it would be compared with itself.")
        settings = load(config, overrides)
        models = [standalone.model_of(name, runs_dir) for name in policies]
        plans = [standalone.planned(settings, model, prompts, out) for model in models]
        found = [_evaluated(name, plan) for name, plan in zip(policies, plans, strict=True)]
        short = [Path(name).name for name in policies]
        names = short if len(set(short)) == len(short) else policies
        _print(names, found, level)


def _evaluated(name: str, plan: RunConfig) -> Rows:
    from pco import evaluate, measures, standalone

    with errors.status(f"{name}: prepare") as shown:
        folder = standalone.run(
            plan, lambda stage, done: shown.update(f"{name}: {stage.name}, {done.done} of {done.total} {done.unit}")
        )
    rows = evaluate.read(folder)
    say(f"{name}: perplexity {measures.summarise(rows)['perplexity']:.1f} on human text; tables in {plan.folder}")
    return rows


def _print(names: Sequence[str], evaluations: Sequence[Rows], level: float) -> None:
    """The means of all, then the differences of each from the first."""
    from pco import compare

    means = [{line.measure: line for line in compare.means(rows, level=level)} for rows in evaluations]
    table = Table("measure", *names, title=f"Means over prompts, {level:.0%} intervals", title_justify="left")
    for measure in dict.fromkeys(measure for lines in means for measure in lines):
        found = [lines.get(measure) for lines in means]
        table.add_row(measure, *(_interval(line.mean, line.low, line.high) if line else "-" for line in found))
    console.print(table)
    for name, rows in zip(names[1:], evaluations[1:], strict=True):
        columns = ("measure", "prompts", f"difference, {level:.0%} interval", "p", "detectable")
        table = Table(*columns, title=f"{name} less {names[0]}", title_justify="left")
        for line in compare.compare(evaluations[0], rows, level=level):
            difference = _interval(line.mean, line.low, line.high, sign="+")
            table.add_row(line.measure, str(line.prompts), difference, f"{line.p:.3f}", f"{line.detectable:.4f}")
        console.print(table)


def _interval(mean: float, low: float, high: float, sign: str = "") -> str:
    return f"{mean:{sign}.4f} ({low:{sign}.4f} to {high:{sign}.4f})"


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="RUN[:ROUND]", help="E.g. quickstart:1; by default its last round.")],
    second: Annotated[str, typer.Argument(metavar="RUN[:ROUND]", help="The policy that may be better.")],
    level: Level = 0.95,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Compare two evaluated policies on the held-out prompts that both have answered.

    Differences are paired by prompt. `p` is the sign test's, corrected for the number of measures; `detectable` the
    smallest true difference that so many prompts would find four times out of five: a smaller one may be there and not
    show.

    Example: `pco compare quickstart:1 quickstart:2`
    """
    with clear_errors(_KEPT):
        from pco import evaluate

        one, other = (evaluate.read(_evaluation(name, runs_dir)[1]) for name in (first, second))
        _print((Path(first).name, Path(second).name), (one, other), level)


@app.command()
def export(
    name: Annotated[str, typer.Argument(metavar="RUN[:ROUND]", help="E.g. quickstart:2; by default its last round.")],
    out: Annotated[Path, typer.Option(metavar="FILE.json", help="New file for the completions.")],
    generator: Annotated[str | None, typer.Option(help="Name of the policy in the file; by default as given.")] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Write a policy's greedy completions of the held-out prompts as AlpacaEval's `model_outputs.json`.

    The public evaluator reads the file as it is: `alpaca_eval --model_outputs model_outputs.json`.

    Example: `pco export quickstart:2 --out model_outputs.json`
    """
    with clear_errors(_KEPT):
        from pco import export as exporting

        config, folder = _evaluation(name, runs_dir)
        outputs = exporting.alpaca_eval(config, folder, generator or Path(name).name)
        exporting.write(out, outputs)
        say(f"{out}: {len(outputs):,} completions")


def _evaluation(name: str, runs_dir: Path) -> tuple[RunConfig, Path]:
    """A run and the folder of a finished evaluation of it, named as `RUN` or `RUN:ROUND`."""
    config, number = find_round(name, runs_dir)
    return config, status.folders_with(config, "evaluations", number)[-1][1]
