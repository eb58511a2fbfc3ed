"""Training with the real DeepSpeed, on a tiny model in float32: how the work is split changes nothing but rounding.

Every variant starts processes, which takes seconds; each is trained once and shared by the tests that look at it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from data import files, store
from data.errors import BadInput, StageFailed
from pco.config.run import Policy
from pco.execution import launcher
from pco.models.rendering import load_tokenizer, render
from pco.stage import Artifact, Stage, round_folder
from pco.training.batches import examples_of, steps
from tests import builders
from tests.points import Points

PAIRS = 9
PAIRS_PER_STEP = 4  # so that the last step has one pair, and its second rank none
LIMIT = 75  # tokens; some pairs are longer

# Sums in another order differ in the last bits, and Adam's division magnifies that where gradients nearly vanish.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

BASE = {
    "train__precision": "fp32",
    "train__learning_rate": 1e-3,
    "train__pairs_per_step": PAIRS_PER_STEP,
    "train__micro_batch_pairs": 8,
    "train__epochs": 2,
}


@dataclass(frozen=True)
class Trained:
    """What a finished training left on disk."""

    stage: Stage
    manifest: store.Manifest

    @property
    def policy(self) -> Path:
        return round_folder(self.stage.config, 1) / "policy"

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.policy / "model.safetensors")

    @property
    def log(self) -> list[dict[str, Any]]:
        return store.read_table(self.stage.folder, "train_log").to_pylist()


Train = Callable[..., Trained]


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Artifact:
    rows = builders.pair_rows(tokenizer, PAIRS)
    return builders.finished(tmp_path_factory.mktemp("pairs") / "pairs", {"pairs": rows}, "pair")


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory, tiny: Path, pairs: Artifact, one_thread: None) -> Train:
    """Train with some settings, once per set of settings."""
    done: dict[str, Trained] = {}

    def trained(**settings: Any) -> Trained:
        key = repr(sorted(settings.items()))
        if key not in done:
            config = builders.config(tmp_path_factory.mktemp("training"), tiny, **{**BASE, **settings})
            stage = builders.stage("train", config, {"policy": builders.model(tiny), "pairs": pairs})
            done[key] = Trained(stage, launcher.run(stage))
        return done[key]

    return trained


def same_training(one: Trained, other: Trained) -> None:
    """Both went the same way to the same weights."""
    columns = (
        "step",
        "epoch",
        "pairs",
        "tokens",
        "loss",
        "margin",
        "gate",
        "ce",
        "cringe",
        "learning_rate",
        "grad_norm",
    )
    for row, other_row in zip(one.log, other.log, strict=True):
        for column in columns:
            value = other_row[column]  # None where the loss has no such quantity
            # A margin is the difference of two sums of many nats each, whose rounding it keeps however small it is.
            rounding = 1e-4 if column == "margin" else 1e-6
            expected = None if value is None else pytest.approx(value, rel=1e-4, abs=rounding)
            assert row[column] == expected, (row["step"], column)
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        torch.testing.assert_close(weight, other.weights[name], **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


def test_a_step_changes_the_weights_far_more_than_two_equal_trainings_differ(train: Train, tiny: Path) -> None:
    before, after = load_file(tiny / "model.safetensors"), train().weights
    moved = [float((after[name] - weight).abs().max()) for name, weight in before.items()]
    assert min(moved) > 100 * CLOSE["atol"]


SPLITS = [
    {"train__micro_batch_pairs": 1, "train__fused_head": False, "train__layout": "padded"},
    {
        "train__micro_batch_pairs": 3,
        "train__zero_stage": 3,
        "train__gradient_checkpointing": True,
        "train__layout": "shared",
    },
    {"train__micro_batch_pairs": 1, "train__processes": 2, "train__zero_stage": 2, "train__layout": "shared"},
]

ONE_BY_ONE = [
    {"train__micro_batch_pairs": 1},
    {"train__micro_batch_pairs": 3},
    {"train__fused_head": False},
    {"train__layout": "padded"},
    {"train__layout": "shared"},
    {"train__layout": "shared", "train__processes": 2, "train__zero_stage": 3, "train__micro_batch_pairs": 1},
    {"train__gradient_checkpointing": True},
    {"train__zero_stage": 1},
    {"train__zero_stage": 2},
    {"train__zero_stage": 3},
    *({"train__processes": 2, "train__zero_stage": zero, "train__micro_batch_pairs": 1} for zero in (0, 1, 3)),
]


def named(settings: dict[str, Any]) -> str:
    return ",".join(f"{name.removeprefix('train__')}={value}" for name, value in settings.items())


@pytest.mark.e2e
@pytest.mark.parametrize("settings", SPLITS, ids=named)
def test_several_ways_to_split_the_work_at_once_change_nothing(train: Train, settings: dict[str, Any]) -> None:
    same_training(train(**settings), train())


@pytest.mark.e2e
@pytest.mark.parametrize("settings", ONE_BY_ONE, ids=named)
def test_no_single_way_to_split_the_work_changes_anything(train: Train, settings: dict[str, Any]) -> None:
    same_training(train(**settings), train())


def test_the_log_of_the_first_step_says_what_transformers_says_of_the_starting_policy(
    train: Train, tiny: Path, pairs: Artifact
) -> None:
    expected = margins_and_cross_entropies(tiny, pairs)
    first = train().log[0]
    in_step = first_step(train())
    assert first["pairs"] == PAIRS_PER_STEP
    assert first["margin"] == pytest.approx(sum(expected[pair][0] for pair in in_step) / PAIRS_PER_STEP, rel=1e-4)
    assert first["ce"] == pytest.approx(sum(expected[pair][1] for pair in in_step) / PAIRS_PER_STEP, rel=1e-4)


def first_step(trained: Trained) -> list[str]:
    """The prompt ids of the pairs of the first step."""
    rows = store.read_table(trained.stage.inputs["pairs"].folder, "pairs").to_pylist()
    order = steps(examples_of(rows), pairs_per_step=PAIRS_PER_STEP, epochs=1, seed="0:1")
    return [example.pair_id.split(":")[0] for example in next(order).examples]


def margins_and_cross_entropies(model_folder: Path, pairs: Artifact) -> dict[str, tuple[float, float]]:
    """By hand, pair by pair, without padding."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    found = {}
    for row in store.read_table(pairs.folder, "pairs").to_pylist():
        chosen, rejected = (
            logprob(model, row["prompt_token_ids"], row[side]) for side in ("chosen_token_ids", "rejected_token_ids")
        )
        found[row["prompt_id"]] = (chosen - rejected, -chosen)
    return found


