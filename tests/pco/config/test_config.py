"""The config: every key is described, checked, and named in the error if it is wrong."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from data.errors import BadInput
from pco.config import run as config
from pco.config.file import models_in
from pco.config.gate import Guard, Requirement
from pco.config.prompts import DataSource
from pco.config.reward import (
    ExactAnswerReward,
    JsonSchemaReward,
    LengthReward,
    ModelReward,
    PythonReward,
    RegexReward,
)
from pco.config.run import RunConfig
from pco.config.train import DPO, PairwiseCringe, PythonLoss, Train, deciding
from tests import builders

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
Keys = tuple[str, ...]
LENGTH = {"kind": "length", "max_tokens": 9}


def sections(model: type[BaseModel] = RunConfig, path: Keys = ()) -> Iterator[tuple[Keys, type[BaseModel]]]:
    """Every section of the config with the keys that lead to it; one for each kind where there is a choice."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner in dict.fromkeys(models_in(field.annotation)):
            # A rule of the gate stands under the name of its measure.
            yield from sections(inner, (*path, name, "length") if inner in {Guard, Requirement} else (*path, name))


SECTIONS = list(sections())
FIELDS = [(path, model, name) for path, model in SECTIONS for name in model.model_fields]
VALUES = [
    (path, model, name)
    for path, model, name in FIELDS
    if not list(models_in(model.model_fields[name].annotation)) and name not in {"inline", "map", "labels"}  # mappings
]

# What a section cannot do without.
REQUIRED: dict[type[BaseModel], dict[str, Any]] = {
    Requirement: {"max": 1.0},
    LengthReward: {"max_tokens": 9},
    RegexReward: {"pattern": "a"},
    JsonSchemaReward: {"inline": {}},
    ExactAnswerReward: {"pattern": "(a)"},
    PythonReward: {"function": "module:function"},
    ModelReward: {"model": "some/model"},
    PythonLoss: {"module": "my_loss"},
    DataSource: {"dataset": "some/data"},
}


def section_id(value: Any) -> str:
    return (".".join(value) or "top") if isinstance(value, tuple) else str(getattr(value, "__name__", value))


def raw_with(path: Keys, section_model: type[BaseModel], /, **keys: Any) -> dict[str, Any]:
    """A valid config, as YAML would give it, but for some keys of one section."""
    raw = builders.raw_config(Path("/somewhere"))
    section = raw
    for name in path:
        if name == "members":
            section["kind"] = "ensemble"
            section["members"] = [{"reward": {"kind": "repetition"}}, {"reward": {"kind": "repetition"}}]
            section = section["members"][0]
        else:
            if not isinstance(section.get(name), dict):  # a path may stand in the place of a section
                section[name] = {}
            section = section[name]
    section.update(REQUIRED.get(section_model, {}))
    if "kind" in section_model.model_fields:
        section["kind"] = section_model.model_fields["kind"].default
    section.update(keys)
    return raw


