"""A study's file: what it means, and every input that is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data import packaged
from data.errors import BadInput
from pco.config.study import Study, load
from tests import builders

DPO = {"train": {"loss": {"kind": "dpo"}}}


def write(folder: Path, **study: Any) -> Path:
    """A study's file beside its base config; what is None is left out."""
    base = builders.raw_config(folder)
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    raw = {"study": "s", "base": "base.yaml", "variants": {"pco": {}, "dpo": DPO}, "seeds": 2} | study
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in raw.items() if value is not None}, sort_keys=False))
    return path


def study_of(folder: Path, **changes: Any) -> Study:
    return load(write(folder, **changes))


def test_a_study_is_its_variants_times_its_seeds_with_the_first_variant_first(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    assert study.runs == [("pco", 0), ("dpo", 0), ("pco", 1), ("dpo", 1)]
    config = study.config("dpo", 1)
    assert (config.run, config.seed, config.train.loss.kind) == ("s-dpo-s1", 1, "dpo")
    assert study.config("pco", 0).train.loss.kind == "pairwise_cringe"
    assert study.folder == tmp_path / "runs" / "studies" / "s"


def test_the_study_that_comes_with_pco_compares_two_losses_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (packaged.absolute("package:presets/study-quick.yaml"), Path("package:presets/study-quick.yaml")):
        study = load(path, ["rounds=1"])
        assert {name: config.train.loss.kind for name, config in study.variants.items()} == {
            "pco": "pairwise_cringe",
            "dpo": "dpo",
        }
        assert {config.rounds for config in study.variants.values()} == {1}


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"loss": {"kind": "dpo", "beta": 0.5}, "learning_rate": 1e-3}},
        {"train.loss": {"beta": 0.5, "kind": "dpo"}, "train.learning_rate": 1e-3},
        {"train.loss.kind": "dpo", "train.loss.beta": 0.5, "train": {"learning_rate": 1e-3}},
        {"train.loss": {"kind": "dpo", "beta": 0.5}, "train": {"learning_rate": "1e-3"}},
    ],
)
def test_a_variant_is_written_in_sections_or_by_dotted_keys(tmp_path: Path, changes: dict[str, Any]) -> None:
    train = study_of(tmp_path, variants={"a": {}, "b": changes}).variants["b"].train
    assert (train.loss.kind, train.loss.beta, train.learning_rate) == ("dpo", 0.5, 1e-3)  # type: ignore[union-attr]


def test_a_mapping_replaces_what_is_no_section_and_an_empty_one_is_a_section(tmp_path: Path) -> None:
    source = {"dataset": "someone/data", "split": "train"}
    config = study_of(tmp_path, variants={"a": {}, "b": {"prompts": {"train": source}, "train.lora": {}}}).variants["b"]
    assert config.prompts.train.dataset == "someone/data"  # type: ignore[union-attr]
    assert config.train.lora is not None


def test_the_base_may_stand_in_the_file_and_the_command_line_changes_it_before_the_variants(tmp_path: Path) -> None:
    path = write(tmp_path, base=None, run=builders.raw_config(tmp_path), variants={"a": {}, "b": {"rounds": 7}})
    study = load(path, ["rounds=4", f"runs_dir={tmp_path / 'other'}"], name="t", at_a_time=2)
    assert [config.rounds for config in study.variants.values()] == [4, 7]
    assert (study.name, study.max_concurrent, study.runs_dir) == ("t", 2, tmp_path / "other")


