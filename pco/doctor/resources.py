"""Whether weights, prompts, disk and memory suffice, examined without loading weights."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from data.errors import BadInput
from pco import hardware, installed
from pco.config.formats import DTYPES
from pco.config.run import RunConfig
from pco.doctor.finding import Result
from pco.doctor.inputs import Inputs, existing_folder
from pco.evaluation.intervals import detectable_difference
from pco.execution import disk_space, shares
from pco.hardware import gpu_memory, number_format
from pco.models import weights
from pco.models.weights import Tensor

_GIB = 2**30
_FEW_HELDOUT = 30
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"  # what most families call them


def tied_weights(inputs: Inputs) -> Iterator[Result]:
    """Whether the head is either tied to the embedding or has weights of its own."""
    held, tied = weights.tensors(inputs.model), _is_tied(inputs.model)
    if _EMBEDDING not in held:
        yield "ok", f"its embedding is not called {_EMBEDDING}; the canary shows whether all weights are there"
    elif not tied and _HEAD not in held:
        yield (
            "fault",
            f"{inputs.model} holds no {_HEAD}, and its config.json says `tie_word_embeddings: false`: its head would "
            "be random. Save the model again, or set that to true if its head is its embedding",
        )
    elif tied and _HEAD in held and _content(held[_HEAD]) != _content(held[_EMBEDDING]):
        yield (
            "fault",
            f"{inputs.model} holds a {_HEAD} of its own, and its config.json says `tie_word_embeddings: true`: engine "
            "and trainer may each take another for its head. Set that to false, or remove the head",
        )
    else:
        yield "ok", "the head is the embedding" if tied else "the head has weights of its own"


def _is_tied(model: Path) -> bool:
    """Whether transformers ties the head. Model families have different defaults where the config does not say."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{model / 'config.json'}: not the config of a known model ({error}).") from error
    return bool(getattr(config.get_text_config(), "tie_word_embeddings", False))


def _content(tensor: Tensor) -> bytes:
    with tensor.path.open("rb") as file:
        file.seek(tensor.begin)
        return file.read(tensor.end - tensor.begin)


def engine_format(inputs: Inputs) -> str:
    """The number format in which the engine runs the starting policy."""
    dtype = inputs.config.engine.dtype
    return str(inputs.shape.get("dtype") or inputs.shape.get("torch_dtype")) if dtype == "auto" else dtype


def number_formats(inputs: Inputs) -> Iterator[Result]:
    """Whether engine and trainer use one number format, so that they compute the same policy; what `auto` is, and why.

    The formats of a config are decided by now, so they may be those of the machine where its run began.
    """
    sampled, trained = engine_format(inputs), DTYPES[inputs.config.train.precision]
    faster, reason = number_format()
    here = f"`auto` is {DTYPES[faster]} on this machine: {reason}"
    if sampled == trained:
        yield "ok", f"the policy is sampled and trained in {sampled}; {here}"
    else:
        yield (
            "warning",
            f"the policy is sampled in {sampled} (engine.dtype) and trained in {trained} (train.precision): their "
            f"log-probabilities differ by rounding. Use one format unless memory forbids it; {here}",
        )


def enough_prompts(inputs: Inputs) -> Iterator[Result]:
    """Whether there are prompts enough for a training step and for an evaluation, and short enough to train on."""
    config, train, heldout = inputs.config, len(inputs.train), len(inputs.heldout)
    pairs, step = _pairs_at_most(inputs), config.train.pairs_per_step
    smallest = detectable_difference(1.0, heldout)
    if pairs < step:
        yield (
            "warning",
            f"{train} training prompts give at most {pairs} pairs a round, and a step takes {step} "
            "(train.pairs_per_step): a round is a single, smaller step. Add prompts, or lower it",
        )
    if heldout < _FEW_HELDOUT:
        yield (
            "warning",
            f"{heldout} held-out prompts find a gain only if it is above {smallest:.1f} standard deviations of the "
            f"prompts' differences (four times out of five); {_FEW_HELDOUT} would find "
            f"{detectable_difference(1.0, _FEW_HELDOUT):.1f}. Add prompts to prompts.heldout",
        )
    longest = config.train.max_pair_tokens - config.generate.max_tokens
    too_long = sum(length > longest for length in inputs.lengths[:train])
    if too_long:
        yield (
            "warning",
            f"{too_long} of {train} training prompts leave a full completion no room in train.max_pair_tokens "
            f"({config.train.max_pair_tokens}): such pairs are dropped. Raise it",
        )
    if pairs >= step and heldout >= _FEW_HELDOUT and not too_long:
        yield (
            "ok",
            f"at most {pairs} pairs a round for steps of {step}; {heldout} held-out prompts find a gain above "
            f"{smallest:.2f} standard deviations of the prompts' differences, four times out of five",
        )


