"""The doctor names what is wrong with a config and its models before a run, and is silent about what is right."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file

from data.errors import BadInput
from pco import doctor, hardware
from pco.config.run import RunConfig
from pco.doctor import canary, resources
from pco.doctor.inputs import Inputs
from pco.models import weights
from pco.stages import prepare
from tests import builders, tiny_reward

Edit = Callable[[Path], object]


def told(config: RunConfig, status: str, **settings: Any) -> dict[str, str]:
    """The messages of the quick examinations with this status, by examination."""
    findings = doctor.examine(builders.changed(config, **settings), quick=True)
    return {finding.name: finding.message for finding in findings if finding.status == status}


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_template(model: Path, old: str, new: str) -> None:
    path = model / "chat_template.jinja"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_of_a_sound_config_every_examination_says_ok_in_a_sentence_of_its_own(config: RunConfig) -> None:
    findings = list(doctor.examine(config, quick=True))
    assert {finding.status for finding in findings} == {"ok"}
    assert (
        len({finding.message for finding in findings}) == len({finding.name for finding in findings}) == len(findings)
    )


def test_every_fault_is_told_and_what_waits_for_one_is_skipped(config: RunConfig) -> None:
    settings = {"policy__model": "./nowhere", "prompts__heldout": "./nowhere.jsonl"}
    faults = told(config, "fault", **settings)
    assert list(faults) == ["prompts", "model"]
    assert "no such file" in faults["prompts"] and "no such folder" in faults["model"]
    assert {"leakage", "lengths", "memory"} < set(told(config, "skipped", **settings))


def test_the_canary_does_not_fly_when_something_is_at_fault_already(config: RunConfig) -> None:
    *_, last = doctor.examine(builders.changed(config, train__loss__k=10**6))
    assert (last.name, last.status) == ("canary", "skipped")


# Tokens.


def second_bos(model: Path) -> None:
    edit_template(model, "{{ bos_token }}", "{{ bos_token }}{{ bos_token }}")


def no_bos(model: Path) -> None:
    edit_template(model, "{{ bos_token }}", "")


def other_end(model: Path) -> None:
    edit_template(model, "eos_token }}{% endfor", "'<|system|>' }}{% endfor")


def no_end(model: Path) -> None:
    edit_template(model, " + eos_token }}{% endfor", " }}{% endfor")


def no_system(model: Path) -> None:
    edit_template(model, "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")


def no_user(model: Path) -> None:
    edit_template(model, "{% for m in messages %}", "{% for m in messages if m['role'] != 'user' %}")


def no_opening(model: Path) -> None:
    edit_template(model, "{{ '<|assistant|>' }}", "")


def question_opens(model: Path) -> None:
    """As Mistral's and Llama 2's templates do: the end of the question opens the answer."""
    edit_template(model, "{{ '<|assistant|>' }}", "")
    edit_template(model, "'<|' + m['role'] + '|>' + ", "('<|user|>' if m['role'] == 'user' else ' ') + ")


def other_opening(model: Path) -> None:
    edit_template(model, "{{ '<|assistant|>' }}", "{{ '<|assistant|>think: ' }}")


def refuses_system(model: Path) -> None:
    edit_template(
        model,
        "{% for m in messages %}",
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    )


def mends_spaces(model: Path) -> None:
    plain = json.loads((model / "tokenizer.json").read_text())["decoder"]
    mend = {"type": "Replace", "pattern": {"String": " ,"}, "content": ","}
    edit_json(model / "tokenizer.json", decoder={"type": "Sequence", "decoders": [plain, mend]})


@pytest.mark.parametrize(
    ("spoil", "verdict", "said"),
    [
        (second_bos, "fault", "begins with '<s>' twice"),
        (no_bos, "warning", "the chat template does not"),
        (other_end, "fault", "an answer ends with '<|system|>' in the chat template, but the engine stops at ['</s>']"),
        (no_end, "warning", "ends no answer"),
        (no_system, "fault", "drops the system message: Be brief."),
        (no_user, "fault", "drops the prompt"),
        (no_opening, "warning", "opens no answer"),
        (other_opening, "warning", "does not begin with the prompt that is generated from"),
        (mends_spaces, "warning", """comes back from its tokens as "The Rhine, the Loire ;"""),
    ],
)
def test_a_spoilt_tokenizer_or_template_is_found(
    config: RunConfig, model: Path, spoil: Edit, verdict: str, said: str
) -> None:
    good = {"policy__model": str(model), "policy__system": "Be brief."}
    assert not told(config, "fault", **good) and not told(config, "warning", **good)
    spoil(model)
    assert said in told(config, verdict, **good)["policy's tokens"]