@settings(max_examples=15)
@given(
    taus=st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True),
    rates=st.lists(st.sampled_from([1e-5, 2e-5, 1e-4]), max_size=2, unique=True),
    named=st.booleans(),
)
def test_a_sweep_is_a_grid_crossed_with_the_variants(
    tmp_path_factory: pytest.TempPathFactory, taus: list[int], rates: list[float], named: bool
) -> None:
    sweep: dict[str, list[Any]] = {"train.loss.tau": taus} | ({"train.learning_rate": rates} if rates else {})
    variants = {"raw": {"policy": {"prompt_format": "raw"}}, "chat": {}} if named else None
    study = study_of(tmp_path_factory.mktemp("sweep"), variants=variants, sweep=sweep)
    assert len(study.variants) == len(taus) * max(1, len(rates)) * (2 if named else 1)
    found = {
        (config.policy.prompt_format, config.train.loss.tau, config.train.learning_rate)  # type: ignore[union-attr]
        for config in study.variants.values()
    }
    assert len(found) == len(study.variants)
    assert all(f"tau{int(config.train.loss.tau)}" in name for name, config in study.variants.items())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"variants": {"a": {}, "b": {"train.loss.bta": 1}}}, r"variant `b`: .*train\.loss.*bta: unknown key"),
        ({"variants": {"a": {}, "b": {"train": {"learnig_rate": 1}}}}, r"variant `b`.*Did you mean `learning_rate`"),
        ({"variants": {"a": {}, "b": {"rounds": "two"}}}, r"variant `b`.*rounds: Input should be a valid integer"),
        ({"variants": {"a": {}, "b": {"rounds.more": 1}}}, r"variant `b`"),
        ({"variants": {"a": {}, "b": {}}}, r"variants `a` and `b` have the same settings"),
        ({"variants": {"a": {}, "b": {"train.loss.kind": "pairwise_cringe"}}}, r"`a` and `b` have the same settings"),
        ({"variants": {"a": {}, "A": DPO}}, r"variants a, A would share a folder"),
        ({"variants": {"a": {}}, "sweep": {"train.loss.tau": ["1", 1]}}, r"a-tau1, a-tau1 would share a folder"),
        ({"variants": {"a": {}, "b/c": DPO}}, r"variants\.b/c: expected a name"),
        ({"variants": {"a": {}, "b": {"seed": 3}}}, r"variant `b`: seed: .*same seeds"),
        ({"variants": {"a": {}, "b": {"run": "x"}}}, r"variant `b`: run: "),
        ({"variants": {"a": {}, "b": {"policy": {"revision": 12}}}}, r"policy\.revision: a text belongs here.*quotes"),
        ({"variants": {"a": {}, "b": {"rounds": 3, "train": {"loss": {"tau": 1}}, "train.loss.tau": 2}}}, "set twice"),
        ({"variants": {"a": {}, "b": {"train.loss.tau": 1}}, "sweep": {"train.loss.tau": [2]}}, r"in `sweep` as well"),
        ({"variants": {"a": {}, "dpo": DPO}, "sweep": {"train.loss.tau": [2]}}, r"variant `dpo-tau2`.*tau: unknown"),
        ({"variants": {"a": {}, "b": {"gate.otherwise": "ask"}}}, r"variant `b`: gate\.otherwise"),
        ({"variants": {"a": {}, "b": {"series.name": "nightly"}}}, r"variant `b`: series: .*prompts of its own"),
        ({"base": None, "run": {"runs_dir": None}}, r"variant `pco`.*runs_dir"),
        ({"variants": {"a": {}, "b": {"prompts.test": "t.jsonl"}}}, r"variant `b`: prompts\.test"),
        ({"variants": {"a": {}, "b": {"prompts.test_share": 0.5}}}, r"variant `b`: .*prompts\.test_share"),
        ({"variants": {"a" * 59: {}, "b": DPO}, "study": "s" * 59}, r"letters, and may have 100"),
        ({"variants": None}, "nothing to compare"),
        ({"variants": {}, "sweep": {"rounds": []}}, "one or more plain values"),
        ({"sweep": {"reward": [{"kind": "repetition"}]}}, "one or more plain values"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": [1, 1]}, "different seeds"),
        ({"seeds": [-1]}, "0 or more"),
        ({"max_concurrent": 0}, "max_concurrent"),
        ({"base": None}, "give `base`"),
        ({"run": {"run": "x"}}, "give `base`"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: no such config file"),
        ({"varants": {}}, "varants: unknown key. Did you mean `variants`"),
        ({"study": "a/b"}, "study"),
    ],
)
def test_bad_input_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=f"(?s){told}"):
        study_of(tmp_path, **changes)


def test_the_seed_cannot_be_set_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--set seed=3: .*`seeds`"):
        load(write(tmp_path), ["seed=3"])