def _pairs_at_most(inputs: Inputs) -> int:
    pair, prompts = inputs.config.pair, len(inputs.train)
    if pair.strategy == "reference_worst":
        prompts = sum(row["reference"] is not None for row in inputs.train)
    return prompts * (1 if pair.strategy == "best_worst" else pair.max_pairs)


def disk(inputs: Inputs) -> Iterator[Result]:
    """Policies of all rounds, a training's checkpoints, and tables, against what is free."""
    config = inputs.config
    policy, checkpoints = disk_space.of_training(weights.parameters(inputs.model), config.train, _pairs_at_most(inputs))
    everything = _policies_at_most(config) * policy + config.rounds * _tables(inputs) + checkpoints + _merged(inputs)
    free = shutil.disk_usage(existing_folder(inputs)).free
    message = (
        f"{config.rounds} round(s) take about {everything / _GIB:,.2f} GiB (a policy {policy / _GIB:,.2f}, a "
        f"training's checkpoints {checkpoints / _GIB:,.2f} while it lasts); {free / _GIB:,.1f} GiB are free"
    )
    if everything <= free:
        yield "ok", message
    elif policy + checkpoints <= free:
        yield "warning", f"{message}. The run will stop in a later round unless you make room"
    else:
        yield "fault", f"{message}. Not even one round fits: make room, or raise train.checkpoint_steps"


def _merged(inputs: Inputs) -> int:
    """Bytes of the whole model that is made of an adapter: as many as of its base."""
    if inputs.found.adapter is None:
        return 0
    return sum(tensor.end - tensor.begin for tensor in weights.tensors(inputs.model).values())


def _policies_at_most(config: RunConfig) -> int:
    """The most policies on disk at one time: an old one is removed only after a new one (`pco.runs.retention`)."""
    return config.rounds if config.keep_last is None else min(config.rounds, config.keep_last + config.keep_best + 1)


def _tables(inputs: Inputs) -> int:
    """Bytes of a round's tables, as an upper estimate: token ids (4 bytes) and text (about as much), stored twice."""
    config = inputs.config
    completions = len(inputs.train) * config.generate.n + len(inputs.heldout) * (1 + config.evaluate.samples)
    return 2 * 8 * completions * (max(inputs.lengths) + config.generate.max_tokens)


@dataclass(frozen=True)
class Need:
    """Bytes of memory, roughly: a training process before its first step and at its peak, and the engine."""

    before: int
    training: int
    engine: int


# Of a process with deepspeed, or with vllm, before it holds a model: measured on Linux, CPU builds.
_TRAINER, _ENGINE = int(0.6 * _GIB), int(1.2 * _GIB)
# bf16 gradients are summed in float32.
_GRADIENT_BYTES = {"fp32": 4, "bf16": 6}
# Activations of one token in one layer for each unit of width, in 16 bit (Korthikanti et al., arXiv 2205.05198, eq. 2).
_ACTIVATION_BYTES, _CHECKPOINTED_BYTES = 34, 2


