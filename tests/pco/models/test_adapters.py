"""A LoRA adapter as policy or reward model is the model that peft itself makes of it, or is refused before a run."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from data import files
from data.errors import BadInput, CorruptArtifact
from pco import doctor, rewards
from pco.config.reward import ModelReward
from pco.config.run import RunConfig
from pco.models import adapters, hub, weights
from pco.models.rendering import load_tokenizer
from pco.rewards import content
from pco.runs import fork, policy, standalone, verify
from pco.runs.folder import opened, read_config
from pco.runs.status import RunState
from pco.stage import Stage
from pco.stages import prepare
from tests import builders, tiny_reward
from tests.processes import killed_after

pytestmark = pytest.mark.engine


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return shutil.copytree(tiny, tmp_path / "base")


@pytest.fixture(scope="module")
def untied(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a head of its own; do not write into it."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("models") / "untied")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    edit(folder / "config.json", tie_word_embeddings=False)
    return folder


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def adapter(base: Path, folder: Path, *, resize: int = 0, **how: Any) -> Path:
    """An adapter of a base as peft saves it, whose weights are no zeros."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(base)
    if resize:
        model.resize_token_embeddings(resize)
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    changed = get_peft_model(model, LoraConfig(**(lora | how)))
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) / 4)
    changed.save_pretrained(folder)
    return folder


def found(folder: Path) -> hub.Found:
    return hub.find(str(folder), None, task="CAUSAL_LM", key="policy.model")


def refused(check: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        check()
    return str(caught.value)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([[1, 30, 9, 200, 77, 45]])).logits


@given(
    r=st.sampled_from([1, 3, 8]),
    alpha=st.sampled_from([1, 16]),
    modules=st.sampled_from([["q_proj"], ["o_proj", "down_proj"], "all-linear"]),
    dora=st.booleans(),
    saved=st.sampled_from([None, ["embed_tokens", "lm_head"]]),
)
@settings(max_examples=8)
def test_a_merged_policy_computes_what_peft_computes(
    untied: Path, tmp_path_factory: pytest.TempPathFactory, r: int, alpha: int, modules: Any, dora: bool, saved: Any
) -> None:
    folder = tmp_path_factory.mktemp("merged")
    how = {"target_modules": modules, "lora_alpha": alpha, "use_dora": dora, "modules_to_save": saved}
    named = found(adapter(untied, folder / "adapter", r=r, **how))
    assert (named.folder, named.adapter) == (untied, folder / "adapter")
    adapters.write(named.folder, folder / "adapter", named.tokenizer, folder / "whole")
    assert hub.find_model(str(folder / "whole"), None, key="policy.model")
    whole = logits(AutoModelForCausalLM.from_pretrained(folder / "whole"))
    of_base = AutoModelForCausalLM.from_pretrained(untied)
    unchanged = logits(of_base)
    of_peft = logits(PeftModel.from_pretrained(of_base, str(folder / "adapter")))
    torch.testing.assert_close(whole, of_peft, rtol=1e-4, atol=1e-4)  # float32, summed in another order
    assert not torch.allclose(whole, unchanged)


# In a run.


@pytest.fixture
def config(base: Path, tmp_path: Path) -> RunConfig:
    """A run whose starting policy is an adapter."""
    builders.write_prompts(tmp_path, ["the river"], ["the old bridge"])
    return builders.config(tmp_path, adapter(base, tmp_path / "adapter"), generate__max_tokens=16)


def test_a_run_merges_its_adapter_once_and_records_what_it_was_made_of(config: RunConfig, base: Path) -> None:
    inputs, _ = doctor.check(config)
    assert f"with adapter {inputs.found.adapter}, merged when the run begins" in inputs.summary()
    stage = builders.prepare_stage(config)
    with opened(config):
        outputs = prepare.run(stage).outputs
    whole = config.folder / "round-00" / "policy"
    assert outputs == {
        "policy": files.folder_digest(whole),
        "policy_folder": "policy",
        "adapter": files.folder_digest(Path(config.policy.model)),
        "base": files.folder_digest(base),
    }
    assert outputs["policy"] != outputs["base"]
    shutil.rmtree(base)
    shutil.rmtree(config.policy.model)
    assert stage.finished() is not None
    assert standalone.model_of("test:0", Path(config.runs_dir)) == str(whole)
    generate = Stage("generate", 1, config, {"policy": stage.starting_policy(stage.finished())})  # type: ignore[arg-type]
    assert policy.verified(generate).folder == whole


def test_a_run_that_was_moved_or_forked_has_its_merged_policy_with_it(config: RunConfig, tmp_path: Path) -> None:
    prepare.run(builders.prepare_stage(config))
    new = builders.changed(config, run="new")
    assert [stage.name for stage in fork.fork(config, new, None).shared] == ["prepare"]
    moved = Path(shutil.move(config.folder.parent, tmp_path / "elsewhere")) / "new"
    shutil.rmtree(moved.with_name("test"))
    stage = builders.prepare_stage(read_config(moved))
    assert RunState(stage.config).stages[0].state == "done"
    generate = Stage("generate", 1, stage.config, {"policy": stage.starting_policy(stage.finished())})  # type: ignore[arg-type]
    assert policy.verified(generate).folder == moved / "round-00" / "policy"
    assert verify.damage(stage.config) == []
    (moved / "round-00" / "policy" / "config.json").write_text("{}")
    (told,) = verify.damage(stage.config)
    assert "round-00/policy: its files are not those that were saved" in told
    with pytest.raises(CorruptArtifact):
        policy.verified(generate)


