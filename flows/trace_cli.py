"""`pco trace`: from an answer back to what made it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from data.rows import TrainingPairRow
from data.visible import visible
from flows.console import RunsDir, clear_errors, console, say
from pco.models.sampling import GREEDY
from pco.runs.folder import find_round
from pco.runs.lineage import Answer, Lineage, Policy, Training, lineage

app = typer.Typer(rich_markup_mode="markdown")

_DIGEST = 12  # characters of a digest that are shown


@app.command()
def trace(
    name: Annotated[
        str, typer.Argument(metavar="RUN[:ROUND]", help="E.g. quickstart:2; by default the last round that answered.")
    ],
    prompt: Annotated[
        str,
        typer.Argument(
            metavar='PROMPT_ID|"TEXT"', help="The prompt by its id, its text, or a part of it that no other has."
        ),
    ],
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Trace the answers to a prompt: their scores, the policy that gave them, and the trainings behind that policy.

    Of a held-out or test prompt these are the answers in the round's evaluation; of a training prompt the candidates of
    the round, and what became of those of the rounds before: seeds, rewards, chosen and rejected.

    Examples:
    - `pco trace quickstart:2 "the old bridge"`

    - `pco trace quickstart:2 5d41402abc4b2a76`

    """
    with clear_errors("Nothing was changed."):
        config, number = find_round(name, runs_dir)
        _print(config.run, lineage(config, number, prompt))


def _print(run: str, traced: Lineage) -> None:
    prompt = traced.prompt
    say(f"{run}:{traced.round}, {prompt['split']} prompt {prompt['prompt_id']}")
    say(visible(prompt["prompt"]))
    say("")
    console.print(_answers(f"Answers of {_policy(traced.policy)}", traced.answers, traced.pairs or ()))
    if prompt["split"] == "train" and traced.pairs is not None and not traced.pairs:
        say(f"Round {traced.round} made no pair of them.")
    if not traced.trainings:
        say("No training of this run is behind these answers: the starting policy gave them.")
        return
    console.print(_trainings(traced.trainings))
    for training in traced.trainings:
        if training.candidates:
            title = f"Round {training.policy.round}, candidates"
            console.print(_answers(title, training.candidates, training.of_prompt))
        elif training.of_prompt:
            say(f"Round {training.policy.round} trained on {len(training.of_prompt)} pairs of this prompt.")
        for pair in training.of_prompt:
            if pair.get("round") is not None:
                say(f"Round {training.policy.round} trained on a pair of this prompt from {_source(pair['round'])}:")
                say(f"  chosen   {visible(pair['chosen'])}")
                say(f"  rejected {visible(pair['rejected'])}")


def _source(number: int) -> str:
    return f"round {number}" if number else "the seed preferences"


def _policy(policy: Policy) -> str:
    what = f"the policy of round {policy.round}" if policy.round else "the starting policy"
    return f"{what} (run {policy.run}, digest {policy.digest[:_DIGEST]})"


def _answers(title: str, answers: Sequence[Answer], pairs: Sequence[TrainingPairRow]) -> Table:
    measures = list(dict.fromkeys(name for answer in answers for name in answer.measures))
    columns = ("answer", "seed", "became", *measures, "log-probability", "text")
    table = Table(*map(escape, columns), title=escape(title), title_justify="left", show_lines=True)
    for answer in answers:
        values = [answer.measures.get(name) for name in measures]
        table.add_row(
            GREEDY if answer.mode == GREEDY else f"sample {answer.sample}",
            str(answer.seed),
            _became(answer, pairs),
            *("" if value is None else f"{value:.4g}" for value in values),
            f"{answer.logprob:.4g}",
            escape(visible(answer.text)),
        )
    return table


def _became(answer: Answer, pairs: Sequence[TrainingPairRow]) -> str:
    """Its sides in the pairs of its own round."""
    own = [pair for pair in pairs if pair.get("round") is None]
    sides = {"chosen" for pair in own if pair["chosen_sample"] == answer.sample}
    sides |= {"rejected" for pair in own if pair["rejected_sample"] == answer.sample}
    return " and ".join(sorted(sides))


def _trainings(trainings: Sequence[Training]) -> Table:
    columns = ("policy of round", "digest", "run", "began from", "own pairs", "replayed pairs", "gate")
    table = Table(*columns, title="The trainings behind it, the newest first", title_justify="left")
    gate = {None: "not decided", True: "promoted", False: "refused"}
    for training in trainings:
        table.add_row(
            str(training.policy.round),
            training.policy.digest[:_DIGEST],
            escape(training.policy.run),
            training.began_from[:_DIGEST],
            f"{training.pairs.get('own', 0):,}",
            f"{training.pairs.get('replayed', 0):,}",
            gate[training.promoted],
        )
    return table
