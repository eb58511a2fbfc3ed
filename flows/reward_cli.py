"""`pco reward`: reward models of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from data import reward_benchmarks
from flows import private_server
from flows.console import KEPT, Overrides, RunsDir, clear_errors, console, errors, print_table, say
from pco.config import reward as reward_config
from pco.config.reward_training import RewardTraining, load
from pco.reward_training import order
from pco.runs.folder import check_same, report_path

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Train and evaluate reward models and judges."
)


@app.callback()
def group() -> None:
    """Train and evaluate reward models and judges."""


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML config, e.g. configs/reward.yaml.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check config, model and preferences, and split them; start nothing.")
    ] = False,
) -> None:
    """Train a reward model on preference pairs, test it on prompts held out, and print how good it is.

    The result is a Hugging Face folder that a run takes as `reward: {kind: model, model: FOLDER}`. The same command
    resumes a training that died, from its last checkpoint; the config in the training's own folder will do.

    Examples:
    - `pco reward train configs/reward.yaml`

    - `pco reward train configs/reward.yaml --set run=unbiased --set train.length_penalty=1`

    - `pco reward train runs/unbiased/config.yaml`

    """
    with clear_errors(KEPT):
        resolved = load(config, overrides)
        check_same(resolved)
        if dry_run:
            _dry_run(resolved)
            return
        # No server and no engine starts to find that nothing is left to do.
        if not (report_path(resolved).exists() and order.is_finished(resolved)):
            _train(resolved)
        _conclude(resolved)


def _dry_run(config: RewardTraining) -> None:
    from pco.reward_training import pairs

    private_server.check()
    say(f"Checked: {pairs.check(config).summary()}.")
    say(f"Would train a reward model into {config.folder}.")


def _train(config: RewardTraining) -> None:
    in_terminal = console.is_terminal
    private_server.begin(in_terminal)
    from flows.reward import train_reward
    from tasks import views

    say(f"Reward training {config.run} into {config.folder}")
    if in_terminal:
        with views.shown_in(views.Terminal(console)):
            train_reward(config)
    else:
        train_reward(config)


def _conclude(config: RewardTraining) -> None:
    from pco.report import reward

    print_table(reward.accuracies(reward.read(config)))
    for line in reward.sentences(reward.read(config)):
        say(line)
    say(f"Model: {config.folder / 'model'}")
    say(f"Report: {report_path(config)}")


@app.command()
def evaluate(
    reward: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|CONFIG",
            help="A reward model's folder or hub id, or a YAML file with a `reward` section, such as a run's config.",
        ),
    ],
    data: Annotated[
        list[Path],
        typer.Option("--data", metavar="FILE", help="JSONL, JSON, CSV or Parquet; give it again for several files."),
    ],
    max_cost: Annotated[
        float | None,
        typer.Option(min=0, help="Stop before a judge's replies cost more, those of earlier attempts included."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for the results; by default `reward-evaluations` in the one of all runs."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check reward and data, and say what a judge would cost; score nothing.")
    ] = False,
    overrides: Overrides = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Hold a reward model or a judge to a public benchmark: RewardBench and RewardBench 2, or files of their columns.

    A row has `prompt`, `chosen`, `rejected` and `subset`: texts as in RewardBench, or lists of texts under `chosen` and
    `rejected`, with `num_correct`, as in RewardBench 2. The result has accuracies by subset with intervals, and how far
    the reward follows length and a judge the position. A judge's cost is shown before it is asked anything.

    Examples:
    - `pco reward evaluate runs/reward/model --data reward-bench-2.parquet`

    - `pco reward evaluate judge.yaml --data reward-bench.parquet --max-cost 5`

    """
    with clear_errors(KEPT):
        from pco.report import reward_benchmark as report
        from pco.runs import reward_benchmark

        config, name = _named(reward, overrides)
        items = reward_benchmarks.read(data)
        folder = out or runs_dir / reward_benchmark.FOLDER
        plan = reward_benchmark.plan(config, items, data, name=name, out=folder, max_cost=max_cost)
        say(f"{len(items):,} prompts; results in {plan.folder}")
        for judge, estimate in reward_benchmark.estimates(plan):
            say(f"The judge {judge}: {estimate}.")
        if dry_run:
            return
        with errors.status(f"{name}: benchmark") as shown:
            reward_benchmark.run(
                plan, lambda done: shown.update(f"{name}: {done.count:,} of {done.total:,} {done.unit}")
            )
        path = report.write(plan.folder, name)
        for table in report.tables(report.read(plan.folder)):
            print_table(table)
        say(f"Report: {path}")


def _named(reward: str, overrides: list[str] | None) -> tuple[reward_config.RewardConfig, str]:
    """The reward that an argument names, and a short name of it."""
    if reward.endswith((".yaml", ".yml")):
        config = reward_config.read(Path(reward), overrides)
        named = getattr(config, "model", None)
        return config, Path(named).name if isinstance(named, str) else Path(reward).stem
    return reward_config.of_model(reward, overrides), Path(reward).name