def test_setting_the_start_aside_takes_the_merged_policy_along(config: RunConfig) -> None:
    prepare.run(builders.prepare_stage(config))
    moved = fork.set_aside(config, (0, "prepare"))
    assert {path.name for path in moved} == {"prompts", "policy"}
    assert not (config.folder / "round-00" / "policy").exists()


@pytest.mark.process
@pytest.mark.parametrize("writes", range(4))
def test_a_merge_that_is_killed_leaves_a_whole_policy_or_none(config: RunConfig, tmp_path: Path, writes: int) -> None:
    named, whole = found(Path(config.policy.model)), tmp_path / "run" / "policy"
    arguments = (named.folder, named.adapter, named.tokenizer, whole)
    killed_after(writes, lambda: adapters.write(*arguments))  # type: ignore[arg-type]
    if whole.exists():
        assert found(whole).folder == whole
    adapters.write(*arguments)  # type: ignore[arg-type]
    assert [path.name for path in whole.parent.iterdir()] == ["policy"]
    assert load_tokenizer(whole).chat_template


def test_a_tokenizer_that_an_adapter_brings_is_the_policys(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    assert found(folder).tokenizer == base
    own = AutoTokenizer.from_pretrained(base)
    own.chat_template += "!"
    own.save_pretrained(folder)
    named = found(folder)
    adapters.write(named.folder, folder, named.tokenizer, tmp_path / "whole")
    assert str(load_tokenizer(tmp_path / "whole").chat_template).endswith("!")


# What is refused, before any weights are loaded.


def test_an_adapter_without_its_weights_or_with_others_beside_is_refused(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    shutil.copy(base / "model.safetensors", folder)
    assert "holds both an adapter (adapter_model.safetensors) and other weights" in refused(lambda: found(folder))
    (folder / "model.safetensors").unlink()
    (folder / adapters.WEIGHTS).write_bytes((folder / adapters.WEIGHTS).read_bytes()[:-10])
    assert "not whole safetensors" in refused(lambda: found(folder))
    (folder / adapters.WEIGHTS).unlink()
    assert "but no adapter_model.safetensors" in refused(lambda: found(folder))


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("/no/such/base", "/no/such/base: no such folder"),
        ("some/base", "the hub did not give it"),
        ("", "does not name its base model"),
        (None, "does not name its base model"),
    ],
)
def test_a_base_that_is_not_there_is_named(base: Path, tmp_path: Path, named: str | None, told: str) -> None:
    folder = adapter(base, tmp_path / "adapter")
    edit(folder / adapters.CONFIG, base_model_name_or_path=named)
    message = refused(lambda: found(folder))
    assert told in message
    assert f"{folder}" in message


def test_a_base_named_by_a_path_from_some_folder_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter(base, tmp_path / "adapter")
    edit(folder / adapters.CONFIG, base_model_name_or_path=base.name)
    monkeypatch.chdir(tmp_path)
    assert f"may be a hub id or the folder {base}" in refused(lambda: found(folder))


def test_an_adapter_and_its_base_are_found_in_the_hubs_cache(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(folder: Path, name: str) -> None:
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, place / "snapshots" / "abc")
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("abc")

    folder = adapter(base, tmp_path / "adapter")
    edit(folder / adapters.CONFIG, base_model_name_or_path="some/base")
    cached(folder, "some/adapter")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(BadInput, match=r"its base cannot be used.*some/base.*the hub did not give it"):
        found(Path("some/adapter"))
    cached(base, "some/base")
    named = found(Path("some/adapter"))
    assert named.folder.parent.parent.name == "models--some--base"
    assert named.adapter is not None and named.adapter.parent.parent.name == "models--some--adapter"


def test_an_adapter_of_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    first = adapter(base, tmp_path / "first")
    second = adapter(base, tmp_path / "second")
    edit(second / adapters.CONFIG, base_model_name_or_path=str(first))
    assert f"{first}: is an adapter itself" in refused(lambda: found(second))


def test_a_base_that_is_not_whole_is_refused_with_the_adapter_that_names_it(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-10])
    told = refused(lambda: found(folder))
    assert f"{folder}: its base cannot be used" in told
    assert "not whole safetensors" in told


def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    edit(base / "config.json", num_hidden_layers=1)
    told = refused(lambda: found(folder))
    assert f"{folder}: does not fit its base {base}: 4 of its tensors" in told
    edit(base / "config.json", num_hidden_layers=3)
    assert "lacks 4 tensors that its config asks for" in refused(lambda: found(folder))
    edit(base / "config.json", num_hidden_layers=2, hidden_size=32)
    assert "of shape (2, 64), for (2, 32) in its base" in refused(lambda: found(folder))


