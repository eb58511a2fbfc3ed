"""Traces of a run: which answer, which training behind it, and what was found. They lie in the run's `traces`."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from data import files, store
from data.errors import BadInput
from data.rows import InfluenceRow, TrainingPairRow
from pco import hardware
from pco.config.run import RunConfig
from pco.config.trace import LAST_BLOCKS, Parameters, Trace
from pco.models import weights
from pco.models.sampling import GREEDY
from pco.pairing import replay
from pco.rounds import walk
from pco.runs import retention
from pco.runs.folder import locked
from pco.runs.lineage import ANSWERING, Answer, Lineage
from pco.specs import SPECS
from pco.stage import Artifact, Stage
from pco.training.pair_ids import pair_id

FOLDER = "traces"  # in a run's folder
_BYTES = {"fp32": 4, "bf16": 2}
_SHARE = 0.5  # of the memory that is available: activations need some, too


@dataclass(frozen=True)
class Moved:
    """A pair, and by how much its gradient steps moved the answer's log-probability, nats."""

    pair: TrainingPairRow
    influence: float


@dataclass(frozen=True)
class Found:
    """A finished trace; `moved` begins with the pair that raised the answer's log-probability most."""

    folder: Path
    prompt_id: str
    mode: str
    sample: int
    parameters: str
    number: int
    """The round whose training moved it."""
    logprob_before: float
    """Of the answer under the policy that the training began from, nats."""
    moved: Sequence[Moved]

    def raised(self, count: int) -> list[Moved]:
        """Those that raised it most."""
        return [moved for moved in self.moved[:count] if moved.influence > 0]

    def lowered(self, count: int) -> list[Moved]:
        """Those that lowered it most."""
        return [moved for moved in reversed(self.moved[-count:]) if moved.influence < 0]


class _Stop(Exception):
    """Ends a walk over the stages."""


def plan(
    config: RunConfig, traced: Lineage, *, sample: int | None = None, parameters: Parameters | None = None
) -> Stage[Trace]:
    """The stage that traces an answer to the pairs of the training that made its policy.

    Without `sample` it is the greedy answer. `parameters` are by default all whose gradients fit into memory.

    Raises BadInput where no training is behind the answer, there is no such answer, or what it needs is gone.
    """
    answer = _answer(traced, sample)
    number = traced.policy.round
    if not number:
        raise BadInput(
            f"{config.run}:{traced.round}: the starting policy gave this answer, so no pair of this run taught it. "
            "Trace an answer of a later round."
        )
    training = _training(config, number)
    which = parameters or _that_fit(training)
    answering = Stage(ANSWERING[traced.prompt["split"]], traced.round, config)
    answered = store.read_manifest(answering.folder)
    made = store.read_manifest(training.folder)
    assert answered is not None
    assert made is not None
    inputs = {**training.inputs, "answer": Artifact(answering.folder, answered.fingerprint)}
    by = files.digest([made.fingerprint, answered.fingerprint, which, SPECS["trace"].version])
    trace = Trace(
        traced=training.config,
        name=f"{traced.prompt['prompt_id']}-{answer.mode}-{answer.sample}-{by[:8]}",
        answered=traced.round,
        prompt_id=traced.prompt["prompt_id"],
        mode=answer.mode,
        sample=answer.sample,
        parameters=which,
    )
    return Stage("trace", number, trace, inputs)


@contextlib.contextmanager
def opened(stage: Stage[Trace]) -> Iterator[None]:
    """Hold a trace's folder for writing; make it if it is new.

    Raises RunConflict when another process makes the same trace.
    """
    folder = stage.config.folder
    with files.write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield


def _answer(traced: Lineage, sample: int | None) -> Answer:
    mode = GREEDY if sample is None else "sampled"
    for answer in traced.answers:
        if answer.mode == mode and sample in {None, answer.sample}:
            return answer
    there = ", ".join(str(answer.sample) for answer in traced.answers if answer.mode != GREEDY)
    raise BadInput(
        f"{traced.prompt['prompt_id']}: {'no greedy answer' if sample is None else f'no sample {sample}'} in round "
        f"{traced.round}. Name a sample: `--sample N` with N of {there or 'none'}."
    )