def test_an_end_that_the_models_folder_names_stops_the_engine_as_well(config: RunConfig, model: Path) -> None:
    other_end(model)
    edit_json(model / "generation_config.json", eos_token_id=[2, 5])
    assert not told(config, "fault", policy__model=str(model))


def test_a_template_whose_questions_open_the_answer_is_sound(config: RunConfig, model: Path) -> None:
    question_opens(model)
    assert not told(config, "warning", policy__model=str(model)) and not told(config, "fault", policy__model=str(model))


@pytest.mark.parametrize(
    ("text", "said"), [('{"eos_token_id": 2', "could not be read as JSON"), ("[2]", "holds [2], not an object")]
)
def test_generation_settings_that_are_damaged_are_at_fault(
    config: RunConfig, model: Path, text: str, said: str
) -> None:
    (model / "generation_config.json").write_text(text)
    fault = told(config, "fault", policy__model=str(model))["policy's tokens"]
    assert f"generation_config.json: {said}" in fault and "model again" in fault


def test_an_end_in_plain_text_may_be_a_stop_string(config: RunConfig, model: Path) -> None:
    edit_template(model, "eos_token }}{% endfor", "' [END]' }}{% endfor")
    assert "ends with '['" in told(config, "fault", policy__model=str(model))["policy's tokens"]
    assert not told(config, "fault", policy__model=str(model), generate__stop=["[END]"])


def test_a_policy_without_an_end_of_text_is_at_fault(config: RunConfig, model: Path) -> None:
    edit_json(model / "tokenizer_config.json", eos_token=None)
    (model / "generation_config.json").unlink()
    edit_json(model / "config.json", eos_token_id=None)
    raw = {"policy__model": str(model), "policy__prompt_format": "raw"}
    assert "no end-of-text token" in told(config, "fault", **raw)["policy's tokens"]


def test_a_template_that_refuses_the_system_message_is_at_fault(config: RunConfig, model: Path) -> None:
    refuses_system(model)
    told_system = {"policy__model": str(model), "policy__system": "Be brief."}
    assert (
        "refused a dialogue of ['system', 'user'] (TemplateError: no system)"
        in told(config, "fault", **told_system)["lengths"]
    )
    assert not told(config, "fault", policy__model=str(model))


def test_a_reward_model_that_never_reads_the_system_message_is_at_fault(
    config: RunConfig, tmp_path: Path, tokenizer: Any
) -> None:
    judge = tiny_reward.make(tmp_path / "judge", tokenizer)
    reward = {"kind": "model", "model": str(judge), "system": "Judge fairly."}
    assert "from '<s>' to '</s>'" in told(config, "ok", reward=reward)["reward's tokens"]
    no_system(judge)
    assert "never reads the system message" in told(config, "fault", reward=reward)["reward's tokens"]


# Weights.


def test_a_head_that_is_neither_tied_nor_there_is_at_fault(config: RunConfig, model: Path) -> None:
    edit_json(model / "config.json", tie_word_embeddings=False)
    fault = told(config, "fault", policy__model=str(model))["tied weights"]
    assert "holds no lm_head.weight" in fault and "would be random" in fault