def test_a_module_that_the_base_lacks_is_refused(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    edit(folder / adapters.CONFIG, target_modules=["c_attn"])
    assert f"peft cannot apply it to its base {base}" in refused(lambda: found(folder))


@pytest.mark.parametrize("how", [{"modules_to_save": ["embed_tokens"]}, {"target_modules": ["embed_tokens"]}], ids=str)
def test_changed_embeddings_of_a_base_that_ties_its_head_to_them_are_refused(
    base: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    told = refused(lambda: found(adapter(base, tmp_path / "adapter", **how)))
    assert "changes the embeddings (base_model.model.model.embed_tokens." in told
    assert "Untie the base" in told


def test_embeddings_that_were_resized_for_the_training_are_refused(untied: Path, tmp_path: Path) -> None:
    folder = adapter(untied, tmp_path / "adapter", resize=400, modules_to_save=["embed_tokens", "lm_head"])
    rows = weights.embedding_rows(untied)
    told = refused(lambda: found(folder))
    assert f"of 400 tokens, and its base {untied} has {rows}" in told
    assert "resize_token_embeddings(400)" in told


def test_tokens_of_the_adapters_tokenizer_without_an_embedding_are_refused(config: RunConfig, base: Path) -> None:
    own = AutoTokenizer.from_pretrained(base)
    own.add_tokens(["<new>"])
    own.save_pretrained(config.policy.model)
    assert "has the token '<new>'" in refused(lambda: doctor.check(config))


def test_an_adapter_of_another_kind_or_for_another_task_is_refused(base: Path, tmp_path: Path) -> None:
    prompts = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    prompts.save_pretrained(tmp_path / "prompts")
    assert "of type 'PROMPT_TUNING'; only LoRA is merged" in refused(lambda: found(tmp_path / "prompts"))
    folder = adapter(base, tmp_path / "adapter")
    edit(folder / adapters.CONFIG, task_type="SEQ_CLS")
    assert "is an adapter for SEQ_CLS; `policy.model` needs one for CAUSAL_LM" in refused(lambda: found(folder))
    (folder / adapters.CONFIG).write_text("{")
    assert f"{folder / adapters.CONFIG}: could not be read as JSON" in refused(lambda: found(folder))


def test_a_quantised_base_is_refused(config: RunConfig, base: Path) -> None:
    edit(base / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "quantised (bitsandbytes)" in refused(lambda: doctor.check(config))


def test_only_a_model_whose_files_are_all_here_needs_no_hub(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    assert not hub.needs_hub(str(base))
    assert not hub.needs_hub(str(folder))
    assert hub.needs_hub("some/model")
    edit(folder / adapters.CONFIG, base_model_name_or_path="some/base")
    assert hub.needs_hub(str(folder))


# As a reward model.


@pytest.fixture(params=["head and all", "a language model"])
def judged(request: pytest.FixtureRequest, base: Path, tmp_path: Path, tokenizer: Any) -> Path:
    """An adapter as a reward model, of a reward model or of a language model."""
    whole = tiny_reward.make(tmp_path / "judge", tokenizer) if request.param == "head and all" else base
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(whole, num_labels=1)
    torch.nn.init.normal_(model.score.weight)
    how = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="SEQ_CLS")
    get_peft_model(model, how).save_pretrained(tmp_path / "judging")
    return tmp_path / "judging"


def test_an_adapter_scores_as_peft_does(judged: Path) -> None:
    config = ModelReward(model=str(judged))
    rewards.check(config, {})
    row = {**builders.candidate_row(), "source_prompt": "the river", "completion": "crosses the last ferry."}
    (score,) = rewards.load(config).score([row])
    base = adapters.base_of(judged, "reward.model").name
    model = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), str(judged)
    ).eval()
    tokens = load_tokenizer(Path(base)).apply_chat_template(
        [{"role": "user", "content": "the river"}, {"role": "assistant", "content": row["completion"]}],
        tokenize=False,
    )
    ids = torch.tensor([load_tokenizer(Path(base))(tokens, add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        assert math.isclose(score.value, float(model(input_ids=ids).logits), rel_tol=1e-4)


def test_a_rewards_digest_is_of_adapter_and_base(judged: Path) -> None:
    config = ModelReward(model=str(judged))
    base = Path(adapters.base_of(judged, "reward.model").name)
    before = content.digest(config), content.loaded_digest(config)
    (base / "README.md").write_text("another")
    after = content.digest(config), content.loaded_digest(config)
    assert all(one != other for one, other in zip(before, after, strict=True))
    edit(judged / adapters.CONFIG, lora_alpha=32)
    assert content.digest(config) not in {before[0], after[0]}


def test_vllm_is_refused_for_an_adapter(judged: Path) -> None:
    assert "it is an adapter" in refused(lambda: rewards.check(ModelReward(model=str(judged), backend="vllm"), {}))


def test_an_adapter_of_a_language_model_without_a_head_is_no_reward_model(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter", task_type=None)
    told = refused(lambda: rewards.check(ModelReward(model=str(folder)), {}))
    assert f"{folder}: its weights lack its head (score.weight)" in told
