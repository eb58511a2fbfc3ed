"""What a filled-in form means, and that the form can be read."""

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from prefect import Flow
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema

from data.errors import BadInput
from flows.comparison import compare_policies, evaluate_policies
from flows.form import Extent, Learning, Preset, SeriesChoice, next_round, preset_file, sets, start, train_reward
from flows.studies import make_study
from pco.config import reward_training
from pco.config.prompts import DataSource
from pco.config.run import RunConfig, load
from pco.config.series import Series
from pco.config.study import Study
from pco.runs.folder import opened
from tests import builders

FORMS = [start, next_round, train_reward, evaluate_policies, compare_policies, make_study]


def configured(preset: Preset, said: dict[str, str | float], overrides: str = "") -> RunConfig:
    return load(preset_file(preset), sets(said, overrides))


@pytest.mark.parametrize("preset", get_args(Preset))
def test_every_preset_is_a_whole_config(preset: Preset) -> None:
    assert configured(preset, {"run": "mine"}).run == "mine"


def test_what_a_form_leaves_empty_is_the_preset_s() -> None:
    config = configured("quickstart", {"run": "mine", "policy.model": "", "rounds": 7})
    assert config.policy.model.endswith("smollm2-135m-instruct")
    assert config.rounds == 7


def test_overrides_have_the_last_word() -> None:
    assert configured("quickstart", {"run": "mine", "seed": 1}, "\n seed=2 \n").seed == 2


def test_a_field_is_a_path_and_an_override_may_be_a_source() -> None:
    said = {"run": "mine", "policy.model": "m", "prompts.heldout": "{dataset: a/b}"}
    config = configured("quickstart", said, "prompts.train={dataset: someone/data, split: train, labels: {first: 0}}")
    assert config.prompts.heldout == str(Path("{dataset: a/b}").resolve())
    assert config.prompts.train == DataSource(dataset="someone/data", split="train", labels={"first": "0"})


def test_a_name_that_looks_like_a_number_stays_a_name() -> None:
    assert configured("quickstart", {"run": "2026"}).run == "2026"


def test_a_form_s_overrides_choose_the_executor() -> None:
    config = configured("quickstart", {"run": "mine"}, "executor.kind=pool\nexecutor.workers=2")
    assert (config.executor.kind, config.executor.workers) == ("pool", 2)


def test_a_form_s_name_holds_the_scheduled_date_however_late_it_starts_or_is_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[RunConfig] = []
    monkeypatch.setattr("flows.form.work", made.append)
    due = datetime(2026, 1, 31, 23, 30, tzinfo=timezone(timedelta(hours=-1)))
    monkeypatch.setattr("flows.form.flow_run", SimpleNamespace(scheduled_start_time=due))
    start.fn("nightly-{date}")
    start.fn("nightly-{date}")
    assert [config.run for config in made] == ["nightly-2026-02-01"] * 2


def test_a_form_s_run_is_of_no_series_unless_it_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[RunConfig] = []
    monkeypatch.setattr("flows.form.work", made.append)
    start.fn("mine")
    start.fn("mine", series=SeriesChoice(name="s", on_overlap="queue"))
    start.fn("mine", series=SeriesChoice(name="s", prompts=8))
    assert [config.series for config in made] == [
        None,
        Series(name="s", on_overlap="queue"),
        Series(name="s", prompts=8),
    ]


def test_other_braces_in_a_form_s_name_are_refused() -> None:
    with pytest.raises(ParameterTypeError, match="run"):
        start.validate_parameters({"run": "nightly-{day}"})


def test_a_wrong_override_is_refused_by_its_key() -> None:
    with pytest.raises(BadInput, match=r"train\.learning_rat: unknown key. Did you mean `learning_rate`"):
        configured("quickstart", {"run": "mine"}, "train.learning_rat=1")


@pytest.mark.parametrize("form", FORMS)
def test_no_field_of_a_form_is_of_several_types_a_list_or_a_fraction_which_the_ui_shows_badly(
    form: Flow[Any, Any],
) -> None:
    schema = json.dumps(parameter_schema(form).model_dump())
    assert "anyOf" not in schema
    assert '"array"' not in schema
    assert '"number"' not in schema