def test_a_head_of_its_own_in_a_tied_model_is_at_fault_and_a_copy_is_not(config: RunConfig, model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    for change, verdict in ((0, "ok"), (1, "fault")):
        save_file(weights | {"lm_head.weight": head + change}, model / "model.safetensors", metadata={"format": "pt"})
        assert "tied weights" in told(config, verdict, policy__model=str(model))


def test_weights_under_other_names_are_left_to_the_canary(config: RunConfig, model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    weights["wte.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert "the canary shows" in told(config, "ok", policy__model=str(model))["tied weights"]


@pytest.mark.parametrize(
    ("dtype", "precision", "verdict"),
    [
        ("bfloat16", "bf16", "ok"),
        ("float32", "fp32", "ok"),
        ("auto", "fp32", "ok"),  # the tiny model is stored in float32
        ("auto", "bf16", "warning"),
        ("bfloat16", "fp32", "warning"),
        ("float16", "bf16", "warning"),
    ],
)
def test_an_engine_in_another_number_format_than_the_trainer_is_a_warning(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, dtype: str, precision: str, verdict: str
) -> None:
    monkeypatch.setattr(resources, "number_format", lambda: ("fp32", "it is slow otherwise"))
    message = told(config, verdict, engine__dtype=dtype, train__precision=precision)["number formats"]
    assert "`auto` is float32 on this machine: it is slow otherwise" in message


# Prompts, disk and memory.


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train__pairs_per_step": 16}, "at most 8 pairs a round, and a step takes 16"),
        ({"prompts__heldout_limit": 29}, "29 held-out prompts find a gain only if it is above 0.5 standard deviations"),
        ({"train__max_pair_tokens": 17}, "8 of 8 training prompts leave a full completion no room"),
    ],
)
def test_too_few_or_too_long_prompts_are_a_warning(config: RunConfig, settings: dict[str, Any], said: str) -> None:
    assert said in told(config, "warning", **settings)["enough prompts"]


def test_a_disk_for_one_round_is_a_warning_and_one_for_none_a_fault(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources.weights, "parameters", lambda _: 2**30)
    usage = type(shutil.disk_usage("/"))
    for gib, verdict in ((5, "ok"), (3, "warning"), (1, "fault")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, gib=gib: usage(2**40, 2**40, gib * 2**30))
        assert "2 round(s) take about 4." in told(config, verdict)["disk"]


@pytest.mark.parametrize(
    ("settings", "policies"),
    [
        ({}, 6),
        ({"keep_last": 1}, 3),
        ({"keep_last": 2, "keep_best": 2}, 5),
        ({"keep_last": 9}, 6),
    ],
)
def test_only_the_policies_that_are_kept_take_disk(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], policies: int
) -> None:
    monkeypatch.setattr(resources.disk_space, "of_training", lambda *_: (2**40, 0))
    usage = type(shutil.disk_usage("/"))(2**50, 2**50, 2**50)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert f"take about {policies * 1024:,}." in told(config, "ok", rounds=6, **settings)["disk"]


def test_memory_for_the_weights_alone_is_a_warning_and_for_less_a_fault(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = resources.need(Inputs(config))
    memory = type(psutil.virtual_memory())
    enough = 2 * max(needed.training, needed.engine)
    for total, available, verdict in (
        (enough, enough, "ok"),
        (enough, needed.engine - 1, "warning"),
        (needed.before - 1, enough, "fault"),
    ):
        found = memory(*(0 for _ in memory._fields))._replace(total=total, available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda found=found: found)
        assert "memory" in told(config, verdict)


def test_more_workers_than_cores_or_groups_than_gpus_are_a_fault(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: [0, 1])
    monkeypatch.setattr(hardware, "gpus", list)
    assert told(config, "ok", executor={"kind": "pool", "workers": 2})["workers"] == "2 workers share 2 cores"
    fault = told(config, "fault", executor={"kind": "pool", "workers": 3})["workers"]
    assert "3 workers" in fault and "at most 2" in fault
    monkeypatch.setattr(hardware, "gpus", lambda: ["0", "1", "2"])
    assert "2 workers have 1 of 3" in told(config, "ok", executor={"kind": "pool", "workers": 2})["workers"]
    fault = told(config, "fault", executor={"kind": "pool", "workers": 2, "gpus_per_worker": 2})["workers"]
    assert "need 4" in fault and "offers 3" in fault
    with pytest.raises(BadInput, match="offers 3"):
        doctor.check(builders.changed(config, executor={"kind": "pool", "workers": 4}))


def test_on_cores_there_must_be_memory_for_the_engine_of_each_worker(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = resources.need(Inputs(config))
    enough = max(needed.training, 2 * needed.engine)
    memory = psutil.virtual_memory()._replace(total=10 * enough, available=enough)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(hardware, "cores", lambda: list(range(8)))
    assert "memory" in told(config, "ok", executor={"kind": "pool", "workers": 2})
    warning = told(config, "warning", executor={"kind": "pool", "workers": 8})["memory"]
    assert "the engines of 8 workers" in warning and "executor.workers" in warning


@pytest.mark.parametrize(
    ("settings", "bytes_each"),
    [
        ({"train__precision": "fp32"}, 4 + 4 + 8),
        ({"train__precision": "bf16"}, 2 + 6 + 12),
        ({"train__precision": "bf16", "train__lora": {"r": 2}}, 2),
        ({"train__precision": "fp32", "train__processes": 2, "train__zero_stage": 1}, 4 + 4 + 4),
        ({"train__precision": "fp32", "train__processes": 2, "train__zero_stage": 2}, 4 + 2 + 4),
        ({"train__precision": "fp32", "train__processes": 2, "train__zero_stage": 3}, 2 + 2 + 4),
    ],
)
def test_a_training_process_holds_weights_gradients_and_its_share_of_the_optimizer(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], bytes_each: int
) -> None:
    def training(parameters: int) -> int:
        monkeypatch.setattr(resources.weights, "parameters", lambda _: parameters)
        return resources.need(Inputs(builders.changed(config, **settings))).before

    assert training(1000) - training(0) == 1000 * bytes_each


def test_a_containers_limit_counts_as_its_memory(tmp_path: Path) -> None:
    (tmp_path / "limit").write_text("max\n")
    assert resources.machine_memory(tmp_path / "limit") == psutil.virtual_memory().total
    (tmp_path / "limit").write_text("1048576\n")
    assert resources.machine_memory(tmp_path / "limit") == 2**20


def test_the_same_weights_beside_those_of_the_index_are_not_counted(model: Path) -> None:
    alone = weights.parameters(model)
    shard = (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    content = load_file(shard)
    save_file({f"other.{name}": weight for name, weight in content.items()}, model / "consolidated.safetensors")
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(content, shard.name)}))
    assert weights.parameters(model) == alone
    index.write_text("{")
    assert weights.parameters(model) == 2 * alone  # a damaged index names none