@torch.no_grad()
def logprob(model: Any, prompt: list[int], completion: list[int]) -> float:
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return sum(float(logits[len(prompt) + i - 1, token]) for i, token in enumerate(completion))


def test_every_epoch_trains_on_every_pair_and_counts_its_tokens(train: Train, pairs: Artifact) -> None:
    rows = store.read_table(pairs.folder, "pairs").to_pylist()
    tokens = sum(len(row["chosen_token_ids"]) + len(row["rejected_token_ids"]) for row in rows)
    for epoch in (0, 1):
        of_epoch = [row for row in train().log if row["epoch"] == epoch]
        assert [row["pairs"] for row in of_epoch] == [4, 4, 1]
        assert sum(row["tokens"] for row in of_epoch) == tokens


def test_a_finished_training_is_not_done_again(train: Train) -> None:
    done = train()
    before = files_and_times(done.stage.config.folder)
    assert launcher.run(done.stage) == done.manifest
    assert files_and_times(done.stage.config.folder) == before


def files_and_times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_manifest_names_the_policy_that_was_saved(train: Train) -> None:
    assert train().manifest.outputs["policy"] == files.folder_digest(train().policy)


def test_tied_weights_are_saved_once_and_tied_again_when_loaded(train: Train) -> None:
    trained = train()
    assert "lm_head.weight" not in trained.weights
    model = AutoModelForCausalLM.from_pretrained(trained.policy)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, trained.weights["model.embed_tokens.weight"])


def test_the_saved_policy_renders_prompts_as_the_starting_one(train: Train, tokenizer: Any) -> None:
    saved = load_tokenizer(train().policy)
    for prompt_format in ("raw", "chat"):
        policy = Policy(model="any", prompt_format=prompt_format)
        assert render(saved, "the river", policy) == render(tokenizer, "the river", policy)


def test_bf16_training_follows_float32_and_saves_bf16_weights(train: Train) -> None:
    rounded = train(train__precision="bf16", train__zero_stage=1)
    assert {weight.dtype for weight in rounded.weights.values()} == {torch.bfloat16}
    for row, exact in zip(rounded.log, train().log, strict=True):
        assert row["ce"] == pytest.approx(exact["ce"], rel=0.05)
    assert rounded.log[-1]["loss"] != train().log[-1]["loss"]


LORA = {"train__lora": {"r": 4, "alpha": 8.0}}


def test_adapters_are_merged_into_a_full_policy_that_loads_anywhere(train: Train, tiny: Path) -> None:
    trained = train(**LORA)
    before = load_file(tiny / "model.safetensors")
    assert trained.weights.keys() == before.keys()
    assert not list(trained.policy.glob("adapter*"))
    AutoModelForCausalLM.from_pretrained(trained.policy)
    adapted = {name for name, weight in trained.weights.items() if not torch.equal(weight, before[name])}
    assert adapted == {name for name in before if "_proj" in name}


def test_sft_learns_the_chosen_completions_of_those_pairs_that_fit_and_counts_the_others(
    train: Train, pairs: Artifact, tiny: Path
) -> None:
    rows = store.read_table(pairs.folder, "pairs").to_pylist()
    fitting = [example for example in examples_of(rows) if example.longest <= LIMIT]
    assert 0 < len(fitting) < PAIRS
    trained = train(train__loss={"kind": "sft"}, train__max_pair_tokens=LIMIT, train__pairs_per_step=PAIRS)
    assert trained.manifest.dropped == {"longer than max_pair_tokens": PAIRS - len(fitting)}
    assert (trained.manifest.rows_in, trained.manifest.rows_out) == (PAIRS, len(fitting))
    first, last = trained.log[0], trained.log[-1]
    assert first["pairs"] == len(fitting)
    assert first["tokens"] == sum(len(example.chosen) for example in fitting)
    by_hand = margins_and_cross_entropies(tiny, pairs)
    total = sum(by_hand[example.pair_id.split(":")[0]][1] for example in fitting)
    assert first["loss"] == pytest.approx(total / first["tokens"], rel=1e-4)
    assert last["loss"] < first["loss"]
    assert (first["margin"], first["gate"], first["cringe"]) == (None, None, None)