def fault(raw: dict[str, Any]) -> str:
    with pytest.raises(BadInput) as caught:
        config.parse(raw, source="my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    return str(caught.value)


def test_the_walk_finds_the_sections_deep_down() -> None:
    assert {"RunConfig", "Policy", "PairwiseCringe", "SFT", "LoRA", "Gate"} <= {model.__name__ for _, model in SECTIONS}


@pytest.mark.parametrize(("path", "model", "name"), FIELDS, ids=section_id)
def test_every_field_is_described(path: Keys, model: type[BaseModel], name: str) -> None:
    if name != "kind" and not list(models_in(model.model_fields[name].annotation)):
        assert len(model.model_fields[name].description or "") > 4


@pytest.mark.parametrize(("path", "model"), SECTIONS, ids=section_id)
def test_every_section_is_described_and_frozen(path: Keys, model: type[BaseModel]) -> None:
    assert len(model.__doc__ or "") > 10
    assert model.model_config.get("frozen") is True


@pytest.mark.parametrize(("path", "model"), SECTIONS, ids=section_id)
def test_an_unknown_key_is_refused_in_every_section_with_the_known_ones(path: Keys, model: type[BaseModel]) -> None:
    message = fault(raw_with(path, model, qqqqqq=1))
    assert "qqqqqq: unknown key." in message
    assert all(step in message for step in path)
    assert ", ".join(sorted(model.model_fields)) in message


@pytest.mark.parametrize(("path", "model", "name"), [case for case in FIELDS if len(case[2]) > 3], ids=section_id)
def test_a_misspelt_key_is_answered_with_the_right_one(path: Keys, model: type[BaseModel], name: str) -> None:
    assert f"Did you mean `{name}`?" in fault(raw_with(path, model, **{name[:-2] + name[-1]: 1}))


@pytest.mark.parametrize(("path", "model", "name"), VALUES, ids=section_id)
def test_a_value_of_another_type_is_refused_with_its_key_and_what_was_found(
    path: Keys, model: type[BaseModel], name: str
) -> None:
    message = fault(raw_with(path, model, **{name: {"no": "value"}}))
    where = ".".join(path) if name == "kind" and path == ("train", "loss") else name
    assert where in message
    assert "{'no': 'value'}" in message


@pytest.mark.parametrize(
    ("path", "model", "name"),
    [case for case in VALUES if case[1].model_fields[case[2]].annotation is float],
    ids=section_id,
)
def test_a_number_that_is_none_is_refused(path: Keys, model: type[BaseModel], name: str) -> None:
    assert name in fault(raw_with(path, model, **{name: math.nan}))


@pytest.mark.parametrize("missing", ["run", "policy", "prompts"])
def test_a_required_key_that_is_missing_is_named(missing: str) -> None:
    raw = builders.raw_config(Path("/somewhere"))
    del raw[missing]
    assert f"{missing}: required, but missing." in fault(raw)


def test_all_faults_are_told_at_once() -> None:
    raw = raw_with(("generate",), config.Generate, n=1, temprature=1)
    raw["rounds"] = "many"
    message = fault(raw)
    assert "3 fault(s)" in message
    for part in ("generate.n", "generate.temprature", "rounds"):
        assert part in message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"generate__n": 1}, "generate.n"),
        ({"generate__temperature": 0}, "generate.temperature"),
        ({"generate__min_tokens": 9, "generate__max_tokens": 8}, r"min_tokens (9) is above max_tokens (8)"),
        ({"gate__otherwise": "go_on"}, "gate.otherwise"),
        ({"gate__patience": 0}, "gate.patience"),
        ({"gate__judged": {"share": 1.0, "beside": "length"}}, "gate.judged.share"),
        ({"gate__judged": {"share": 0.5, "beside": "reward"}}, "other than the reward"),
        ({"gate__judged": {"share": 0.5, "beside": "drift"}}, "other than the reward"),
        ({"gate__judged": {"share": 0.5, "beside": "second_reward"}}, "set evaluate.second_reward"),
        ({"policy__system": "Be brief.", "policy__prompt_format": "raw"}, "`system` needs prompt_format: chat"),
        ({"train__pairs_per_step": 3, "train__processes": 2}, "must be a multiple of processes (2)"),
        ({"train__loss__tau": 0}, "tau"),
        ({"train__loss__kind": "ppo"}, "train.loss"),
        ({"train__zero_stage": 4}, "train.zero_stage"),
        ({"seed": -1}, "seed"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_with_the_reason(change: dict[str, Any], told: str) -> None:
    raw = RunConfig.model_validate(builders.raw_config(Path("/somewhere"))).model_dump()
    for name, value in change.items():
        *parents, last = name.split("__")
        section = raw
        for parent in parents:
            section = section[parent]
        section[last] = value
    assert told in fault(raw)


@pytest.mark.parametrize(
    ("second", "refused"),
    [
        ({"kind": "repetition", "ngram": 3}, True),
        ({"kind": "repetition", "ngram": 4}, False),
        ({"kind": "model", "model": "a/b", "max_tokens_per_batch": 9}, True),
        ({"kind": "ensemble", "members": [{"reward": {"kind": "repetition"}}, {"reward": LENGTH}]}, True),
        (LENGTH, False),
    ],
)
def test_a_second_reward_that_makes_labels_is_refused(second: dict[str, Any], refused: bool) -> None:
    labels = [{"reward": {"kind": "repetition", "ngram": 3}}, {"reward": {"kind": "model", "model": "a/b"}}]
    raw = builders.raw_config(Path("/x")) | {"reward": {"kind": "ensemble", "members": labels}}
    raw["evaluate"] = {"second_reward": second}
    if not refused:
        assert config.parse(raw, source="x").evaluate.second_reward is not None
        return
    with pytest.raises(BadInput, match=r"evaluate\.second_reward.*`reward`"):
        config.parse(raw, source="x")


def test_a_reference_that_no_training_begins_from_is_refused_where_rounds_begin_from_the_start() -> None:
    raw = builders.raw_config(Path("/somewhere"))
    raw["train"] = {"begin_from": "start", "loss": {"kind": "dpo"}}
    assert "set loss.reference: start" in fault(raw)
    for loss in ({"kind": "dpo", "reference": "start"}, {"kind": "simpo"}, {"kind": "python", "module": "m"}):
        RunConfig.model_validate({**raw, "train": {"begin_from": "start", "loss": loss}})


@pytest.mark.parametrize("replay", [{"rounds": -1}, {"rounds": "some"}, {"share": 0}, {"share": "every"}])
def test_a_replay_of_neither_a_number_nor_all_is_refused(replay: dict[str, Any]) -> None:
    raw = builders.raw_config(Path("/somewhere"))
    assert f"replay.{next(iter(replay))}" in fault({**raw, "replay": replay})
    RunConfig.model_validate({**raw, "replay": dict.fromkeys(replay, "all")})


def test_preferences_that_no_round_would_train_on_are_refused() -> None:
    raw = builders.raw_config(Path("/somewhere"))
    raw["prompts"]["preferences"] = "/seed.jsonl"
    assert "set replay.rounds to 1 or more" in fault(raw)
    RunConfig.model_validate({**raw, "replay": {"rounds": 1}})


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", ".hidden", "-x", "a b", "x" * 101, "ü", "a\n"])
def test_a_run_name_that_is_no_plain_folder_name_is_refused(name: str) -> None:
    assert "run" in fault({**builders.raw_config(Path("/somewhere")), "run": name})


# Files.


def write(folder: Path, raw: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def test_what_a_config_says_of_itself_reads_back_equal(tmp_path: Path) -> None:
    original = builders.config(
        tmp_path,
        generate__stop=["\n\n", "é"],
        train__lora={"r": 2},
        train__loss={"kind": "sft"},
        policy__system="Be brief.",
    )
    assert config.load(write(tmp_path, original.model_dump(mode="json"))) == original


def test_the_quickstarts_config_is_valid() -> None:
    assert config.load(QUICKSTART).run == "quickstart"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"run: [", "not readable as YAML"),
        (b"- a\n- b\n", "expected `key: value` lines at the top level, found list"),
        (b"", "found NoneType"),
        (b"run: \xff", "not readable as YAML"),
        (b"train:\n  lora: null\n  epochs: 1\n  epochs: 2\n", "the key `epochs` stands twice"),
        (b"1: 2\n", "1"),
        (b"train: {1: 2}\n", "train.1"),
    ],
    ids=repr,
)
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        config.load(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


def test_a_missing_config_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="absent.yaml: no such config file"):
        config.load(tmp_path / "absent.yaml")
    with pytest.raises(BadInput, match="not readable"):
        config.load(tmp_path)