# Every run.


def test_a_run_begins_with_the_quick_examinations(
    config: RunConfig, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.run(builders.prepare_stage(builders.changed(config, run="one", train__pairs_per_step=16)))
    assert "warning: enough prompts: 8 training prompts give" in capsys.readouterr().out
    second_bos(model)
    spoilt = builders.prepare_stage(builders.changed(config, run="two", policy__model=str(model)))
    with pytest.raises(BadInput, match="policy's tokens: .*<s>.* twice"):
        prepare.run(spoilt)


# The canary; tests/e2e lets a real one fly.


def result(tokenizer: Any, **change: Any) -> canary.CanaryResult:
    """What a sound canary brings back, with one of its rows changed."""
    rows = [builders.candidate_row(sample=i, tokens=range(10, 30)) for i in range(2)]
    rows = [{**row, "completion": tokenizer.decode(row["token_ids"])} for row in rows]
    return canary.CanaryResult("digest", [rows[0], rows[1] | change], [-1.0, -1.0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policy": "other"}, "the engine loaded policy digest, other, but training had saved digest"),
        ({"completion": "other"}, "the reward would read 'other', but training learns the tokens of"),
        ({"logprob": -1.6}, "0.015 nats a token off the trainer's, over 40 tokens; up to 0.01 is rounding"),
        ({"logprob": float("nan")}, "nan nats a token off"),
    ],
)
def test_the_results_of_engine_and_trainer_are_compared(tokenizer: Any, change: dict[str, Any], said: str) -> None:
    assert [status for status, _ in canary.comparison(result(tokenizer), tokenizer, 0.01)] == ["ok"] * 3
    (fault,) = (
        message for status, message in canary.comparison(result(tokenizer, **change), tokenizer, 0.01) if status != "ok"
    )
    assert said in fault


def test_float32_throughout_is_held_to_less_than_rounding_in_16_bit(config: RunConfig) -> None:
    def tolerance(dtype: str, precision: str) -> float:
        return canary.tolerance(Inputs(builders.changed(config, engine__dtype=dtype, train__precision=precision)))

    assert tolerance("float32", "fp32") == tolerance("auto", "fp32") == 1e-3
    assert tolerance("bfloat16", "fp32") == tolerance("float32", "bf16") == tolerance("bfloat16", "bf16") == 0.05
