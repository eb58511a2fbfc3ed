"""From an answer back to what made it: its policy, the trainings behind that, and the pairs of each."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from data import store
from data.errors import BadInput, CorruptArtifact
from data.rows import CandidateRow, EvaluationRow, PromptRow, ScoreRow, TrainingPairRow
from pco.config.run import RunConfig
from pco.evaluation.decision import Decision
from pco.models.sampling import GREEDY
from pco.runs.status import points
from pco.specs import StageName
from pco.stage import Stage

# The stage that has a split's prompts answered. Human texts are read, not answered.
ANSWERING: dict[str, StageName] = {"train": "generate", "heldout": "evaluate", "test": "test"}
_LISTED = 10  # prompts in a message
_BRIEF = 80  # characters of a prompt in a message


@dataclass(frozen=True)
class Policy:
    """Which training made a policy; round 0 is the starting policy. `run` is another one's name where it is shared."""

    run: str
    round: int
    digest: str


@dataclass(frozen=True)
class Answer:
    """A completion of the traced prompt, and what was measured of it: of a training prompt its reward alone."""

    mode: str
    sample: int
    seed: int
    text: str
    tokens: int
    logprob: float
    finish_reason: str
    measures: Mapping[str, float]


@dataclass(frozen=True)
class Training:
    """A round that trained one of the policies; its pairs by where they come from."""

    policy: Policy
    began_from: str
    """The digest of the policy that it began from."""
    pairs: Mapping[str, int]
    """How many pairs it had: its `own`, and `replayed` ones."""
    promoted: bool | None
    """None while the gate has not decided."""
    candidates: Sequence[Answer]
    """Of a training prompt."""
    of_prompt: Sequence[TrainingPairRow]
    """The pairs of the traced prompt among those that it had."""


@dataclass(frozen=True)
class Lineage:
    """A prompt's answers in one round, the policy that gave them, and the trainings behind it, the newest first."""

    prompt: PromptRow
    round: int
    answers: Sequence[Answer]
    policy: Policy
    trainings: Sequence[Training]
    pairs: Sequence[TrainingPairRow] | None
    """What became of a training prompt's answers: the pairs of the round itself. None where none were made yet."""


def lineage(config: RunConfig, number: int | None, named: str) -> Lineage:
    """Trace the answers to a prompt, named by its id or text, in a round; by default the last that answered it.

    Raises BadInput when there is no such prompt, the name fits several, or that round has not answered it.
    """
    prompt = find_prompt(config, named)
    answering = _answering(config, prompt, number)
    manifest = store.read_manifest(answering.folder)
    assert manifest is not None
    policy = _policy(config, manifest.inputs["policy"])
    is_trained_on = prompt["split"] == "train"
    return Lineage(
        prompt,
        answering.round,
        _answers(answering, prompt["prompt_id"]),
        policy,
        list(_trainings(config, policy, prompt)),
        _pairs_of_prompt(config, answering.round, prompt["prompt_id"]) if is_trained_on else None,
    )


def find_prompt(config: RunConfig, named: str) -> PromptRow:
    """A prompt of the run by its id, its text, or a part of its text that no other prompt has.

    Raises BadInput that lists the prompts that fit, or those that come nearest.
    """
    rows = _prompts(config)
    if not rows:
        raise BadInput(f"{config.run}: has no prompts yet. `pco status {config.run}` shows what is done.")
    exact = [row for row in rows if named in (row["prompt_id"], row["prompt"])]
    fitting = exact or [row for row in rows if _plain(named) in _plain(row["prompt"])]
    if len(fitting) > 1:
        raise BadInput(f"{_brief(named)}: fits {len(fitting)} prompts. Name one by its id:\n{_listed(fitting)}")
    if not fitting:
        raise BadInput(f"{_brief(named)}: no prompt of {config.run}. The nearest:\n{_listed(_nearest(rows, named))}")
    return fitting[0]


def _prompts(config: RunConfig) -> list[PromptRow]:
    """All that the run asks: what it trains on, what it holds out, what it tests with."""
    rows: list[PromptRow] = []
    for name in ("prepare", "prepare_test"):
        stage = Stage(name, 0, config)
        if store.read_manifest(stage.folder) is not None:
            rows += store.read_table(stage.folder, "prompts").to_pylist()
    return [row for row in rows if row["split"] in ANSWERING]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _nearest(rows: Sequence[PromptRow], named: str) -> list[PromptRow]:
    by_text = {_plain(row["prompt"]): row for row in rows}
    close = difflib.get_close_matches(_plain(named), by_text, n=3, cutoff=0.0)
    return [by_text[text] for text in close]


def _listed(rows: Sequence[PromptRow]) -> str:
    lines = [f"  {row['prompt_id']} ({row['split']}): {_brief(row['prompt'])}" for row in rows[:_LISTED]]
    return "\n".join([*lines, *([f"  and {len(rows) - _LISTED} more"] if len(rows) > _LISTED else [])])


