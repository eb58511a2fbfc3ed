"""Generation and evaluation with the real vLLM, on a tiny model in float32, against transformers.

Every variant starts an engine, which takes seconds; each runs once and is shared by the tests that look at it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from data import store
from data.errors import StageFailed
from pco.execution import launcher
from pco.models.rendering import render
from pco.stage import Artifact, Stage
from tests import builders, tiny_model
from tests.points import Points

PROMPTS = ["the river", "a small town", "the old bridge", "her garden lights", "the night train", "a grey heron guards"]
TEXTS = [tiny_model.repetitive_text(seed) for seed in (901, 902)]

BASE = {
    "policy__prompt_format": "raw",
    "engine__dtype": "float32",
    "engine__kv_cache_gib": 0.1,
    "generate__n": 3,
    # Hot, so that odd bytes and early ends are sampled as well.
    "generate__temperature": 1.5,
    "generate__min_tokens": 2,
    "generate__max_tokens": 24,
    "generate__shard_size": 1,
}

Row = dict[str, Any]
RunStage = Callable[..., Stage]


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    rows = [
        *(builders.prompt_row(text) for text in PROMPTS),
        *(builders.prompt_row(text, "heldout") for text in PROMPTS[:3]),
        *(builders.prompt_row(text, "text") for text in TEXTS),
    ]
    return builders.finished(tmp_path_factory.mktemp("prompts") / "prompts", {"prompts": rows}, "prepare")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Path, prompts: Artifact, one_thread: None) -> RunStage:
    """A stage in a run of its own, finished, once per set of settings."""
    done: dict[str, Stage] = {}

    def run(name: Any, **settings: Any) -> Stage:
        key = repr((name, sorted(settings.items())))
        if key not in done:
            stage = stage_in(tmp_path_factory.mktemp("engine"), tiny, prompts, name, **settings)
            launcher.run(stage)
            done[key] = stage
        return done[key]

    return run


def stage_in(folder: Path, tiny: Path, prompts: Artifact, name: Any, **settings: Any) -> Stage:
    config = builders.config(folder, tiny, **{**BASE, **settings})
    return builders.stage(name, config, {"policy": builders.model(tiny), "prompts": prompts})


def rows_of(stage: Stage, table: str = "candidates") -> list[Row]:
    return store.read_table(stage.folder, table).to_pylist()


@pytest.fixture(scope="session")
def reference(tiny: Path) -> Any:
    """The same model in transformers."""
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)


@torch.no_grad()
def logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probability of every token but the first."""
    predicted = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return predicted.gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1).double()


# Sampling.


def test_every_prompt_has_n_samples_in_the_order_of_the_prompts(made: RunStage, tokenizer: Any) -> None:
    stage = made("generate")
    rows = rows_of(stage)
    assert [(row["prompt"], row["sample"]) for row in rows] == [(text, i) for text in PROMPTS for i in range(3)]
    for row in rows:
        assert row["prompt_token_ids"] == render(tokenizer, row["prompt"], stage.config.policy).token_ids
        assert row["policy"] == stage.inputs["policy"].fingerprint
        assert row["mode"] == "sampled"


def test_a_manifest_counts_all_samples_and_a_part_per_shard(made: RunStage) -> None:
    manifest = store.read_manifest(made("generate").folder)
    assert manifest is not None
    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (18, 18, {})
    assert [part.rows for part in manifest.parts] == [3] * 6
    assert manifest.metrics["tokens"] == sum(len(row["token_ids"]) for row in rows_of(made("generate")))


def test_the_samples_of_a_prompt_differ_and_so_do_their_seeds(made: RunStage) -> None:
    rows = rows_of(made("generate"))
    assert len({row["seed"] for row in rows}) == len(rows)
    for text in PROMPTS:
        own = [tuple(row["token_ids"]) for row in rows if row["prompt"] == text]
        assert len(set(own)) == len(own)


def test_completions_keep_to_the_length_limits_and_say_why_they_ended(made: RunStage, tokenizer: Any) -> None:
    for row in rows_of(made("generate")):
        assert 2 <= len(row["token_ids"]) <= 24
        ended = row["token_ids"][-1] == tokenizer.eos_token_id
        assert row["finish_reason"] == ("stop" if ended else "length")
        assert ended or len(row["token_ids"]) == 24
        assert tokenizer.eos_token_id not in row["token_ids"][:-1]


def test_the_text_is_what_the_tokens_say(made: RunStage, tokenizer: Any) -> None:
    for row in rows_of(made("generate")):
        assert row["completion"] == tokenizer.decode(row["token_ids"], skip_special_tokens=True)


def test_the_log_probability_is_that_of_transformers(made: RunStage, reference: Any) -> None:
    for row in rows_of(made("generate")):
        expected = logprobs(reference, row["prompt_token_ids"] + row["token_ids"])[-len(row["token_ids"]) :].sum()
        assert row["logprob"] == pytest.approx(float(expected), abs=1e-3)


def test_the_cut_into_shards_changes_no_candidate(made: RunStage) -> None:
    by_shard, together = rows_of(made("generate")), rows_of(made("generate", generate__shard_size=6))
    for row, other in zip(by_shard, together, strict=True):
        assert row | {"logprob": None} == other | {"logprob": None}
        assert row["logprob"] == pytest.approx(other["logprob"], abs=1e-3)


