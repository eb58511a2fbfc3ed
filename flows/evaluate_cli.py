"""`pco evaluate`, `pco compare`, `pco export`: policies held against each other."""

from pathlib import Path
from typing import Annotated

import typer

from data.store import Manifest
from flows.console import Overrides, RunsDir, clear_errors, errors, print_table, say
from pco.config.run import RunConfig
from pco.evaluation import metrics
from pco.evaluation.rows import EvaluationRow
from pco.progress import Progress
from pco.runs import verify
from pco.runs.folder import find_round, opened
from pco.stage import Stage

app = typer.Typer(rich_markup_mode="markdown")

Level = Annotated[float, typer.Option(min=0.5, max=0.999, help="Confidence level of the intervals.")]
Rows = list[EvaluationRow]

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
        Path | None,
        typer.Option(
            help="Config whose settings are used: policy format, generate, engine, reward, evaluate; by default that "
            "of the first policy's run."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSONL or Parquet with a `prompt` a row; by default the config's held-out prompts."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the results; by default `evaluations` in the one of all runs."),
    ] = None,
    overrides: Overrides = None,
    level: Level = 0.95,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Evaluate policies outside of a run, all on the same prompts and seeds, and compare each with the first.

    Each policy gets a folder of its own with the tables `candidates` and `evaluations`, which `pco show`, `pco compare`
    and `pco export` read like a run's. What is finished there is not done again.

    Examples:
    - `pco evaluate quickstart:0 quickstart:2 --prompts other.jsonl`

    - `pco evaluate HuggingFaceTB/SmolLM2-135M-Instruct runs/mine/round-03/policy --config mine.yaml --out compared`

    """
    with clear_errors(_KEPT):
        from pco.runs import standalone

        settings = standalone.settings(config, policies, runs_dir, overrides)
        folder = out or runs_dir / standalone.FOLDER
        plans = standalone.plans(settings, policies, prompts=prompts, out=folder, runs_dir=runs_dir)
        _print({name: _evaluated(name, plan) for name, plan in plans.items()}, level)


@app.command()
def test(
    name: Annotated[
        str, typer.Argument(metavar="RUN", help="Name of a run under the runs folder, or the path of its folder.")
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSONL or Parquet with a `prompt` a row, for a run that has no `prompts.test` yet."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Look although another policy was put to this test set; the report counts.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Put the starting and the best policy of a run that has ended to test prompts, which decided nothing.

    A run with `prompts.test` does so by itself when its rounds are through. This is for a run made without, and for one
    that went on after its test: a second look is refused without `--again`.

    Example: `pco test quickstart --prompts test.jsonl`
    """
    with clear_errors(_KEPT):
        from pco import report
        from pco.execution.executor import LocalExecutor
        from pco.report import gather, tables, wording
        from pco.runs import final_test
        from pco.runs.folder import find

        config = find(name, runs_dir)
        if prompts is not None:
            config = final_test.with_prompts(config, prompts)
        final_test.check(config)
        with errors.status(f"{name}: test") as shown, opened(config):

            def do(stage: Stage) -> Manifest:
                return LocalExecutor().run(stage, on_progress=lambda done: shown.update(_told(name, stage, done)))

            final_test.walk(config, do, again=again)
            path = report.write(config)
        numbers = gather.run_report(config)
        print_table(tables.final_test(numbers))
        say(wording.headline(numbers))
        say(f"Report: {path}")


def _evaluated(name: str, plan: RunConfig) -> Rows:
    from pco.execution.executor import LocalExecutor
    from pco.runs import standalone

    with errors.status(f"{name}: prepare") as shown, opened(plan):

        def do(stage: Stage) -> Manifest:
            return LocalExecutor().run(stage, on_progress=lambda done: shown.update(_told(name, stage, done)))

        folder = standalone.walk(plan, do)
    say(f"{name}: tables in {plan.folder}")
    return metrics.read(folder)


def _told(name: str, stage: Stage, done: Progress) -> str:
    return f"{name}: {stage.name}, {done.count} of {done.total} {done.unit}"