def need(inputs: Inputs) -> Need:
    """The memory that training and engine need for the longest prompts."""
    config, count = inputs.config, weights.parameters(inputs.model)
    state = _TRAINER + _training_state(count, config)
    saved = 2 * count * disk_space.WEIGHT_BYTES[config.train.precision]  # gathered, and in the model that is written
    held = count * (4 if engine_format(inputs) == "float32" else 2)
    cache = int(config.engine.kv_cache_gib * _GIB)
    return Need(state, state + saved + _activations(inputs), _ENGINE + held + cache)


def _training_state(count: int, config: RunConfig) -> int:
    train = config.train
    trained = 0 if train.lora else count
    share = [1 / train.processes if train.zero_stage >= stage else 1 for stage in (1, 2, 3)]
    sizes = (
        trained * disk_space.OPTIMIZER_BYTES[train.precision],
        trained * _GRADIENT_BYTES[train.precision],
        count * disk_space.WEIGHT_BYTES[train.precision],
    )
    return int(sum(size * part for size, part in zip(sizes, share, strict=True)))


def _activations(inputs: Inputs) -> int:
    train, shape = inputs.config.train, inputs.shape
    width = shape.get("hidden_size", shape.get("n_embd", 0))
    layers = shape.get("num_hidden_layers", shape.get("n_layer", 0))
    length = min(train.max_pair_tokens, max(inputs.lengths) + inputs.config.generate.max_tokens)
    bytes_each = _CHECKPOINTED_BYTES if train.gradient_checkpointing else _ACTIVATION_BYTES
    wide = 2 if train.precision == "fp32" else 1
    return int(2 * train.micro_batch_pairs * length * width * layers * bytes_each * wide)


def workers(inputs: Inputs) -> Iterator[Result]:
    """Whether this machine has the GPUs, or the cores, that the workers of its stages are to have."""
    executor = inputs.config.executor
    if executor.kind == "local":
        yield "ok", "each stage runs in one process"
        return
    if executor.kind == "ray":
        if not installed.has("ray"):
            yield "fault", "Ray is not installed where stages run: `pip install 'pco-pipeline[ray]'` on every machine"
        else:
            yield "ok", f"{executor.workers} workers on the Ray cluster at {executor.address}, which is not asked now"
        return
    count, each, cores = executor.workers, shares.gpus_needed(inputs.config), len(hardware.cores())
    shares.shares(inputs.config)  # raises BadInput
    if each:
        yield "ok", f"{count} workers have {each} of {len(hardware.gpus())} GPU(s) each"
    elif count > cores:
        yield (
            "fault",
            f"{count} workers (executor.workers) would share {cores} core(s), and take them from each other: at most "
            f"{cores}",
        )
    else:
        yield "ok", f"{count} workers share {cores} cores"


def memory(inputs: Inputs) -> Iterator[Result]:
    """Training and engine against the memory of the GPU, or of the machine when there is none."""
    needed, gpu = need(inputs), gpu_memory()
    engines = inputs.config.executor.workers if gpu is None else 1
    if gpu is None:
        processes, total = inputs.config.train.processes, machine_memory()
        available = engine_may = min(total, psutil.virtual_memory().available)
    else:
        processes, available, total = 1, gpu, gpu
        engine_may = int(gpu * inputs.config.engine.gpu_memory_utilization)
    training = processes * needed.training
    message = (
        f"training needs about {training / _GIB:,.1f} GiB, {_engines(engines)} {engines * needed.engine / _GIB:,.1f}; "
        f"{available / _GIB:,.1f} GiB are available{'' if gpu is None else ' on each GPU'}"
    )
    if processes * needed.before > total:
        yield "fault", f"{message}. Raise train.zero_stage and processes, or train adapters (train.lora)"
    elif training > available or engines * needed.engine > engine_may:
        fewer = ", or executor.workers" if engines > 1 else ""
        yield "warning", f"{message}. Lower train.micro_batch_pairs or engine.kv_cache_gib{fewer}, or free memory"
    else:
        yield "ok", message


def _engines(count: int) -> str:
    return "the engine" if count == 1 else f"the engines of {count} workers"


def machine_memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Bytes of memory that this machine, or this container, has."""
    total: int = psutil.virtual_memory().total
    limit_text = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(limit_text)) if limit_text.isdigit() else total
