"""Learned rewards: a score depends on prompt and completion alone, and what cannot score is refused."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from data import store
from data.errors import BadInput, CorruptArtifact
from pco import rewards
from pco.config.reward import ModelReward, settings
from pco.doctor import checks
from pco.evaluation import metrics
from pco.execution import launcher
from pco.models.engine import Completion, Request
from pco.rewards import model
from pco.rewards.model import TOO_LONG
from pco.stage import Stage
from pco.stages import evaluate, score
from tests import builders, tiny_model, tiny_reward
from tests.pco.rewards.test_rewards import scoring


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A reward model with a chat template and no padding token; do not write into it."""
    return tiny_reward.make(tmp_path_factory.mktemp("rewards") / "judge", tokenizer)


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A reward model with a padding token in its config."""
    return tiny_reward.make(tmp_path_factory.mktemp("rewards") / "padded", tokenizer, pad=tokenizer.pad_token_id)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A reward model that reads in both directions."""
    return tiny_reward.make_encoder(tmp_path_factory.mktemp("rewards") / "encoder", tokenizer)


@pytest.fixture
def copy(judge: Path, tmp_path: Path) -> Path:
    """A reward model that a test may spoil."""
    return shutil.copytree(judge, tmp_path / "copy")


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Candidates of very different lengths."""
    sentences = tiny_model.sentences(2 * count, seed)
    return [
        {**builders.candidate_row(sample=i), "source_prompt": sentences[2 * i], "completion": text[: 1 + 7 * (i % 5)]}
        for i, text in enumerate(sentences[1::2])
    ]


def values(config: ModelReward, candidates: list[dict[str, Any]]) -> list[float]:
    return [score.value for score in rewards.load(config).score(candidates)]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Laws.


@pytest.mark.engine
@pytest.mark.parametrize("name", ["judge", "padded", "encoder"])
def test_a_score_depends_neither_on_batch_size_nor_on_padding_nor_on_order(
    name: str, request: pytest.FixtureRequest
) -> None:
    folder, candidates = str(request.getfixturevalue(name)), rows(12)
    alone = values(ModelReward(model=folder, max_tokens_per_batch=1), candidates)
    assert max(alone) - min(alone) > 0.01
    for budget in (60, 200, 10_000):
        config = ModelReward(model=folder, max_tokens_per_batch=budget)
        assert values(config, candidates) == pytest.approx(alone, abs=1e-5)
        assert values(config, candidates[::-1]) == pytest.approx(alone[::-1], abs=1e-5)


@pytest.mark.engine
@pytest.mark.parametrize("name", ["judge", "padded", "encoder"])
def test_a_score_is_the_logit_of_the_model_for_the_rendered_dialogue_alone(
    name: str, request: pytest.FixtureRequest, tokenizer: Any
) -> None:
    folder, candidates = request.getfixturevalue(name), rows(6)
    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for row in candidates:
        dialogue = [
            {"role": "user", "content": row["source_prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        ids = tokenizer.apply_chat_template(dialogue, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            expected.append(network(input_ids=ids).logits.item())
    assert values(ModelReward(model=str(folder)), candidates) == pytest.approx(expected, abs=1e-5)


def test_a_batch_that_uses_every_token_is_still_scored(judge: Path) -> None:
    loaded = model.load(ModelReward(model=str(judge)))
    size = loaded.model.config.vocab_size
    texts = [list(range(start, min(start + 60, size))) for start in range(0, size, 60)] + [[1, 2]]
    alone = [model.logits(loaded, [text])[0] for text in texts]
    assert model.logits(loaded, texts) == pytest.approx(alone, abs=1e-5)
    assert model.logits(loaded, texts[:2]) == pytest.approx(alone[:2], abs=1e-5)


def test_what_stands_in_for_padding_is_never_taken_for_the_end_of_a_text(judge: Path) -> None:
    loaded = model.load(ModelReward(model=str(judge)))
    texts = [[5, 6, 7, 8], [3, 0], [4, 1], [9, 2, 0]]
    alone = [model.logits(loaded, [text])[0] for text in texts]
    assert model.logits(loaded, texts) == pytest.approx(alone, abs=1e-5)


@given(lengths=st.lists(st.integers(1, 40), max_size=30), budget=st.integers(1, 200))
def test_batches_hold_every_text_once_and_keep_to_the_budget(lengths: list[int], budget: int) -> None:
    made = list(model.batches(lengths, budget))
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in made)
    longest = [max(lengths[i] for i in batch) for batch in made]
    assert longest == sorted(longest, reverse=True)


# vLLM's pooling mode.


@pytest.mark.e2e
def test_vllm_and_transformers_give_the_same_scores(tmp_path: Path, tokenizer: Any) -> None:
    """Two models in one engine process: one without padding, one whose padding is what its texts end in."""
    pads = {"plain": None, "padded": tokenizer.eos_token_id}
    folders = [tiny_reward.make(tmp_path / name, tokenizer, pad=pad, head=32) for name, pad in pads.items()]
    candidates, out = rows(12), tmp_path / "scores.json"
    candidates[5]["completion"] = "z" * tiny_reward.CONTEXT
    # In a process of its own, since vLLM changes the one that it runs in.
    program = (
        "import json, sys; from pathlib import Path\n"
        "from pco import rewards; from pco.config.reward import EnsembleReward\n"
        "config, rows, out = sys.argv[1:]\n"
        "scores = rewards.load(EnsembleReward.model_validate_json(config)).score(json.loads(rows))\n"
        "assert 'vllm' in sys.modules\n"
        "Path(out).write_text(json.dumps([[score.members, score.dropped] for score in scores]))"
    )
    members = [{"reward": {"kind": "model", "model": str(folder)}} for folder in folders]
    given = [json.dumps({"kind": "ensemble", "members": members}), json.dumps(candidates), str(out)]
    subprocess.run([sys.executable, "-c", program, *given], check=True, env={**os.environ, **launcher.ENVIRONMENT})
    found = json.loads(out.read_text())
    for i, folder in enumerate(folders):
        expected = rewards.load(ModelReward(model=str(folder), backend="transformers")).score(candidates)
        for (scores, dropped), alone in zip(found, expected, strict=True):
            assert scores[i] == pytest.approx(alone.value, abs=1e-5, nan_ok=True)
            assert dropped == alone.dropped
    assert [dropped for _, dropped in found].count(TOO_LONG) == 1


def test_what_vllm_cannot_score_is_left_to_transformers_or_refused(
    tmp_path: Path, copy: Path, encoder: Path, tokenizer: Any
) -> None:
    assert "attention heads have size 16" in refused(copy, backend="vllm")
    assert "it is RobertaForSequenceClassification" in refused(encoder, backend="vllm")
    fits = tiny_reward.make(tmp_path / "m", tokenizer, head=32)
    assert "may have 96 tokens and a batch 95" in refused(fits, backend="vllm", max_tokens_per_batch=95)
    edit(fits / "config.json", dtype=None)
    assert "number format; set dtype" in refused(fits, backend="vllm")
    drop_head(fits)
    assert "its weights lack its head (score.weight)" in refused(fits, backend="vllm", dtype="float32")


def test_the_backend_is_no_part_of_a_stages_settings(judge: Path) -> None:
    assert "backend" not in settings(ModelReward(model=str(judge), backend="vllm"))


# How a candidate becomes tokens.


def rendered(tokenizer: Any, **knobs: Any) -> str:
    config = ModelReward(model="any", **knobs)
    text: str = tokenizer.decode(model.rendered(tokenizer, "a prompt", " an answer", config))
    return text


@pytest.fixture
def change(judge: Path) -> Callable[..., Any]:
    """The tokenizer with something else about it."""
    from pco.models.rendering import load_tokenizer

    def changed(**attributes: Any) -> Any:
        found = load_tokenizer(judge)
        for name, value in attributes.items():
            setattr(found, name, value)
        return found

    return changed


def test_the_chat_template_is_the_reward_models_own_with_one_beginning_and_one_end(change: Callable[..., Any]) -> None:
    assert rendered(change()) == "<s><|user|>a prompt</s><|assistant|> an answer</s>"
    told = rendered(change(), system="Judge.")
    assert told == "<s><|system|>Judge.</s><|user|>a prompt</s><|assistant|> an answer</s>"


def test_without_a_chat_template_prompt_and_completion_are_plain_text(change: Callable[..., Any]) -> None:
    assert rendered(change(chat_template=None)) == "<s>a prompt an answer</s>"
    assert rendered(change(chat_template=None), append_eos=False) == "<s>a prompt an answer"


@pytest.mark.parametrize(
    ("end", "expected"),
    [("", "</s>"), ("\n", "\n</s>"), ("</s>", "</s>"), ("</s>\n", "</s>\n"), ("<|user|>", "<|user|>")],
)
def test_the_end_of_text_is_added_only_where_no_special_token_ends_the_text(
    change: Callable[..., Any], end: str, expected: str
) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}" + end.replace("\n", "{{ '\\n' }}")
    assert rendered(change(chat_template=template)) == "a prompt an answer" + expected
    assert rendered(change(chat_template=template), append_eos=False) == "a prompt an answer" + end
    no_end = change(chat_template=template, eos_token=None)
    assert rendered(no_end) == "a prompt an answer" + end


def test_a_template_that_begins_the_text_twice_begins_it_once(change: Callable[..., Any]) -> None:
    twice = "{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert rendered(change(chat_template=twice)) == "<s>a prompt an answer</s>"


# What is too long.


def test_a_text_that_is_too_long_gets_no_reward_and_the_longest_that_fits_does(judge: Path) -> None:
    candidates = [{**rows(1)[0], "source_prompt": "z", "completion": "z" * n} for n in range(1, tiny_reward.CONTEXT)]
    lengths = [len(model.reads(ModelReward(model=str(judge)), "z", row["completion"])[1]) for row in candidates]
    assert {tiny_reward.CONTEXT, tiny_reward.CONTEXT + 1} <= set(lengths)
    for limit in (None, 20):
        config = ModelReward(model=str(judge), max_tokens=limit)
        fits = [length <= (limit or tiny_reward.CONTEXT) for length in lengths]
        scored = rewards.load(config).score(candidates)
        assert [score.dropped is None for score in scored] == fits
        assert {score.dropped for score in scored} == {None, TOO_LONG}


def test_too_long_candidates_are_counted_by_the_stage(tmp_path: Path, judge: Path) -> None:
    candidates = [builders.candidate_row("p", i, tokens=range(n)) for i, n in enumerate((2, 90, 3))]
    stage = scoring(tmp_path, {"kind": "model", "model": str(judge)}, candidates)
    assert score.run(stage).dropped == {"reward is not finite": 0, TOO_LONG: 1}
    kept = store.read_table(stage.folder, "scores").to_pylist()
    assert [row["sample"] for row in kept] == [0, 2]
    assert all(math.isfinite(row["reward"]) for row in kept)


# What is refused.


def refused(folder: Path | str, **knobs: Any) -> str:
    """Refused before any work, and again where the model is loaded."""
    config = ModelReward(model=str(folder), **knobs)
    with pytest.raises(BadInput) as caught:
        rewards.check(config, {})
    with pytest.raises(BadInput):
        rewards.load(config)
    return str(caught.value)


def test_several_labels_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    assert "has 3 labels; a reward model has one" in refused(tiny_reward.make(tmp_path / "m", tokenizer, labels=3))


def test_a_language_model_is_refused(tiny: Path) -> None:
    assert "is LlamaForCausalLM; a reward model is a sequence classifier" in refused(tiny)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("./no/such", "not a hub id either"),
        ("nobody/nothing", "hub did not give it"),
        ("/no/such", "not a hub id either"),
    ],
)
def test_a_model_that_is_not_there_is_refused(name: str, told: str) -> None:
    message = refused(name)
    assert told in message and "`reward.model`" in message


@pytest.mark.parametrize(
    ("file", "told"), [("config.json", "has no config.json"), ("model.safetensors", "no *.safetensors weights")]
)
def test_a_folder_without_a_needed_file_is_refused(copy: Path, file: str, told: str) -> None:
    (copy / file).unlink()
    assert told in refused(copy)


def test_a_folder_that_is_damaged_is_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "not whole safetensors" in refused(copy)
    edit(copy / "config.json", model_type="unheard-of")
    weights.write_bytes(b"")
    assert "not whole safetensors" in refused(copy)


def test_an_unknown_architecture_is_refused(copy: Path) -> None:
    edit(copy / "config.json", model_type="unheard-of")
    assert "not the config of a known model" in refused(copy)
    edit(copy / "config.json", model_type="llama", architectures=None)
    assert "is of unknown architecture" in refused(copy)


def test_a_folder_without_a_tokenizer_is_refused(copy: Path) -> None:
    for file in copy.glob("*token*"):
        file.unlink()
    assert "no tokenizer could be loaded" in refused(copy)


def test_a_system_message_without_a_place_for_it_is_refused(copy: Path) -> None:
    (copy / "chat_template.jinja").write_text("{{ raise_exception('no system') if messages[0]['role'] == 'system' }}")
    rewards.check(ModelReward(model=str(copy)), {})
    assert "refused a dialogue of ['system', 'user', 'assistant'] (TemplateError: no system)" in refused(
        copy, system="Judge."
    )
    (copy / "chat_template.jinja").unlink()
    assert "no chat template" in refused(copy, system="Judge.")


def drop_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_without_the_head_are_refused_when_they_are_loaded(copy: Path) -> None:
    drop_head(copy)
    with pytest.raises(BadInput, match=r"weights .*score\.weight"):
        rewards.load(ModelReward(model=str(copy)))


def test_what_the_reward_needs_is_checked_with_all_else_before_a_run(tmp_path: Path, tiny: Path, judge: Path) -> None:
    builders.write_prompts(tmp_path, ["the river"], ["a grey heron"])
    good = builders.config(tmp_path, tiny, generate__max_tokens=16, reward={"kind": "model", "model": str(judge)})
    checks.check(good)
    two = {"kind": "ensemble", "members": [{"reward": good.reward.model_dump()}, {"reward": {"kind": "repetition"}}]}
    checks.check(builders.changed(good, reward=two))
    two["members"][1] = {"reward": {"kind": "model", "model": str(tiny)}}  # type: ignore[index]
    for bad, told in (
        (two, "a reward model is a sequence classifier"),
        ({"kind": "exact_answer", "pattern": "(a)"}, r"train\.jsonl: prompt .* has no `reference`"),
        ({"kind": "python", "function": "absent:judge", "folder": str(tmp_path)}, "no Python file"),
        ({"kind": "json_schema", "file": str(tmp_path / "absent.json")}, "could not be read"),
    ):
        with pytest.raises(BadInput, match=told):
            checks.check(builders.changed(good, reward=bad))


# What names a model.


def test_the_same_files_are_the_same_reward_and_others_are_not(copy: Path) -> None:
    def names(**knobs: Any) -> tuple[str, str]:
        config = ModelReward(model=str(copy), **knobs)
        given = builders.config(copy.parent, reward=config.model_dump())
        return rewards.load(config).digest, rewards.inputs(Stage("score", 1, given, {}))["reward"].fingerprint

    before = names()
    assert names(max_tokens_per_batch=9) == before
    assert names(append_eos=False)[0] != before[0]
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    after = names()
    assert after[0] != before[0] and after[1] != before[1]


def test_how_many_texts_share_a_batch_is_no_part_of_a_stages_settings(judge: Path) -> None:
    found = ModelReward(model=str(judge), max_tokens_per_batch=9)
    assert "max_tokens_per_batch" not in settings(found)
    assert found.max_tokens_per_batch == 9


def test_a_hub_model_is_named_by_its_id_and_revision_without_asking_the_hub(tmp_path: Path) -> None:
    config = builders.config(tmp_path, reward={"kind": "model", "model": "owner/judge", "revision": "abc"})
    stage = Stage("score", 1, config, {})
    assert rewards.inputs(stage) == {}
    other = builders.changed(config, reward__revision="def")
    assert Stage("score", 1, other, {}).fingerprint != stage.fingerprint


def test_looking_at_a_rewards_files_imports_no_heavy_library(tmp_path: Path, judge: Path) -> None:
    config = builders.config(tmp_path, reward={"kind": "model", "model": str(judge)})
    program = (
        "import sys; from pco import rewards, rounds; from pco.config.run import RunConfig\n"
        "from pco.stage import Stage\n"
        "assert rewards.inputs(Stage('score', 1, RunConfig.model_validate_json(sys.argv[1]), {}))\n"
        "assert not {'torch', 'transformers', 'jsonschema'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, config.model_dump_json()], check=True)


# The evaluation, with a pretended engine.


class FakeSampler:
    """Completes with one token more each time; says nothing of texts but that they are likely."""

    context = 99

    def __init__(self, *_: Any) -> None:
        self.tokens = 0

    def complete(
        self, requests: list[Request], *_: Any, on_done: Callable[[float], None], **__: Any
    ) -> list[Completion]:
        return [self._completion(request) for request in requests]

    def _completion(self, request: Request) -> Completion:
        self.tokens += 1
        return Completion(request, "z" * self.tokens, [5] * self.tokens, -1.0, "length")

    def text_logprobs(self, texts: list[str]) -> list[tuple[float, int]]:
        return [(-1.0, 1) for _ in texts]

    def logprobs(self, given: list[tuple[list[int], list[int]]]) -> list[float]:
        return [-1.0 for _ in given]


def evaluating(folder: Path, tiny: Path, **reward: Any) -> Stage:
    rows = [builders.prompt_row("z", "heldout"), builders.prompt_row("y", "heldout"), builders.prompt_row("x", "text")]
    given = {"policy": builders.model(tiny), "prompts": builders.finished(folder / "prompts", {"prompts": rows})}
    return builders.stage("evaluate", builders.config(folder, tiny, evaluate__samples=1, reward=reward), given)


def test_an_evaluation_leaves_out_and_counts_what_the_reward_cannot_judge(
    tmp_path: Path, tiny: Path, judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "Sampler", FakeSampler)
    every = evaluate.run(evaluating(tmp_path / "every", tiny, kind="model", model=str(judge)))
    assert "without_reward" not in every.metrics
    config = ModelReward(model=str(judge))
    limit = len(model.reads(config, "z", "zz")[1])
    stage = evaluating(tmp_path / "some", tiny, kind="model", model=str(judge), max_tokens=limit)
    manifest = evaluate.run(stage)
    assert manifest.rows_out == 4
    rows = metrics.read(stage.folder)
    rewarded = [row["value"] for row in rows if row["measure"] == "reward"]
    assert 0 < len(rewarded) < 4
    assert manifest.metrics["without_reward"] == 4 - len(rewarded)
    assert math.isfinite(manifest.metrics["reward"])
    assert sum(row["measure"] == "length" for row in rows) == 4
    with pytest.raises(BadInput, match=r"none of 4 .*too long"):
        evaluate.run(evaluating(tmp_path / "none", tiny, kind="model", model=str(judge), max_tokens=1))


def test_an_evaluation_refuses_a_reward_that_cannot_work_before_it_samples(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "Sampler", lambda *_: pytest.fail("it sampled"))
    with pytest.raises(BadInput, match="held-out prompts: .*`reference`"):
        evaluate.run(evaluating(tmp_path / "a", tiny, kind="exact_answer", pattern="(a)"))
    stage = evaluating(tmp_path / "c", tiny, kind="json_schema", file=str(tmp_path / "schema.json"))
    (tmp_path / "schema.json").write_text("{}")
    stage = Stage("evaluate", 1, stage.config, {**stage.inputs, **rewards.inputs(stage)})
    (tmp_path / "schema.json").write_text("true")
    with pytest.raises(CorruptArtifact, match="`reward` .*changed"):
        evaluate.run(stage)
    with pytest.raises(BadInput, match="sequence classifier"):
        evaluate.run(evaluating(tmp_path / "b", tiny, kind="model", model=str(tiny)))