def test_relative_paths_are_those_of_the_working_directory_and_a_hub_id_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    raw = builders.raw_config(Path("data"), "model") | {"runs_dir": "runs"}
    loaded = config.load(write(tmp_path, raw))
    assert loaded.runs_dir == str(tmp_path / "runs")
    assert loaded.folder == tmp_path / "runs" / "test"
    assert loaded.prompts.train == str(tmp_path / "data" / "train.jsonl")
    assert loaded.policy.model == str(tmp_path / "model")
    assert config.load(write(tmp_path, raw), ["policy.model=owner/name"]).policy.model == "owner/name"


def test_a_second_rewards_paths_are_made_absolute_as_the_firsts_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = builders.raw_config(tmp_path) | {"evaluate": {"second_reward": {"kind": "python", "function": "my:judge"}}}
    assert config.parse(raw, source="x").evaluate.second_reward == PythonReward(
        function="my:judge", folder=str(tmp_path)
    )


def test_made_absolute_once_a_config_stays_the_same_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = config.load(write(tmp_path, builders.raw_config(Path("data"))))
    monkeypatch.chdir(tmp_path)
    assert config.load(write(tmp_path, first.model_dump(mode="json"))) == first


# Overrides.


@given(value=st.floats(1e-9, 1), stop=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=3))
def test_an_override_is_as_good_as_a_line_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, value: float, stop: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    raw = builders.raw_config(folder)
    overrides = [f"train.learning_rate={value!r}", f"generate.stop={yaml.safe_dump(stop, default_flow_style=True)}"]
    inside = write(folder, {**raw, "train": {"learning_rate": value}, "generate": {"stop": stop}})
    expected = config.load(inside)
    assert config.load(write(folder, raw), overrides) == expected