# Killed and resumed.


@pytest.mark.e2e
def test_a_killed_generation_keeps_its_shards_and_resumed_gives_the_same_bytes(
    made: RunStage, tiny: Path, prompts: Artifact, tmp_path: Path, points: Points
) -> None:
    uninterrupted = made("generate")
    stage = stage_in(tmp_path, tiny, prompts, "generate")
    assert stage.fingerprint == uninterrupted.fingerprint
    points.kill("candidates/candidates-00002.parquet", "group")
    with pytest.raises(StageFailed, match="killed by SIGKILL"):
        launcher.run(stage)
    kept = {path: path.stat().st_mtime_ns for path in parts_of(stage)}
    assert len(kept) == 2
    assert store.read_manifest(stage.folder) is None
    manifest = launcher.run(stage)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert manifest.metrics["tokens"] < sum(len(row["token_ids"]) for row in rows_of(stage))
    assert contents(stage) == contents(uninterrupted)


def parts_of(stage: Stage) -> list[Path]:
    return sorted(stage.folder.glob("candidates-*.parquet"))


def contents(stage: Stage) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in parts_of(stage)}


# Evaluation; with a stop string.


@pytest.fixture(scope="session")
def evaluation(made: RunStage) -> Stage:
    return made("evaluate", generate__stop=["."], generate__min_tokens=0, evaluate__samples=2, generate__shard_size=2)


def test_every_held_out_prompt_is_completed_greedily_and_sampled(evaluation: Stage) -> None:
    assert [(row["prompt"], row["mode"], row["sample"]) for row in rows_of(evaluation)] == [
        (text, mode, sample) for text in PROMPTS[:3] for mode, sample in (("greedy", 0), ("sampled", 0), ("sampled", 1))
    ]


def test_greedy_completions_are_those_of_transformers(evaluation: Stage, reference: Any, tokenizer: Any) -> None:
    for row in rows_of(evaluation):
        if row["mode"] == "greedy":
            prompt = torch.tensor([row["prompt_token_ids"]])
            whole = reference.generate(prompt, do_sample=False, max_new_tokens=24)[0, prompt.shape[1] :].tolist()
            count = len(row["token_ids"])
            assert count > 3
            assert whole[:count] == row["token_ids"]
            assert "." in tokenizer.decode(whole[count])


def test_a_stop_string_ends_a_completion_and_is_no_part_of_its_text_or_tokens(
    evaluation: Stage, tokenizer: Any, reference: Any
) -> None:
    rows = rows_of(evaluation)
    assert sum(row["finish_reason"] == "stop" for row in rows) >= 3
    for row in rows:
        assert "." not in row["completion"]
        assert row["completion"] == tokenizer.decode(row["token_ids"], skip_special_tokens=True)
        expected = logprobs(reference, row["prompt_token_ids"] + row["token_ids"])[len(row["prompt_token_ids"]) - 1 :]
        assert row["logprob"] == pytest.approx(float(expected.sum()), abs=1e-3)


def test_the_perplexity_of_human_text_is_that_of_transformers(
    evaluation: Stage, reference: Any, tokenizer: Any
) -> None:
    found = [logprobs(reference, tokenizer(text)["input_ids"]) for text in TEXTS]
    expected = math.exp(-float(torch.cat(found).mean()))
    manifest = store.read_manifest(evaluation.folder)
    assert manifest is not None
    assert manifest.metrics["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_an_evaluation_holds_a_row_per_measure_and_completion(evaluation: Stage) -> None:
    rows = rows_of(evaluation, "evaluations")
    assert {row["policy"] for row in rows} == {evaluation.inputs["policy"].fingerprint}
    for measure in ("reward", "repetition", "length"):
        assert sum(row["measure"] == measure for row in rows) == 9
    lengths = [row["value"] for row in rows if row["measure"] == "length"]
    assert lengths == [len(row["token_ids"]) for row in rows_of(evaluation)]


@pytest.mark.e2e
def test_two_evaluations_of_one_policy_are_even(made: RunStage, evaluation: Stage, tmp_path: Path) -> None:
    measured = builders.result(evaluation)
    inputs = {**evaluation.inputs, "start": measured, "previous": measured}
    again = builders.stage("evaluate", builders.changed(evaluation.config, runs_dir=str(tmp_path)), inputs)
    metrics = launcher.run(again).metrics
    assert metrics["win_vs_start"] == metrics["win_vs_previous"] == 0.5
    # Read again, the start's own samples are as likely as when they were sampled.
    assert (metrics["kl"], metrics["drift"]) == (pytest.approx(0, abs=1e-3), pytest.approx(0, abs=1e-3))
    assert [row["token_ids"] for row in rows_of(again)] == [row["token_ids"] for row in rows_of(evaluation)]


@pytest.mark.e2e
def test_weights_that_the_engine_cannot_read_end_the_stage_with_the_last_lines_of_its_log(
    tiny: Path, prompts: Artifact, tmp_path: Path, one_thread: None
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 999 if file.suffix == ".safetensors" else None])
    told = r"(?s)round 1/2 · generate: its process ended with status 1.*generate\.log.*vllm"
    with pytest.raises(StageFailed, match=told):
        launcher.run(stage_in(tmp_path, broken, prompts, "generate"))
