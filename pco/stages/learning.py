"""What `train` and `trace` share: what a round learns from, in which steps, and the policy before the first of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from transformers import AutoModelForCausalLM

from data import store
from data.errors import BadInput
from data.rows import FeedbackRow, ReferenceLogpsRow
from pco.config.train import Train
from pco.models.protocols import Model
from pco.pairing import replay
from pco.stage import Stage
from pco.training import loop
from pco.training.batches import Example, Rated, Step, examples_of, rated_of, steps

Fitting = TypeVar("Fitting", Example, Rated)


@dataclass(frozen=True)
class Material:
    """What a round learns from; `rows` and `feedback` also count what is too long, `rows` pairs and feedback."""

    rows: int
    feedback: int
    examples: list[Example]
    rated: list[Rated]

    @property
    def dropped(self) -> int:
        """How many are too long."""
        return self.rows - len(self.examples) - len(self.rated)


def material(stage: Stage) -> Material:
    """The pairs and feedback of a training stage. Raises BadInput when all of either are too long."""
    rows, feedback = replay.rows_of(stage.inputs["pairs"].folder), _feedback(stage)
    limit = stage.config.train.max_pair_tokens
    examples = _that_fit(examples_of(rows, _reference_logps(stage)), limit)
    rated = _that_fit(rated_of(feedback), limit) if feedback else []
    return Material(len(rows) + len(feedback), len(feedback), examples, rated)


def _holds(stage: Stage, name: str, table: str) -> bool:
    """Whether the stage has an input of this name, and that input this table."""
    return name in stage.inputs and store.has_table(stage.inputs[name].folder, table)


def _feedback(stage: Stage) -> list[FeedbackRow]:
    """The user's feedback; none where the run has none."""
    if not _holds(stage, "prompts", "feedback"):
        return []
    rows: list[FeedbackRow] = store.read_table(stage.inputs["prompts"].folder, "feedback").to_pylist()
    return rows


def _reference_logps(stage: Stage) -> list[ReferenceLogpsRow]:
    """The log-probabilities under the reference policy; none for a loss without one."""
    if not _holds(stage, "reference", "reference_logps"):
        return []
    rows: list[ReferenceLogpsRow] = store.read_table(stage.inputs["reference"].folder, "reference_logps").to_pylist()
    return rows


def _that_fit(items: list[Fitting], limit: int) -> list[Fitting]:
    fitting = [item for item in items if item.longest <= limit]
    if not fitting:
        raise BadInput(
            f"train.max_pair_tokens: all {len(items)} pairs or pieces of feedback are longer than {limit} tokens. "
            "Raise it."
        )
    return fitting


def seed(stage: Stage) -> str:
    """What the random choices of a round's training follow from."""
    return f"{stage.config.seed}:{stage.round}"


def plan(stage: Stage, learned: Material) -> list[Step[Example]]:
    """The optimizer steps of a training."""
    train = stage.config.train
    return list(
        steps(
            learned.examples,
            learned.rated,
            pairs_per_step=train.pairs_per_step,
            epochs=train.epochs,
            seed=seed(stage),
        )
    )


def model(folder: Path, train: Train) -> Model:
    """A policy ready to learn, under adapters if the config wants them; these begin with random numbers."""
    prepared: Model = loop.prepared(
        AutoModelForCausalLM.from_pretrained(folder, dtype=loop.dtype(train)), train, task="CAUSAL_LM"
    )
    return prepared
