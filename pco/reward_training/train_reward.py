"""Stage `train_reward`: a reward model learns from the preferences with DeepSpeed, with the loop that trains policies.

Runs once per rank. Every rank reads the same pairs and derives the same steps; rank 0 writes.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from data import schemas, store
from data.errors import BadInput
from pco.config.reward_training import RewardTrain, RewardTraining
from pco.models.protocols import Classifier, Model
from pco.models.rendering import load_tokenizer
from pco.reward_training.bradley_terry import (
    STATISTICS,
    Batch,
    BradleyTerry,
    Compared,
    compared_of,
    length_differences,
    length_weight,
    log_row,
    micro_batches,
    training_rows,
)
from pco.reward_training.order import verified
from pco.reward_training.pairs import padding
from pco.seeds import seed_of
from pco.stage import Stage
from pco.training import loop
from pco.training.batches import Step, steps


def run(stage: Stage[RewardTraining]) -> store.Manifest | None:
    """Write the `reward_log` table and the trained model's folder; rank 0 returns the manifest."""
    started = stage.launched()
    loop.start_ranks()
    train, start = stage.config.train, verified(stage).folder
    table = store.read_table(stage.inputs["pairs"].folder, "reward_pairs")
    weight = length_weight(length_differences(training_rows(table)))
    compared = compared_of(table, train, weight)
    torch.manual_seed(seed_of("head", stage.config.seed))  # the first values of head and adapters are random
    learner = BradleyTerry(_model(start, train), train)
    job = _job(stage, learner, compared)
    engine, log = loop.learn(job)
    state = loop.gathered(engine, learner.model)
    if not loop.is_writer():
        return None
    folder = stage.model_folder
    loop.save(state, _model(start, train), start, folder)
    store.write_part(stage.folder, "reward_log", 0, schemas.build("reward_log", log), stage.fingerprint)
    return loop.finish(
        job,
        log,
        folder,
        unit="pairs",
        rows_in=len(compared),
        rows_out=len(compared),
        dropped={},
        started=started,
        metrics={"length_weight": weight},
    )


def _job(stage: Stage[RewardTraining], learner: BradleyTerry, compared: list[Compared]) -> loop.Job[Compared]:
    train, seed = stage.config.train, str(stage.config.seed)
    pad = learner.model.config.get_text_config().pad_token_id
    assert pad is not None  # `_model` sets it

    def shares(step: Step[Compared], rank: int, world: int) -> Iterator[Batch]:
        return micro_batches(step, rank=rank, world=world, size=train.micro_batch_pairs, pad=pad)

    return loop.Job(
        stage,
        seed,
        learner,
        STATISTICS,
        list(steps(compared, pairs_per_step=train.pairs_per_step, epochs=train.epochs, seed=seed)),
        shares,
        lambda step: len(step.examples),
        log_row,
        "Lower train.learning_rate, or use precision: fp32.",
    )


def _model(folder: Path, train: RewardTrain) -> Classifier:
    """A classifier of one label; only its head, or a pooling layer before it, may be new."""
    transformers_logging.set_verbosity_error()  # a new head is expected
    model, loading_info = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=loop.dtype(train), output_loading_info=True
    )
    body = f"{model.base_model_prefix}."
    lost = [name for name in loading_info["missing_keys"] if name.startswith(body) and ".pooler." not in name]
    if lost:
        raise BadInput(f"{folder}: its weights lack {', '.join(sorted(lost)[:3])}: not a whole model (`model`).")
    settings = model.config.get_text_config()
    settings.pad_token_id = padding(model.config, load_tokenizer(folder), folder)
    _without_dropout(model)
    prepared: Classifier = loop.prepared(model, train, task="SEQ_CLS")
    return prepared


def _without_dropout(model: Model) -> None:
    """Switch dropout off: its noise would look like a preference between the two texts of a pair.

    With it, results would also depend on the micro-batches. Adapters are added later and keep their dropout.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