def _brief(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _BRIEF else f"{text[: _BRIEF - 3]}..."


def _answering(config: RunConfig, prompt: PromptRow, number: int | None) -> Stage:
    """The finished stage that had the prompt answered, in that round or in the last that did."""
    name = ANSWERING[prompt["split"]]
    rounds = [at for at, stage in points(config) if stage == name and number in {None, at}]
    finished = [at for at in rounds if store.read_manifest(Stage(name, at, config).folder) is not None]
    if not finished:
        where = "no round has a" if number is None else f"round {number} has no"
        raise BadInput(
            f"{config.run}: {where} finished `{name}`, which answers {prompt['split']} prompts such as "
            f"{prompt['prompt_id']}. `pco status {config.run}` shows what is done."
        )
    return Stage(name, finished[-1], config)


def _policy(config: RunConfig, digest: str) -> Policy:
    """The newest training of the run that made a policy, or its start."""
    for number in range(config.rounds, 0, -1):
        stage = Stage("train", number, config)
        manifest = store.read_manifest(stage.folder)
        if manifest is not None and manifest.outputs.get("policy") == digest:
            return Policy(store.origin(stage.folder) or config.run, number, digest)
    prepare = Stage("prepare", 0, config)
    prepared = store.read_manifest(prepare.folder)
    if prepared is None or prepared.outputs.get("policy") != digest:
        raise CorruptArtifact(
            f"{config.folder}: the policy {digest} wrote the answers, and no training here made it. Were later stages "
            f"set aside? `pco status {config.run}` shows what is stale."
        )
    return Policy(store.origin(prepare.folder) or config.run, 0, digest)


def _trainings(config: RunConfig, policy: Policy, prompt: PromptRow) -> Iterator[Training]:
    """The training that made a policy, that of the policy it began from, and so on back to the start."""
    while policy.round:
        number = policy.round
        manifest = store.read_manifest(Stage("train", number, config).folder)
        assert manifest is not None
        decided = store.read_manifest(Stage("decide", number, config).folder)
        is_trained_on = prompt["split"] == "train"
        generate = Stage("generate", number, config)
        yield Training(
            policy,
            manifest.inputs["policy"],
            _counted(config, number),
            Decision.of(decided).promoted if decided else None,
            _answers(generate, prompt["prompt_id"]) if is_trained_on else [],
            _pairs_of_prompt(config, number, prompt["prompt_id"]) or [],
        )
        policy = _policy(config, manifest.inputs["policy"])


def _counted(config: RunConfig, number: int) -> dict[str, int]:
    folder = Stage("pair", number, config).folder
    manifest = store.read_manifest(folder)
    parts = manifest.parts if manifest else []
    names = {"pairs": "own", "replay": "replayed"}
    return {name: sum(part.rows for part in parts if part.table == table) for table, name in names.items()}


def _answers(stage: Stage, prompt_id: str) -> list[Answer]:
    """A prompt's completions in a finished stage, the greedy one first, with what was measured of them."""
    rows: list[CandidateRow] = _rows(stage.folder, "candidates", prompt_id)
    measured = _measures(stage, prompt_id)
    return [
        Answer(
            row["mode"],
            row["sample"],
            row["seed"],
            row["completion"],
            len(row["token_ids"]),
            row["logprob"],
            row["finish_reason"],
            measured.get((row["mode"], row["sample"]), {}),
        )
        for row in sorted(rows, key=lambda row: (row["mode"] != GREEDY, row["sample"]))
    ]


def _measures(stage: Stage, prompt_id: str) -> dict[tuple[str, int], dict[str, float]]:
    """By mode and sample: rewards of candidates, or all metrics of an evaluation."""
    measured: dict[tuple[str, int], dict[str, float]] = {}
    if stage.name == "generate":
        scores: list[ScoreRow] = _rows(Stage("score", stage.round, stage.config).folder, "scores", prompt_id)
        return {("sampled", row["sample"]): {"reward": row["reward"]} for row in scores}
    evaluations: list[EvaluationRow] = _rows(stage.folder, "evaluations", prompt_id)
    for row in evaluations:
        if row["sample"] is not None:
            measured.setdefault((row["mode"], row["sample"]), {})[row["measure"]] = row["value"]
    return measured


def _pairs_of_prompt(config: RunConfig, number: int, prompt_id: str) -> list[TrainingPairRow] | None:
    """The pairs of a prompt that a round trained on, its own and replayed ones; None where none were made yet."""
    folder = Stage("pair", number, config).folder
    if store.read_manifest(folder) is None:
        return None
    return _rows(folder, "pairs", prompt_id) + _rows(folder, "replay", prompt_id)


def _rows(folder: Path, table: str, prompt_id: str) -> list[Any]:
    """The rows of one prompt in a finished stage's table, a part in memory at a time; none where there is no table."""
    if not store.has_table(folder, table):
        return []
    rows: list[Any] = []
    for part in store.parts(folder, table):
        content = store.read_part(folder, part)
        rows += content.filter(pc.equal(content["prompt_id"], prompt_id)).to_pylist()
    return rows