@pytest.mark.parametrize("form", FORMS)
def test_every_field_of_a_form_is_described(form: Flow[Any, Any]) -> None:
    schema = parameter_schema(form).model_dump()
    groups = [schema, *schema["definitions"].values()]
    fields = {name: field for group in groups for name, field in group.get("properties", {}).items()}
    told = {name: field.get("description") or "$ref" in json.dumps(field) for name, field in fields.items()}
    assert [name for name in told if not told[name]] == []
    assert all(group["description"] for group in schema["definitions"].values())


def test_a_negative_number_of_rounds_and_a_name_with_a_slash_are_refused_by_the_field_s_name() -> None:
    with pytest.raises(ParameterTypeError, match=r"extent\.rounds"):
        start.validate_parameters({"run": "mine", "extent": {"rounds": -1}})
    with pytest.raises(ParameterTypeError, match="run"):
        start.validate_parameters({"run": "my/run"})


@pytest.mark.parametrize("preset", get_args(Preset))
def test_an_untouched_form_makes_as_many_rounds_as_its_preset(preset: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[RunConfig] = []
    monkeypatch.setattr("flows.form.work", made.append)
    start.fn("mine", preset)
    start.fn("mine", preset, extent=Extent(rounds=7))
    assert [config.rounds for config in made] == [load(preset_file(preset)).rounds, 7]


@pytest.mark.parametrize(("otherwise", "change"), [("stop", "otherwise=roll_back"), ("continue_anyway", "patience=N")])
def test_no_round_follows_where_the_gate_ended_the_run_and_the_cause_is_told(
    tmp_path: Path, otherwise: str, change: str
) -> None:
    builders.write_prompts(tmp_path, ["train"], ["heldout"])
    config = builders.config(tmp_path, run="ended", rounds=2, gate={"otherwise": otherwise, "patience": 1})
    builders.played(config, refused=1)
    with pytest.raises(BadInput, match=rf"round 1 no.*pco resume .*ended --set gate\.{change}"):
        next_round.fn("ended", str(config.folder.parent))


def test_one_more_round_needs_a_run(tmp_path: Path) -> None:
    with opened(builders.config(tmp_path, run="there")):
        pass
    with pytest.raises(BadInput, match="no run here. Runs in .*: there"):
        next_round.fn("elsewhere", str(tmp_path / "runs"))


def test_what_the_reward_s_form_begins_with_is_its_preset_s() -> None:
    assert Learning().epochs == reward_training.load(preset_file("reward")).train.epochs


@pytest.mark.parametrize(
    ("form", "said", "told"),
    [
        (train_reward, {"run": "mine", "preferences": " "}, "preferences"),
        (train_reward, {"run": "mine", "preferences": "pairs.jsonl", "train": {"epochs": 0}}, r"train\.epochs"),
        (
            train_reward,
            {"run": "mine", "preferences": "p", "train": {"length_penalty": "-1"}},
            r"train\.length_penalty",
        ),
        (evaluate_policies, {"policies": "\n"}, "policies"),
        (make_study, {"study": "a/b"}, "study"),
        (make_study, {"study": "s", "config": ""}, "config"),
        (make_study, {"study": "s", "max_concurrent": 0}, "max_concurrent"),
        (evaluate_policies, {"policies": "weekly:1", "level": "95"}, "level"),
        (compare_policies, {"first": {"run": "a", "round": 0}, "second": {"run": "b", "round": -1}}, r"second\.round"),
    ],
)
def test_a_bad_value_is_refused_by_the_field_s_name(form: Flow[Any, Any], said: dict[str, Any], told: str) -> None:
    with pytest.raises(ParameterTypeError, match=told):
        form.validate_parameters(said)


def test_what_only_the_config_knows_is_told_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="train.epoch: unknown key"):
        train_reward.fn("mine", "pairs.jsonl", overrides="train.epoch=2", runs_dir=str(tmp_path))
    with pytest.raises(BadInput, match="policies: a, a names one twice"):
        evaluate_policies.fn("a\n\na", str(preset_file("quickstart")), runs_dir=str(tmp_path))
    with pytest.raises(BadInput, match="rouns: unknown key"):
        make_study.fn("s", overrides="rouns=1", runs_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_untouched_form_of_a_study_makes_the_one_that_comes_with_pco(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Study] = []
    monkeypatch.setattr("flows.studies.work", made.append)
    make_study.fn("mine", overrides="rounds=1\n", runs_dir=str(tmp_path))
    (study,) = made
    assert (study.name, list(study.variants), study.runs_dir) == ("mine", ["pco", "dpo"], tmp_path)
    assert {config.rounds for config in study.variants.values()} == {1}
