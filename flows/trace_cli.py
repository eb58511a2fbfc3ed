"""`pco trace`: from an answer back to what made it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from data.errors import BadInput
from data.rows import TrainingPairRow
from data.visible import visible
from flows.console import RunsDir, clear_errors, console, errors, say
from pco.config.trace import Parameters, Trace
from pco.execution.executor import LocalExecutor
from pco.models.sampling import GREEDY
from pco.progress import Progress
from pco.report.wording import clipped
from pco.runs import traces
from pco.runs.folder import find_round
from pco.runs.lineage import Answer, Lineage, Policy, Training, lineage
from pco.stage import Stage

app = typer.Typer(rich_markup_mode="markdown")

_DIGEST = 12  # characters of a digest that are shown
_SHOWN = 300  # characters of a pair's text
_TOP = 10
_KEPT = "What is finished is kept; the same command goes on."


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
    influence: Annotated[
        bool,
        typer.Option(
            "--influence", help="Also find the pairs whose gradient steps moved the answer's log-probability."
        ),
    ] = False,
    sample: Annotated[
        int | None, typer.Option(min=0, help="Of --influence: this sampled answer; by default the greedy one.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Of --influence: so many pairs that raised it, and that lowered it.")
    ] = None,
    parameters: Annotated[
        Parameters | None,
        typer.Option(help="Of --influence: whose gradients count; by default all, or as many as memory allows."),
    ] = None,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Trace the answers to a prompt: their scores, the policy that gave them, and the trainings behind that policy.

    Of a held-out or test prompt these are the answers in the round's evaluation; of a training prompt the candidates of
    the round, and what became of those of the rounds before: seeds, rewards, chosen and rejected.

    `--influence` ranks the pairs of the training that made the answer's policy by how much their gradients moved the
    answer's log-probability. It reads each pair once an epoch with a backward pass, as a stage does in a process of its
    own, and keeps the table `influence` under `traces/` in the run's folder, where the report finds it.

    Examples:
    - `pco trace quickstart:2 "the old bridge"`

    - `pco trace quickstart:2 5d41402abc4b2a76 --influence`

    """
    with clear_errors(_KEPT):
        if not influence and (sample, top, parameters) != (None, None, None):
            raise BadInput("--sample, --top, --parameters: say how --influence is found; add it, or leave them out.")
        config, number = find_round(name, runs_dir)
        traced = lineage(config, number, prompt)
        stage = traces.plan(config, traced, sample=sample, parameters=parameters) if influence else None
        _print(config.run, traced)
        if stage is not None:
            _run(stage)
            _print_found(traces.found(config, stage.folder), top or _TOP)
            say(f"Table: {stage.folder}")


def _run(stage: Stage[Trace]) -> None:
    """The trace in a process of its own, with a bar of its progress."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ProgressBar(*columns, console=errors, transient=True) as bar, traces.opened(stage):
        task = bar.add_task("Gradients of pairs", total=None)

        def show(done: Progress) -> None:
            bar.update(task, completed=done.done, total=done.total)

        LocalExecutor().run(stage, on_progress=show)


def _print_found(found: traces.Found, top: int) -> None:
    say(
        f"Pairs of round {found.number} that moved the answer's log-probability most, by the gradient of each at the "
        f"policy before it ({found.logprob_before:.2f} nats there; parameters: {found.parameters}):"
    )
    console.print(_moved("Raised it", found.raised(top)))
    console.print(_moved("Lowered it", found.lowered(top)))


def _moved(title: str, moved: Sequence[traces.Moved]) -> Table:
    table = Table("nats", "pair", "prompt", "chosen", "rejected", title=title, title_justify="left", show_lines=True)
    for entry in moved:
        pair, number = entry.pair, entry.pair.get("round")
        texts = (escape(clipped(visible(text), _SHOWN)) for text in (pair["prompt"], pair["chosen"], pair["rejected"]))
        source = "" if number is None else f" from {_source(number)}"
        table.add_row(f"{entry.influence:+.3g}".replace("-", "−"), f"{pair['prompt_id']}{source}", *texts)
    return table


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