@pytest.mark.e2e
def test_pairs_none_of_which_fits_are_refused(train: Train) -> None:
    with pytest.raises(BadInput, match=r"train\.max_pair_tokens: all 9 pairs .*are longer than 8 tokens"):
        train(train__max_pair_tokens=8)


@pytest.mark.e2e
@pytest.mark.parametrize("zero", [0, 3])
def test_adapters_learn_the_same_whatever_the_split(train: Train, zero: int) -> None:
    split = {"train__processes": 2, "train__zero_stage": zero, "train__micro_batch_pairs": 1}
    same_training(train(**LORA, **split), train(**LORA))


@pytest.mark.e2e
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_bf16_trains_under_every_zero_stage(train: Train, zero: int) -> None:
    split = {"train__zero_stage": zero, "train__processes": 2, "train__micro_batch_pairs": 1}
    rounded, exact = train(train__precision="bf16", **split), train()
    assert {weight.dtype for weight in rounded.weights.values()} == {torch.bfloat16}
    for row, exact_row in zip(rounded.log, exact.log, strict=True):
        assert row["ce"] == pytest.approx(exact_row["ce"], rel=0.05)


@pytest.mark.e2e
@pytest.mark.parametrize("loss", [{"gate": "hard"}, {"gate": "off"}, {"detach_gate": True}], ids=str)
def test_the_fused_head_trains_as_the_plain_one_with_every_gate(train: Train, loss: dict[str, Any]) -> None:
    loss = {"train__loss": {"kind": "pairwise_cringe", **loss}}
    same_training(train(**loss, train__fused_head=False), train(**loss))


WITHOUT_REFERENCE: list[dict[str, Any]] = [
    {"kind": "simpo"},
    {"kind": "pairwise_cringe"},
    {"kind": "python", "module": "hinge_loss", "folder": str(Path(__file__).parent)},
]


@pytest.mark.e2e
@pytest.mark.parametrize("loss", WITHOUT_REFERENCE, ids=lambda loss: loss["kind"])
def test_every_loss_without_a_reference_learns_the_same_whatever_the_split_and_more_of_the_chosen_with_an_sft_term(
    train: Train, loss: dict[str, Any]
) -> None:
    def of_epoch(trained: Trained, name: str, epoch: int) -> float:
        # Over all pairs: a step's own numbers depend on which pairs it has.
        return sum(row[name] * row["pairs"] for row in trained.log if row["epoch"] == epoch)

    with_sft = loss | {"sft_weight": 5.0}
    together, without = train(train__loss=with_sft), train(train__loss=loss)
    split = {"train__processes": 2, "train__zero_stage": 3, "train__micro_batch_pairs": 1, "train__fused_head": False}
    same_training(train(train__loss=with_sft, **split), together)
    assert of_epoch(without, "margin", 1) > of_epoch(without, "margin", 0)
    assert of_epoch(together, "ce", 1) < of_epoch(without, "ce", 1)


@pytest.mark.e2e
def test_unlikelihood_learns_the_same_under_zero_3_and_tells_chosen_from_rejected(train: Train) -> None:
    loss = {"train__loss": {"kind": "unlikelihood"}}
    trained = train(**loss)
    same_training(train(**loss, train__processes=2, train__zero_stage=3, train__micro_batch_pairs=1), trained)
    margins = [(row["epoch"], row["margin"] * row["pairs"]) for row in trained.log]
    first, last = (sum(margin for epoch, margin in margins if epoch == wanted) for wanted in (0, 1))
    assert last > first


@pytest.mark.e2e
def test_equal_trainings_give_equal_bytes(train: Train) -> None:
    # A time limit is no part of the result, and makes this another run.
    again = train(stage_timeout_s=600)
    assert again.stage.fingerprint == train().stage.fingerprint
    assert files.folder_digest(again.policy) == files.folder_digest(train().policy)


@pytest.mark.e2e
def test_a_training_that_was_killed_starts_again_and_ends_the_same(
    train: Train, tiny: Path, pairs: Artifact, tmp_path: Path, points: Points
) -> None:
    config = builders.config(tmp_path, tiny, **BASE)
    stage = builders.stage("train", config, {"policy": builders.model(tiny), "pairs": pairs})
    points.kill("round-01/.policy.tmp", "self")
    with pytest.raises(StageFailed, match="SIGKILL"):
        launcher.run(stage)
    assert store.read_manifest(stage.folder) is None
    launcher.run(stage)
    assert files.folder_digest(round_folder(config, 1) / "policy") == files.folder_digest(train().policy)
