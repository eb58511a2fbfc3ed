"""Models as people have them: each fault is told from headers and configs, before any weights are loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from data.errors import BadInput
from pco.config.reward import ModelReward
from pco.config.run import RunConfig
from pco.doctor import checks
from pco.models import hub, weights
from pco.rewards import model as reward_model
from tests import builders, tiny_reward
from tests.tiny_model import sentences


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return shutil.copytree(tiny, tmp_path / "model")


@pytest.fixture
def config(tmp_path: Path, model: Path) -> RunConfig:
    """A config that passes with the model as it is."""
    builders.write_prompts(tmp_path, ["the river"], ["the old bridge"])
    return builders.config(tmp_path, model, generate__max_tokens=16)


def refused(check: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        check()
    return str(caught.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def shard(model: Path, shards: int = 2) -> dict[str, str]:
    """Split the model's weights over several files with an index; returns which tensor lies in which."""
    tensors = load_file(model / "model.safetensors")
    named = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(named.values()):
        save_file({name: tensors[name] for name in named if named[name] == file}, model / file, {"format": "pt"})
    (model / "model.safetensors").unlink()
    (model / weights.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))
    return named


def found(model: Path) -> Path:
    return hub.find_model(str(model), None, key="policy.model")


def test_a_model_in_shards_passes(config: RunConfig, model: Path) -> None:
    shard(model)
    assert checks.check(config).model == model


def test_a_shard_that_is_missing_is_named(config: RunConfig, model: Path) -> None:
    lost = sorted(set(shard(model).values()))[1]
    (model / lost).unlink()
    told = refused(lambda: checks.check(config))
    assert "1 of 2 files of its weights are missing" in told
    assert lost in told


def test_a_shard_that_is_cut_short_is_named(model: Path) -> None:
    cut = model / sorted(set(shard(model).values()))[1]
    cut.write_bytes(cut.read_bytes()[:-100])
    assert f"{cut}: not whole safetensors" in refused(lambda: found(model))


def test_an_index_that_does_not_fit_its_files_is_refused(model: Path) -> None:
    named = shard(model)
    index = model / weights.INDEX
    edit(index, weight_map={**named, "model.extra.weight": next(iter(named.values()))})
    assert "names 1 tensors that its files do not hold, such as model.extra.weight" in refused(lambda: found(model))
    for spoilt in ("[", "[]", '{"weight_map": []}'):
        index.write_text(spoilt)
        assert f"{index}: no index of weights" in refused(lambda: found(model))


def test_weights_twice_of_which_each_engine_would_take_others_are_refused(model: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    shard(model)
    (model / "model.safetensors").write_bytes(whole)
    assert "holds both model.safetensors and weights that" in refused(lambda: found(model))


@pytest.mark.parametrize("with_config", [True, False])
def test_an_adapter_is_refused_with_how_to_merge_it_where_only_a_whole_model_will_do(
    model: Path, with_config: bool
) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    (model / "adapter_config.json").write_text(json.dumps(settings))
    if not with_config:
        (model / "config.json").unlink()
    told = refused(lambda: hub.find_model(str(model), None, key="model"))
    assert "holds an adapter of some/base (adapter_config.json), not a whole model (`model`)" in told
    assert f"AutoPeftModelForCausalLM.from_pretrained('{model}').merge_and_unload()" in told


def test_how_to_merge_an_adapter_works_as_it_is_told(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = tmp_path / "adapter"
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2)).save_pretrained(adapter)
    AutoTokenizer.from_pretrained(model).save_pretrained(adapter)
    _, *program = refused(lambda: found(adapter)).splitlines()
    monkeypatch.chdir(tmp_path)
    exec("\n".join(line.strip() for line in program))
    assert found(Path("adapter-merged"))
    assert not (tmp_path / "adapter-merged" / "adapter_config.json").exists()


@pytest.mark.parametrize("settings", [{"quant_method": "awq", "bits": 4}, {"quant_method": "bitsandbytes"}])
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_a_quantised_policy_is_refused(config: RunConfig, model: Path, key: str, settings: dict[str, Any]) -> None:
    edit(model / "config.json", **{key: settings})
    assert f"its weights are quantised ({settings['quant_method']})" in refused(lambda: checks.check(config))


def add(model: Path, token: str, **how: Any) -> Any:
    """Add a token to the model's tokenizer, as people do, and to nothing else."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if how.pop("as_pad", False):
        tokenizer.add_special_tokens({"pad_token": token})
    else:
        tokenizer.add_tokens([token], **how)
    tokenizer.save_pretrained(model)
    return tokenizer


@pytest.mark.parametrize("how", [{}, {"as_pad": True}], ids=str)
def test_a_token_without_an_embedding_is_refused(config: RunConfig, model: Path, how: dict[str, Any]) -> None:
    rows = len(add(model, "<new>", **how)) - 1
    told = refused(lambda: checks.check(config))
    assert f"has the token '<new>' ({rows}), but its weights hold embeddings of {rows} tokens alone" in told
    assert "resize_token_embeddings" in told


def test_a_special_token_without_an_embedding_is_refused_where_a_prompt_has_it(
    config: RunConfig, model: Path, tmp_path: Path
) -> None:
    add(model, "<image>", special_tokens=True)
    checks.check(config)
    builders.write_prompts(tmp_path, ["the <image> river"], ["the old bridge"])
    assert "has the token '<image>', which a prompt has" in refused(lambda: checks.check(config))


def test_a_vocabulary_that_is_not_the_weights_is_refused(config: RunConfig, model: Path) -> None:
    rows = weights.embedding_rows(model)
    assert rows
    edit(model / "config.json", vocab_size=rows + 64)
    assert f"`vocab_size` {rows + 64}, but its weights hold embeddings of {rows} tokens" in refused(
        lambda: checks.check(config)
    )


def test_embeddings_of_an_unknown_name_are_not_judged(model: Path, tokenizer: Any) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file({f"x.{i}": tensor for i, tensor in enumerate(tensors.values())}, model / "model.safetensors")
    assert weights.embedding_rows(model) is None
    weights.check_embedding(model, tokenizer, "policy.model")


@pytest.mark.parametrize("spoilt", ["{}", "[", '{"version": "9", "model": {"type": "Foo"}}', "\x00"])
def test_an_unknown_tokenizer_file_is_refused_by_its_folder(config: RunConfig, model: Path, spoilt: str) -> None:
    (model / "tokenizer.json").write_text(spoilt)
    assert f"{model}: no tokenizer could be loaded" in refused(lambda: checks.check(config))


# Rewards.


@pytest.fixture(params=[tiny_reward.make, tiny_reward.make_encoder])
def judge(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: Any) -> Path:
    made: Path = request.param(tmp_path / "judge", tokenizer)
    return made


def checked(judge: Path) -> None:
    reward_model.check(ModelReward(model=str(judge)))


def test_a_reward_model_that_was_saved_without_its_head_is_refused(judge: Path) -> None:
    checked(judge)
    tensors = load_file(judge / "model.safetensors")
    body = {name: tensor for name, tensor in tensors.items() if not name.startswith(("score", "classifier"))}
    assert len(body) < len(tensors)
    save_file(body, judge / "model.safetensors", {"format": "pt"})
    assert f"{judge}: its weights lack its head" in refused(lambda: checked(judge))


def test_a_reward_model_s_tokenizer_is_judged_as_the_policy_s(judge: Path) -> None:
    add(judge, sentences(1, 0)[0])
    assert "(`reward.model`). After tokens are added" in refused(lambda: checked(judge))
