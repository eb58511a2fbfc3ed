"""`auto` is decided when a run begins; a run that is there, and a fork of it, keep what was decided."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from data.errors import BadInput, RunConflict
from pco import hardware
from pco.config import reward_training
from pco.config.run import RunConfig, load
from pco.runs import standalone
from pco.runs.folder import check_same, opened, read_config
from pco.runs.fork import fork
from pco.stage import Stage
from tests import builders


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Be on a machine of which one number format is the faster."""

    def move(precision: str) -> None:
        monkeypatch.setattr(hardware, "number_format", lambda: (precision, "so it was made"))

    return move


def formats(config: RunConfig) -> tuple[str, str]:
    return config.engine.dtype, config.train.precision


def write(folder: Path, **settings: Any) -> Path:
    builders.write_prompts(folder, ["a"], ["b"])
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(builders.raw_config(folder) | settings))
    return path


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("fp32", "float32")])
def test_a_new_run_has_the_format_of_its_machine_and_keeps_it_on_every_other(
    tmp_path: Path, on: Any, precision: str, dtype: str
) -> None:
    path = write(tmp_path)
    on(precision)
    config = load(path)
    assert formats(config) == (dtype, precision)
    with opened(config):
        pass
    on("fp32" if precision == "bf16" else "bf16")
    assert formats(load(path)) == formats(read_config(config.folder)) == (dtype, precision)
    check_same(load(path))
    assert Stage("train", 1, load(path)).fingerprint == Stage("train", 1, config).fingerprint
    assert formats(load(path, ["run=other"])) != (dtype, precision)


def test_an_explicit_format_is_not_touched(tmp_path: Path, on: Any) -> None:
    on("fp32")
    path = write(tmp_path, engine={"dtype": "float16"}, train={"precision": "bf16"})
    assert formats(load(path)) == ("float16", "bf16")


def test_another_format_than_the_runs_own_is_a_conflict(tmp_path: Path, on: Any) -> None:
    on("fp32")
    path = write(tmp_path)
    with opened(load(path)):
        pass
    with pytest.raises(RunConflict, match="train.precision: 'fp32' there, 'bf16' now"):
        check_same(load(path, ["train.precision=bf16"]))
    check_same(load(path, ["train.precision=auto", "engine.dtype=auto"]))


def made_before(folder: Path, dtype: str) -> RunConfig:
    """A run as versions made it that had `bf16` by default and left `engine.dtype: auto` to vLLM."""
    config = builders.config(folder, engine__dtype=dtype)
    with opened(config):
        pass
    return config


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_run_made_before_keeps_what_it_wrote_though_its_file_says_auto_or_nothing(
    tmp_path: Path, on: Any, dtype: str
) -> None:
    before = made_before(tmp_path, dtype)
    on("fp32")
    for path in (write(tmp_path), write(tmp_path, engine={"dtype": "auto"})):
        assert formats(load(path)) == formats(read_config(before.folder)) == (dtype, "bf16")
        check_same(load(path))
        for name in ("generate", "train", "refer", "evaluate"):
            assert Stage(name, 1, load(path)).fingerprint == Stage(name, 1, before).fingerprint


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_fork_and_an_evaluation_keep_the_formats_of_their_origin(tmp_path: Path, on: Any, dtype: str) -> None:
    builders.write_prompts(tmp_path, ["a"], ["b"])
    origin = made_before(tmp_path, dtype)
    on("fp32")
    forked = read_config(origin.folder, ["run=forked", "train.precision=auto"])
    fork(origin, forked, None)
    assert formats(read_config(forked.folder)) == (dtype, "bf16")
    plan = standalone.planned(origin, "/a/policy", None, tmp_path / "evaluations")
    assert plan.engine.dtype == dtype


def test_an_evaluation_is_the_same_on_every_machine(tmp_path: Path, on: Any) -> None:
    on("fp32")
    settings = load(write(tmp_path))
    plans = []
    for precision in ("fp32", "bf16"):
        on(precision)
        plans.append(standalone.planned(settings, "/a/policy", None, tmp_path / "evaluations"))
    assert plans[0] == plans[1]


def test_a_reward_training_decides_too_and_keeps_it(tmp_path: Path, on: Any) -> None:
    path = tmp_path / "reward.yaml"
    raw = {"run": "r", "runs_dir": str(tmp_path / "runs"), "model": "some/model", "preferences": "/nowhere/p.jsonl"}
    path.write_text(yaml.safe_dump(raw))
    on("fp32")
    config = reward_training.load(path)
    assert config.train.precision == "fp32"
    with opened(config):
        pass
    on("bf16")
    assert reward_training.load(path).train.precision == "fp32"
    assert reward_training.load(config.folder / "config.yaml") == config


def test_a_damaged_config_of_a_run_is_named_before_a_format_is_guessed(tmp_path: Path) -> None:
    path = write(tmp_path)
    folder = load(path).folder
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("- no\n")
    with pytest.raises(BadInput, match="holds no config"):
        load(path)
