"""`pco reward`: reward models of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from flows import private_server
from flows.console import KEPT, Overrides, clear_errors, console, print_table, say
from pco.config.reward_training import RewardTraining, load
from pco.reward_training import order
from pco.runs.folder import check_same, report_path

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Train reward models on preferences.")


@app.callback()
def group() -> None:
    """Train reward models on preferences."""


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
