"""What cannot work is refused before anything starts, with what, where and what to do."""

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import files, store
from data.errors import BadInput
from pco.config.run import RunConfig
from pco.doctor import checks
from pco.stages import prepare
from tests import builders, tiny_model
from tests.processes import as_nobody

TRAIN, HELDOUT = ["the river", "the old bridge"], ["a grey heron"]


@pytest.fixture
def config(tmp_path: Path, tiny: Path) -> RunConfig:
    """A config that passes."""
    builders.write_prompts(tmp_path, TRAIN, HELDOUT)
    return builders.config(tmp_path, tiny, generate__max_tokens=16)


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return shutil.copytree(tiny, tmp_path / "model")


def refused(config: RunConfig, **settings: Any) -> str:
    with pytest.raises(BadInput) as caught:
        checks.check(builders.changed(config, **settings))
    return str(caught.value)


def edit_model(model: Path, **changes: Any) -> Path:
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return model


def test_a_config_that_can_work_passes_and_is_summed_up(config: RunConfig, tiny: Path) -> None:
    inputs = checks.check(config)
    assert [row["prompt"] for row in inputs.train] == TRAIN
    assert [row["prompt"] for row in inputs.heldout] == HELDOUT
    assert inputs.model == tiny
    assert inputs.context == tiny_model.CONTEXT
    for part in ("2 training prompts", "1 held-out", "1 texts", f"of {tiny_model.CONTEXT} tokens", str(tiny)):
        assert part in inputs.summary()


def test_checking_writes_nothing(config: RunConfig) -> None:
    before = sorted(Path(config.runs_dir).parent.rglob("*"))
    checks.check(config)
    assert sorted(Path(config.runs_dir).parent.rglob("*")) == before


@pytest.mark.parametrize("package", ["vllm", "deepspeed"])
def test_a_missing_engine_is_refused_with_what_to_install(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))
    message = refused(config)
    assert message.startswith(f"{package} is not installed")
    assert "nstall" in message.removeprefix(f"{package} is not installed")


# The folder of runs.