def _print(evaluations: dict[str, Rows], level: float) -> None:
    from pco.report import comparison

    for table in comparison.tables(evaluations, level=level):
        print_table(table)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="RUN[:ROUND]", help="E.g. quickstart:1; by default its last round.")],
    second: Annotated[str, typer.Argument(metavar="RUN[:ROUND]", help="The policy that may be better.")],
    level: Level = 0.95,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Compare two evaluated policies on the held-out prompts that both have answered.

    Differences are paired by prompt. `p` is the sign test's, corrected for the number of metrics; `detectable` the
    smallest true difference that so many prompts would find four times out of five: a smaller one may be there and not
    show.

    Example: `pco compare quickstart:1 quickstart:2`
    """
    with clear_errors(_KEPT):
        from pco.runs import standalone

        names = standalone.short_names([first, second])
        rows = [metrics.read(_evaluation(name, runs_dir)[1]) for name in (first, second)]
        _print(dict(zip(names, rows, strict=True)), level)


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
        from pco.evaluation import export as exporting

        config, folder = _evaluation(name, runs_dir)
        outputs = exporting.alpaca_eval(config, folder, generator or Path(name).name)
        exporting.write(out, outputs)
        say(f"{out}: {len(outputs):,} completions")


@app.command()
def annotations(
    name: Annotated[str, typer.Argument(metavar="RUN[:ROUND]", help="The evaluated policy, whose export was judged.")],
    file: Annotated[Path, typer.Argument(metavar="FILE.json", help="AlpacaEval's `annotations.json`.")],
    level: Level = 0.95,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Import AlpacaEval's annotations of what `pco export` wrote: the win rate, also at equal length and style.

    Annotations of other prompts or texts than the evaluation's are refused with their numbers. The table `judgements`
    is in the run's folder, under `judgements`.

    Example: `pco annotations quickstart:2 results/quickstart:2/weighted_alpaca_eval_gpt4_turbo/annotations.json`
    """
    with clear_errors(_KEPT):
        from pco.runs import judgements

        _print_judgements(judgements.imported(judgements.evaluated(name, runs_dir), file), level)


@app.command()
def judge(
    name: Annotated[
        str, typer.Argument(metavar="RUN[:ROUND]", help="The evaluated policy; by default the last round.")
    ],
    against: Annotated[
        str,
        typer.Argument(
            metavar="RUN[:ROUND]|FILE.json", help="The other policy, or a `model_outputs.json` of AlpacaEval."
        ),
    ],
    config: Annotated[Path, typer.Option(help="YAML file whose `reward` is a judge (docs/rewards.md).")],
    max_cost: Annotated[
        float | None, typer.Option(min=0, help="Stop before the replies cost more, those of earlier attempts included.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would cost; ask nothing.")] = False,
    overrides: Overrides = None,
    level: Level = 0.95,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Let a language model judge a policy's greedy completions against another's answers to the same held-out prompts.

    Each prompt is asked in both orders. With `verdicts: five` the judge says as in Arena-Hard how much better an answer
    is. Replies are kept: the same command asks only what is left. About what it costs at most is said first.

    Examples:
    - `pco judge quickstart:2 quickstart:0 --config judge.yaml --dry-run`

    - `pco judge quickstart:2 gpt4_turbo.json --config judge.yaml --set reward.verdicts=five --max-cost 5`

    """
    with clear_errors(_KEPT):
        from pco.config import reward
        from pco.runs import judgements

        policy = judgements.evaluated(name, runs_dir)
        judge_config = reward.read(config, overrides)
        contest = judgements.contest(policy, against, judge_config, runs_dir=runs_dir, max_cost=max_cost)
        say(f"{len(policy.answers):,} prompts: {judgements.estimate(contest)}.")
        if not dry_run:
            _print_judgements(judgements.judged(contest), level)


def _print_judgements(folder: Path, level: float) -> None:
    from pco.report import judgements as report

    print_table(report.table(folder, level=level))
    for line in report.sentences(folder):
        say(line)
    say(f"Judgements: {folder}")


def _evaluation(name: str, runs_dir: Path) -> tuple[RunConfig, Path]:
    """A run and the folder of a finished evaluation of it, named as `RUN` or `RUN:ROUND`."""
    config, number = find_round(name, runs_dir)
    return config, verify.evaluation(config, number)