def _training(config: RunConfig, number: int) -> Stage[RunConfig]:
    """A finished training with its inputs, of which the policy must be there."""
    found: list[Stage[RunConfig]] = []

    def visit(stage: Stage[RunConfig]) -> store.Manifest:
        manifest = store.read_manifest(stage.folder)
        if (stage.round, stage.name) == (number, "train"):
            found.append(stage)
            raise _Stop
        if manifest is None:
            raise BadInput(f"{stage.folder}: not finished. `pco status {config.run}` shows what is done.")
        return manifest

    with contextlib.suppress(_Stop):
        walk(config, visit)
    (stage,) = found
    folder = stage.inputs["policy"].folder
    if not folder.is_dir():
        why = "was removed to save room (`keep_last`)" if retention.was_removed(folder) else "is gone"
        raise BadInput(
            f"{folder}: the policy that round {number} began from {why}, and gradients are taken at it. Restore it, or "
            "trace without --influence."
        )
    return stage


def _that_fit(training: Stage[RunConfig]) -> Parameters:
    """All parameters where the policy and two gradients fit into half of the memory that is free, else fewer."""
    train = training.config.train
    sizes = {name: _size(tensor) for name, tensor in weights.tensors(training.inputs["policy"].folder).items()}
    everything = sum(sizes.values())
    if train.lora is not None:  # their gradients are small
        return "all"
    blocks = [block for name in sizes if (block := weights.block_of(name)) is not None]
    first = max(blocks, default=0) - LAST_BLOCKS
    late = sum(size for name, size in sizes.items() if (block := weights.block_of(name)) is None or block > first)
    free = _SHARE * (hardware.gpu_memory() or psutil.virtual_memory().available)
    each = _BYTES[train.precision]
    if each * 3 * everything <= free:
        return "all"
    return "last-blocks" if each * (everything + 2 * late) <= free else "head"


def _size(tensor: weights.Tensor) -> int:
    return math.prod(tensor.shape)


def found(config: RunConfig, folder: Path) -> Found:
    """What a finished trace of a run found; `folder` is that of its table."""
    manifest = store.read_manifest(folder)
    assert manifest is not None
    number, settings = int(manifest.outputs["round"]), manifest.settings
    rows: list[InfluenceRow] = store.read_table(folder, "influence").to_pylist()
    pairs = {pair_id(pair): pair for pair in replay.rows_of(Stage("pair", number, config).folder)}
    ranked = sorted(rows, key=lambda row: -row["influence"])
    return Found(
        folder,
        str(settings["prompt_id"]),
        str(settings["mode"]),
        int(str(settings["sample"])),
        str(settings["parameters"]),
        number,
        manifest.metrics["logprob_before"],
        [Moved(pairs[pair_id(row)], row["influence"]) for row in ranked],
    )


def finished(config: RunConfig, answered: int) -> Iterator[Found]:
    """The finished traces of answers of a round that still are this run's: nothing was made anew since."""
    for folder in sorted((config.folder / FOLDER).glob(f"*/{SPECS['trace'].folder}")):
        manifest = store.read_manifest(folder)
        is_of_round = manifest is not None and manifest.outputs["answered"] == str(answered)
        if manifest is not None and is_of_round and _is_current(manifest, config):
            yield found(config, folder)


def _is_current(trace: store.Manifest, config: RunConfig) -> bool:
    pairs = store.read_manifest(Stage("pair", int(trace.outputs["round"]), config).folder)
    answering = [Stage(name, int(trace.outputs["answered"]), config) for name in ANSWERING.values()]
    answers = [store.read_manifest(stage.folder) for stage in answering]
    return (
        pairs is not None
        and pairs.fingerprint == trace.inputs["pairs"]
        and trace.inputs["answer"] in {manifest.fingerprint for manifest in answers if manifest is not None}
    )