def as_nobody_with_prompts(check: Callable[[Path, RunConfig], None]) -> None:
    """Check a config whose prompts everyone may read, in a folder that only root may change, as nobody."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        builders.write_prompts(folder, TRAIN, HELDOUT)
        (folder / "closed").mkdir(mode=0o555)
        (folder / "hidden").mkdir(mode=0o000)
        (folder / "open").mkdir()
        (folder / "open").chmod(0o777)
        as_nobody(lambda: check(folder, builders.config(folder, runs_dir=str(folder / "open"))))


@pytest.mark.parametrize("place", ["closed", "closed/new/runs", "hidden/runs"])
def test_a_folder_of_runs_that_cannot_be_written_is_refused(place: str) -> None:
    def check(folder: Path, config: RunConfig) -> None:
        message = refused(config, runs_dir=str(folder / place))
        assert message.startswith(str(folder / place))
        assert "`runs_dir`" in message

    as_nobody_with_prompts(check)


def test_prompts_that_cannot_be_read_are_refused() -> None:
    def check(folder: Path, config: RunConfig) -> None:
        message = refused(config, prompts__train=str(folder / "hidden" / "train.jsonl"))
        assert "hidden/train.jsonl: could not be read (Permission denied)" in message

    as_nobody_with_prompts(check)


def test_a_model_that_cannot_be_read_is_refused() -> None:
    import encodings.utf_8_sig  # noqa: F401  nobody may not be able to import it

    import huggingface_hub.errors  # noqa: F401

    def check(folder: Path, config: RunConfig) -> None:
        for model in ("hidden", "hidden/model"):
            assert str(folder / model) in refused(config, policy__model=str(folder / model))

    as_nobody_with_prompts(check)


def test_a_folder_of_runs_that_is_a_file_is_refused(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/runs"):
        assert "cannot be written" in refused(config, runs_dir=str(tmp_path / place))


def test_a_full_disk_is_refused_with_what_is_free(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 2**29))
    assert "only 0.50 GiB free" in refused(config)


# Prompts.


@pytest.mark.parametrize("name", ["train", "heldout", "heldout_text"])
@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "no such file"), ("", "holds no rows"), ('{"prompt": "a", "text": "b"}\n{', "line 2: not valid JSON")],
)
def test_a_faulty_prompts_file_is_refused_by_name(
    config: RunConfig, tmp_path: Path, name: str, content: str | None, told: str
) -> None:
    file = tmp_path / f"{name}.jsonl"
    file.unlink()
    if content is not None:
        file.write_text(content)
    assert f"{file}" in (message := refused(config)) and told in message


def test_a_training_prompt_among_the_held_out_ones_is_refused(config: RunConfig, tmp_path: Path) -> None:
    builders.write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": "new", "id": 1}, {"prompt": TRAIN[1], "id": 2}])
    message = refused(config)
    assert str(tmp_path / "heldout.jsonl") in message and str(tmp_path / "train.jsonl") in message
    assert "prompt 2 is also trained on" in message
    builders.write_jsonl(tmp_path / "heldout.jsonl", [{"prompt": f" {TRAIN[1].upper()}\n", "id": 3}])
    assert "prompt 3 is also trained on" in refused(config)


def test_rows_beyond_the_limit_leak_nothing(config: RunConfig, tmp_path: Path) -> None:
    builders.write_jsonl(tmp_path / "train.jsonl", [{"prompt": text} for text in (*TRAIN, *HELDOUT)])
    assert checks.check(builders.changed(config, prompts__train_limit=2)).train[-1]["prompt"] == TRAIN[-1]
    assert "also trained on" in refused(config, prompts__train_limit=3)


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_the_longest_prompt_that_fits_passes_and_one_token_more_is_refused(
    config: RunConfig, tmp_path: Path, name: str
) -> None:
    builders.write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": "z" * 40, "id": "long"}])
    longest = max(checks.check(config).lengths)
    room = tiny_model.CONTEXT - longest
    checks.check(builders.changed(config, generate__max_tokens=room))
    message = refused(config, generate__max_tokens=room + 1)
    assert f"{name}.jsonl: long has {longest} tokens; with {room + 1} more" in message
    assert f"context of {tiny_model.CONTEXT}" in message


def test_the_length_counts_the_chat_template_and_the_system_message(config: RunConfig) -> None:
    raw = max(checks.check(builders.changed(config, policy__prompt_format="raw")).lengths)
    chat = max(checks.check(config).lengths)
    told = max(checks.check(builders.changed(config, policy__system="Be brief.")).lengths)
    assert raw < chat < told


def test_a_human_text_longer_than_the_context_is_refused(config: RunConfig, tmp_path: Path) -> None:
    builders.write_jsonl(tmp_path / "heldout_text.jsonl", [{"text": "z" * tiny_model.CONTEXT}])
    assert "heldout_text.jsonl" in refused(config)


def test_a_human_text_of_a_single_token_is_refused(config: RunConfig, model: Path, tmp_path: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": None}))  # no token in front
    builders.write_jsonl(tmp_path / "heldout_text.jsonl", [{"text": "a", "id": "short"}])
    assert "heldout_text.jsonl: short has 1 token(s)" in refused(config, policy__model=str(model))


def test_a_shorter_context_is_held_to(config: RunConfig) -> None:
    assert checks.check(builders.changed(config, engine__max_model_len=64)).context == 64
    assert "context of 16" in refused(config, engine__max_model_len=16)


def test_a_context_longer_than_the_models_own_is_refused(config: RunConfig) -> None:
    message = refused(config, engine__max_model_len=tiny_model.CONTEXT + 1)
    assert "engine.max_model_len" in message and str(tiny_model.CONTEXT) in message


def test_a_strategy_with_references_needs_one_at_least(config: RunConfig, tmp_path: Path) -> None:
    assert "no prompt has a `reference`" in refused(config, pair__strategy="reference_worst")
    rows = [{"prompt": TRAIN[0]}, {"prompt": TRAIN[1], "reference": "the answer"}]
    builders.write_jsonl(tmp_path / "train.jsonl", rows)
    checks.check(builders.changed(config, pair__strategy="reference_worst"))


# The model.


def test_a_model_that_is_neither_a_folder_nor_a_hub_id_is_refused(config: RunConfig) -> None:
    assert "no such folder, and not a hub id either" in refused(config, policy__model="./no/such/model")


def test_a_hub_model_that_the_hub_does_not_give_is_refused(config: RunConfig) -> None:
    message = refused(config, policy__model="nobody/such-a-model")
    assert message.startswith("nobody/such-a-model: no such folder, and the hub did not give it")


@pytest.mark.parametrize(
    ("file", "told"), [("config.json", "has no config.json"), ("model.safetensors", "has no *.safetensors weights")]
)
def test_a_model_folder_without_a_needed_file_is_refused(config: RunConfig, model: Path, file: str, told: str) -> None:
    (model / file).unlink()
    assert told in refused(config, policy__model=str(model))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"vocab_size": "many"}', '{"vocab_size": null}'])
def test_a_models_config_that_is_none_is_refused_by_name(config: RunConfig, model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    assert f"{model}/config.json: not a language model's config" in refused(config, policy__model=str(model))


def test_a_model_without_a_tokenizer_is_refused(config: RunConfig, model: Path) -> None:
    for file in model.glob("*token*"):
        file.unlink()
    assert f"{model}: no tokenizer could be loaded" in refused(config, policy__model=str(model))


def test_chat_prompts_need_a_chat_template(config: RunConfig, model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    assert "no chat template. Set policy.prompt_format: raw" in refused(config, policy__model=str(model))
    checks.check(builders.changed(config, policy__model=str(model), policy__prompt_format="raw"))


def test_as_many_contrast_candidates_as_tokens_are_refused_and_one_fewer_pass(config: RunConfig, tiny: Path) -> None:
    vocabulary = json.loads((tiny / "config.json").read_text())["vocab_size"]
    checks.check(builders.changed(config, train__loss__k=vocabulary - 1))
    message = refused(config, train__loss__k=vocabulary)
    assert message.startswith(f"train.loss.k: {vocabulary} contrast candidates") and "Usual values" in message
    checks.check(builders.changed(config, train__loss={"kind": "sft"}))


def test_the_vocabulary_of_a_model_with_a_text_part_is_that_parts(config: RunConfig, model: Path) -> None:
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    edit_model(model, vocab_size=4, text_config={"vocab_size": size})
    checks.check(builders.changed(config, policy__model=str(model), train__loss__k=size - 1))
    assert f"this model has {size}" in refused(config, policy__model=str(model), train__loss__k=size)


# Unpaired feedback.


def with_feedback(config: RunConfig, *rows: dict[str, Any]) -> RunConfig:
    file = builders.write_jsonl(Path(config.prompts.train).parent / "feedback.jsonl", rows)
    return builders.changed(config, prompts__feedback=str(file))


THUMB = {"prompt": "a small town", "completion": " avoids the last ferry.", "good": True}


def test_feedback_passes_and_is_counted(config: RunConfig) -> None:
    inputs = checks.check(with_feedback(config, THUMB, {**THUMB, "good": False}))
    assert [row["good"] for row in inputs.feedback] == [True, False]
    assert "2 pieces of feedback" in inputs.summary()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({**THUMB, "good": "yes"}, "line 2: expected true or false under `good`; found 'yes'"),
        ({**THUMB, "completion": ""}, "line 2: expected an object with a non-empty text under `completion`"),
        ({**THUMB, "prompt": None}, "line 2: expected an object with a non-empty text under `prompt`"),
        ({**THUMB, "prompt": HELDOUT[0]}, "is also trained on"),
    ],
)
def test_faulty_feedback_is_refused_by_line(config: RunConfig, row: dict[str, Any], told: str) -> None:
    assert told in refused(with_feedback(config, THUMB, row))


def test_an_empty_feedback_file_is_refused(config: RunConfig) -> None:
    assert "holds no feedback" in refused(with_feedback(config))


# Seed preferences.


def with_preferences(config: RunConfig, *rows: dict[str, Any]) -> RunConfig:
    file = builders.write_jsonl(Path(config.prompts.train).parent / "preferences.jsonl", rows)
    return builders.changed(config, prompts__preferences=str(file), replay__rounds=1)


PREFERENCE = {"prompt": "a small town", "chosen": " by the river", "rejected": " by by by"}


def test_seed_preferences_pass_and_are_counted(config: RunConfig) -> None:
    assert "1 seed preferences" in checks.check(with_preferences(config, PREFERENCE)).summary()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({**PREFERENCE, "chosen": ""}, "line 2: expected texts under `prompt`, `chosen` and `rejected`"),
        ({**PREFERENCE, "rejected": 7}, "line 2: expected texts under `prompt`, `chosen` and `rejected`"),
        ({"prompt": "a small town"}, "line 2: expected texts under `prompt`, `chosen` and `rejected`"),
        ({**PREFERENCE, "rejected": PREFERENCE["chosen"]}, "the last two different"),
        ({**PREFERENCE, "prompt": HELDOUT[0]}, "is also trained on"),
    ],
)
def test_faulty_preferences_are_refused_by_line(config: RunConfig, row: dict[str, Any], told: str) -> None:
    assert told in refused(with_preferences(config, PREFERENCE, row))


def test_an_empty_preferences_file_is_refused(config: RunConfig) -> None:
    assert "holds no preferences" in refused(with_preferences(config))


def test_frozen_preferences_are_pairs_of_tokens_with_the_end_of_text(config: RunConfig, tokenizer: Any) -> None:
    stage = builders.prepare_stage(with_preferences(config, PREFERENCE, PREFERENCE))
    assert prepare.run(stage).rows_in == 6
    first, second = store.read_table(stage.folder, "preferences").to_pylist()
    assert tokenizer.decode(first["chosen_token_ids"]) == PREFERENCE["chosen"] + tokenizer.eos_token
    assert tokenizer.decode(first["rejected_token_ids"]) == PREFERENCE["rejected"] + tokenizer.eos_token
    assert tokenizer.decode(first["prompt_token_ids"]) == first["prompt"] != PREFERENCE["prompt"]
    assert [row["chosen_sample"] for row in (first, second)] == [0, 2]
    assert first["chosen_reward"] is None


# The stage that checks and freezes.


def test_what_was_checked_is_frozen_with_the_models_digest(config: RunConfig, tiny: Path) -> None:
    stage = builders.prepare_stage(config)
    manifest = prepare.run(stage)
    rows = store.read_table(stage.folder, "prompts").to_pylist()
    assert rows == [
        *(builders.prompt_row(text) for text in TRAIN),
        *(builders.prompt_row(text, "heldout") for text in HELDOUT),
        builders.prompt_row("Human prose.", "text"),
    ]
    assert manifest.rows_in == manifest.rows_out == 4
    assert manifest.outputs == {"policy": files.folder_digest(tiny), "policy_folder": str(tiny)}


def test_frozen_feedback_holds_the_tokens_of_prompt_and_completion_with_the_end_of_text(
    config: RunConfig, tokenizer: Any
) -> None:
    stage = builders.prepare_stage(with_feedback(config, THUMB))
    prepare.run(stage)
    (row,) = store.read_table(stage.folder, "feedback").to_pylist()
    assert tokenizer.decode(row["prompt_token_ids"]) == row["prompt"]
    assert row["prompt"] == tokenizer.apply_chat_template(
        [{"role": "user", "content": THUMB["prompt"]}], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(row["token_ids"]) == THUMB["completion"] + tokenizer.eos_token


def test_another_content_of_a_prompts_file_is_another_stage_and_another_place_of_it_is_not(
    config: RunConfig, tmp_path: Path
) -> None:
    before = builders.prepare_stage(config).fingerprint
    shutil.copyfile(config.prompts.train, tmp_path / "copy.jsonl")
    moved = builders.changed(config, prompts__train=str(tmp_path / "copy.jsonl"))
    assert builders.prepare_stage(moved).fingerprint == before
    with (tmp_path / "copy.jsonl").open("a") as file:
        file.write('{"prompt": "one more"}\n')
    assert builders.prepare_stage(moved).fingerprint != before


def test_planning_with_a_missing_file_is_refused(config: RunConfig) -> None:
    Path(config.prompts.heldout).unlink()
    with pytest.raises(BadInput, match="`prompts.heldout`"):
        builders.prepare_stage(config)


@pytest.mark.parametrize(
    "change", [{"final_logit_softcapping": 30.0}, {"logit_scale": 0.0625}, {"logits_scaling": 8.0}]
)
def test_a_model_that_changes_its_logits_after_the_head_is_refused(
    config: RunConfig, model: Path, change: dict[str, float]
) -> None:
    edit_model(model, **change)
    (name,) = change
    assert f"`{name}`" in refused(config, policy__model=str(model))
    edit_model(model, final_logit_softcapping=None, logit_scale=1.0, logits_scaling=1.0)
    checks.check(builders.changed(config, policy__model=str(model)))


def test_feedback_on_a_held_out_prompt_is_refused(config: RunConfig, tmp_path: Path) -> None:
    rows = [{"prompt": HELDOUT[0], "completion": "so it is", "good": True}]
    path = builders.write_jsonl(tmp_path / "feedback.jsonl", rows)
    assert "Evaluation on training prompts proves nothing" in refused(config, prompts__feedback=str(path))


@pytest.mark.parametrize("kept", [0, 5, 1000])
def test_weights_that_were_cut_short_are_refused_by_name(config: RunConfig, model: Path, kept: int) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: not whole safetensors" in refused(config, policy__model=str(model))


@pytest.mark.parametrize(
    ("known", "told"), [("The  RIVER", "is also trained on"), ("a grey HERON", "is also held out")]
)
def test_test_prompts_that_are_in_another_set_are_refused(
    config: RunConfig, tmp_path: Path, known: str, told: str
) -> None:
    path = builders.write_jsonl(tmp_path / "test.jsonl", [{"prompt": "another bridge"}, {"prompt": known}])
    message = refused(config, prompts__test=str(path))
    assert str(path) in message and told in message


def test_test_prompts_are_counted(config: RunConfig, tmp_path: Path) -> None:
    path = builders.write_jsonl(tmp_path / "test.jsonl", [{"prompt": "another bridge"}])
    assert "1 test prompts" in checks.check(builders.changed(config, prompts__test=str(path))).summary()
