"""What a value means is decided by its field: in a file, by `--set`, and in a form's overrides."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadInput
from pco.config import typed
from pco.config.overrides import overridden
from pco.config.run import RunConfig, load
from tests import builders

NAMES = ["012", "0x1F", "1e3", "1_000", "on", "off", "yes", "2024-01-01", "1.0", "1:30", "null"]
TEXTS = [
    *NAMES,
    "team #2",
    "a: b",
    "- a",
    "[a]",
    "{a}",
    "*a",
    "&a b",
    "!x",
    "%",
    "@",
    "it's",
    "a, b",
    "say 'a' now",
    " a ",
]


def with_set(*sets: str, raw: dict[str, Any] | None = None) -> dict[str, Any]:
    return overridden(RunConfig, raw or builders.raw_config(Path("/somewhere")), list(sets))


def from_file(folder: Path, text: str, *sets: str, **raw: Any) -> Any:
    """The config of a file that ends in some text as it is."""
    path = folder / "config.yaml"
    raw = {key: value for key, value in (builders.raw_config(folder) | raw).items() if f"\n{key}:" not in f"\n{text}"}
    path.write_text(yaml.safe_dump(raw) + text, encoding="utf-8")
    return load(path, list(sets))


@pytest.mark.parametrize("text", TEXTS)
def test_an_override_of_a_text_is_that_text(text: str) -> None:
    assert with_set(f"runs_dir={text}")["runs_dir"] == text


@given(text=st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip()))
def test_any_text_in_the_quotes_of_yaml_is_itself_without_them(text: str) -> None:
    single = text.replace("'", "''")
    if "\n" not in text and text.isprintable():
        assert with_set(f"runs_dir='{single}'")["runs_dir"] == text
    if text[0] not in "\"'" and text.strip()[0] not in "\"'":
        assert with_set(f"runs_dir={text}")["runs_dir"] == text


@pytest.mark.parametrize("text", ['"a" and "b"', "'a' # b", '"', "'", '"a'])
def test_quotes_that_are_not_around_all_of_a_text_are_part_of_it(text: str) -> None:
    assert with_set(f"runs_dir={text}")["runs_dir"] == text


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_null_and_nothing_stand_for_none_where_a_text_may_be_left_out(text: str) -> None:
    assert with_set(f"policy.system={text}")["policy"]["system"] is None
    assert with_set('policy.system="null"')["policy"]["system"] == "null"


def test_nothing_is_no_text_where_one_is_required(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="runs_dir: Input should be a valid string"):
        from_file(tmp_path, "", "runs_dir=")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "null"])
def test_a_text_of_a_file_needs_no_quotes(tmp_path: Path, name: str) -> None:
    config = from_file(
        tmp_path, f"run: a\npolicy: {{model: some/model, revision: {name}}}\ngenerate: {{stop: [{name}]}}"
    )
    assert config.policy.revision == name
    assert config.generate.stop == [name]


def test_a_run_s_name_and_a_revision_keep_their_digits(tmp_path: Path) -> None:
    assert from_file(tmp_path, "run: 012\n").run == "012"
    assert from_file(tmp_path, "", "run=012", "policy.revision=1234567").run == "012"
    assert from_file(tmp_path, "", "policy.revision=1234567").policy.revision == "1234567"


def test_a_choice_by_name_may_be_called_off(tmp_path: Path) -> None:
    assert from_file(tmp_path, "train: {loss: {gate: off}}\n").train.loss.gate == "off"
    assert from_file(tmp_path, "", "train.loss.gate=off").train.loss.gate == "off"


def test_what_is_no_text_is_still_yaml(tmp_path: Path) -> None:
    sets = ["train.gradient_checkpointing=on", "rounds=3 # enough", "generate.max_tokens=0x10", "train.lora={r: 2}"]
    config = from_file(tmp_path, "train: {fused_head: no}\n", *sets)
    assert (config.train.gradient_checkpointing, config.train.fused_head) == (True, False)
    assert (config.rounds, config.generate.max_tokens) == (3, 16)
    assert config.train.lora is not None


@pytest.mark.parametrize(("text", "expected"), [("all-linear", "all-linear"), ("[q, off]", ["q", "off"])])
def test_a_name_or_a_list_of_them(tmp_path: Path, text: str, expected: object) -> None:
    config = from_file(tmp_path, "", f"train.lora.target_modules={text}")
    assert config.train.lora is not None
    assert config.train.lora.target_modules == expected


def test_a_section_that_is_null_can_be_set_into(tmp_path: Path) -> None:
    config = from_file(
        tmp_path,
        "train: {lora: null}\n",
        "train.lora.r=3",
        "evaluate.second_reward.ngram=4",
        "evaluate.second_reward.kind=repetition",
    )
    assert config.train.lora is not None
    assert config.train.lora.r == 3


def test_texts_inside_an_ensemble_and_of_merged_sections_are_texts(tmp_path: Path) -> None:
    text = (
        "reward:\n  kind: ensemble\n  members:\n"
        "  - reward: &base {kind: model, model: a/b, revision: 0123}\n"
        "  - reward: {<<: *base, model: 7}\n"
    )
    reward = from_file(tmp_path, text).reward
    assert [member.reward.revision for member in reward.members] == ["0123", "0123"]
    assert reward.members[1].reward.model == "7"


# A changed kind.


def dumped(tmp_path: Path, **raw: Any) -> dict[str, Any]:
    """Every setting written out, as in the folder of a run."""
    return from_file(tmp_path, "", **raw).model_dump(mode="json")


@pytest.mark.parametrize("kind", ["dpo", "ipo", "sft"])
def test_a_changed_loss_begins_from_its_own_defaults(tmp_path: Path, kind: str) -> None:
    raw = with_set(f"train.loss.kind={kind}", raw=dumped(tmp_path, train={"loss": {"tau": 3.0}}))
    assert raw["train"]["loss"] == {"kind": kind}
    assert RunConfig.model_validate(raw).train.loss.kind == kind


@pytest.mark.parametrize("order", [1, -1])
def test_what_other_overrides_set_of_the_new_kind_is_kept_in_any_order(tmp_path: Path, order: int) -> None:
    sets = ["train.loss.kind=dpo", "train.loss.beta=0.2"][::order]
    assert from_file(tmp_path, "train: {loss: {tau: 3}}\n", *sets).train.loss.beta == 0.2


def test_a_kind_that_stays_keeps_its_settings(tmp_path: Path) -> None:
    assert from_file(tmp_path, "train: {loss: {tau: 3}}\n", "train.loss.kind=pairwise_cringe").train.loss.tau == 3


def test_a_key_of_the_old_kind_that_is_set_as_well_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"train\.loss\.dpo\.tau: unknown key"):
        from_file(tmp_path, "", "train.loss.tau=3", "train.loss.kind=dpo")


def test_the_config_that_is_overridden_is_left_as_it_is(tmp_path: Path) -> None:
    raw = dumped(tmp_path)
    with_set("train.loss.kind=dpo", "policy.system=Be brief.", raw=raw)
    assert raw == dumped(tmp_path)


def test_a_changed_reward_begins_from_its_own_defaults_and_its_texts_are_texts(tmp_path: Path) -> None:
    raw = dumped(tmp_path, reward={"kind": "length", "max_tokens": 9})
    raw = with_set("reward.pattern=a #b", "reward.kind=regex", raw=raw)
    assert raw["reward"] == {"kind": "regex", "pattern": "a #b"}
    raw = with_set("evaluate.second_reward.kind=repetition", raw=dumped(tmp_path))
    assert raw["evaluate"]["second_reward"] == {"kind": "repetition"}


def test_a_list_that_holds_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not readable as YAML"):
        from_file(tmp_path, "generate: {stop: &a [*a]}\n")


def test_every_text_of_the_config_is_taken_for_one() -> None:
    for key in ("run", "runs_dir"):
        assert typed.value("012", typed.below([RunConfig], key)) == "012"
    assert typed.value("012", typed.below([RunConfig], "seed")) == 10


@pytest.mark.parametrize("text", [text for text in TEXTS if text.strip()[0] not in "[{"])
def test_a_path_where_a_source_may_stand_is_that_text(text: str) -> None:
    assert with_set(f"prompts.train={text}")["prompts"]["train"] == text


@pytest.mark.parametrize("text", NAMES)
def test_a_path_of_a_file_where_a_source_may_stand_is_that_text(tmp_path: Path, text: str) -> None:
    prompts = f"prompts: {{train: {text}, heldout: a, heldout_text: b}}\n"
    if text != "null":
        assert from_file(tmp_path, prompts).prompts.train == str(Path(text).resolve())


def test_a_source_and_a_mixture_can_be_set() -> None:
    source = "{dataset: a/b, split: 012, labels: {first: 0, second: true}}"
    raw = with_set(f"prompts.train={source}", "prompts.heldout='[a]'")
    labels = {"first": "0", "second": "true"}
    assert raw["prompts"]["train"] == {"dataset": "a/b", "split": "012", "labels": labels}
    assert raw["prompts"]["heldout"] == "[a]"
    raw = with_set("prompts.train.limit=5", "prompts.preferences=[a.jsonl, {dataset: b, weight: 2}]", raw=raw)
    assert raw["prompts"]["train"]["limit"] == 5
    assert raw["prompts"]["preferences"] == ["a.jsonl", {"dataset": "b", "weight": 2}]