def test_the_last_override_wins_and_neighbours_stay(tmp_path: Path) -> None:
    path = write(tmp_path, {**builders.raw_config(tmp_path), "train": {"epochs": 3, "learning_rate": 1}})
    loaded = config.load(path, ["train.epochs=4", "train.epochs=5"])
    assert (loaded.train.epochs, loaded.train.learning_rate) == (5, 1)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("run.name=3", "`run` is not a section"),
        ("train.epochs=[", "not readable as YAML"),
        ("train.epoch=3", "train.epoch: unknown key. Did you mean `epochs`?"),
        ("train.epochs=few", "train.epochs"),
        ("generate.n=1", "generate.n"),
        ("train.loss.kind=sft", ""),
    ],
)
def test_a_wrong_override_is_refused_with_its_key(tmp_path: Path, override: str, told: str) -> None:
    path = write(tmp_path, builders.raw_config(tmp_path))
    if not told:
        assert config.load(path, [override]).train.loss.kind == "sft"
        return
    with pytest.raises(BadInput) as caught:
        config.load(path, [override])
    assert told in str(caught.value)


def test_a_rule_on_a_task_needs_that_task(tmp_path: Path) -> None:
    rule = {"gate__guards": {"task_arc_easy": {"min_change": -0.05}}}
    with pytest.raises(ValidationError, match=r"gate\.guards\.task_arc_easy"):
        builders.config(tmp_path, **rule)
    builders.config(tmp_path, **rule, evaluate__tasks=["arc_easy"])


def test_a_setting_that_came_later_decides_only_where_it_is_changed() -> None:
    def of_loss(loss: PairwiseCringe | DPO) -> dict[str, Any]:
        settings: dict[str, Any] = deciding(Train(loss=loss))["loss"]
        return settings

    before = {"kind": "dpo", "beta": 0.1, "reference": "previous", "label_smoothing": 0.0}
    assert of_loss(DPO(divide_by="tokens")) == before
    assert of_loss(DPO()) == before | {"divide_by": "pairs"}
    assert of_loss(DPO(divide_by="tokens", length_normalized=True)) == before | {"length_normalized": True}
    assert of_loss(DPO(divide_by="tokens", sft_weight=0.5)) == before | {"sft_weight": 0.5}
    assert "sft_weight" not in of_loss(PairwiseCringe())
    assert of_loss(PairwiseCringe(sft_weight=0.5))["sft_weight"] == 0.5


def test_the_folder_of_a_loss_of_ones_own_becomes_absolute_and_decides_nothing(tmp_path: Path) -> None:
    raw = builders.raw_config(tmp_path)
    raw["train"] = {"loss": {"kind": "python", "module": "my_loss"}}
    train = config.parse(raw, source="my.yaml").train
    assert isinstance(train.loss, PythonLoss)
    assert train.loss.folder == str(Path.cwd())
    assert deciding(train)["loss"].keys() == {"kind", "module", "function", "reference"}


@pytest.mark.parametrize("name", ["my-loss", "my_loss:loss", "my_loss.py/", ".my_loss", ""])
def test_what_cannot_be_the_name_of_a_module_is_refused(name: str) -> None:
    raw = builders.raw_config(Path("/somewhere"))
    raw["train"] = {"loss": {"kind": "python", "module": name}}
    assert "train.loss" in fault(raw) and "module" in fault(raw)
