"""One config, one writer per run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from data.errors import BadInput, RunConflict
from pco.config.file import OF_RUN
from pco.config.train import PairwiseCringe
from pco.runs.folder import check_same, opened, read_config, write_config
from tests import builders


def test_a_new_run_gets_its_folder_and_every_setting_written_out(tmp_path: Path) -> None:
    config = builders.config(tmp_path)
    with opened(config):
        pass
    assert read_config(config.folder) == config


def test_a_run_name_taken_by_another_config_is_refused_by_key(tmp_path: Path) -> None:
    with opened(builders.config(tmp_path)):
        pass
    changed = builders.config(tmp_path, seed=7, train__learning_rate=1.0)
    with pytest.raises(RunConflict, match=r"(?s)seed: 0 there, 7 now.*train.learning_rate"), opened(changed):
        pass


def test_more_rounds_and_other_limits_are_the_same_run(tmp_path: Path) -> None:
    with opened(builders.config(tmp_path)):
        pass
    with opened(builders.config(tmp_path, rounds=9, stage_timeout_s=5, engine__kv_cache_gib=2.0)):
        assert read_config(tmp_path / "runs/test").rounds == 9


def test_a_run_goes_on_with_other_workers_also_one_that_began_before_there_were_any(tmp_path: Path) -> None:
    config = builders.config(tmp_path)
    with opened(config):
        pass
    path = config.folder / OF_RUN
    raw = yaml.safe_load(path.read_text())
    assert raw.pop("executor") == {"kind": "local", "workers": 1, "gpus_per_worker": None, "address": "auto"}
    path.write_text(yaml.safe_dump(raw))
    assert read_config(config.folder) == config
    with opened(read_config(config.folder, ["executor.kind=pool", "executor.workers=2"])):
        assert read_config(config.folder).executor.workers == 2


def test_a_run_is_never_made_shorter_than_what_is_decided(tmp_path: Path) -> None:
    builders.write_prompts(tmp_path, ["a"], ["b"])
    builders.played(builders.config(tmp_path, rounds=3))
    with (
        pytest.raises(RunConflict, match="3 rounds .*`rounds: 2`"),
        opened(builders.config(tmp_path, rounds=2)),
    ):
        pass


def test_how_a_judge_is_reached_may_change_within_a_run(tmp_path: Path) -> None:
    judge = {"kind": "judge", "base_url": "http://one/v1", "model": "m", "against": "reference"}
    ensemble = {"kind": "ensemble", "members": [{"reward": {"kind": "repetition"}}, {"reward": judge}]}
    for reward in (judge, ensemble):
        with opened(builders.config(tmp_path, run=reward["kind"], reward=reward)):
            pass
        judge["base_url"], judge["retries"] = "http://other/v1", 9
        with opened(builders.config(tmp_path, run=reward["kind"], reward=reward)):
            pass
    with (
        pytest.raises(RunConflict, match="reward.model"),
        opened(builders.config(tmp_path, run="judge", reward={**judge, "model": "another"})),
    ):
        pass


@pytest.mark.parametrize("kind", ["dpo", "ipo", "simpo"])
def test_a_run_that_was_made_before_divides_losses_of_a_pair_by_tokens_to_its_end(tmp_path: Path, kind: str) -> None:
    config = builders.config(tmp_path, train__loss={"kind": kind})
    write_config(config, config.folder)
    path = config.folder / OF_RUN
    assert read_config(config.folder).train == config.train
    text = path.read_text()
    assert text.count("divide_by: pairs") == 1
    path.write_text(re.sub(" *divide_by: pairs\n", "", text))
    before = read_config(config.folder)
    assert before.train.loss.divide_by == "tokens"  # type: ignore[union-attr]
    with pytest.raises(RunConflict, match="divide_by"):
        check_same(config)
    check_same(before)
    other = read_config(config.folder, ["train.loss.kind=pairwise_cringe"])
    assert other.train.loss == PairwiseCringe()


def test_a_run_of_dpo_that_was_made_before_is_not_stale_and_goes_on_as_it_began(tmp_path: Path) -> None:
    builders.write_prompts(tmp_path, ["a"], ["b"])
    config = builders.config(tmp_path, rounds=2, train__loss={"kind": "dpo", "divide_by": "tokens"})
    done = builders.played(config, until=(2, "train"))
    path = config.folder / OF_RUN
    raw = yaml.safe_load(path.read_text())
    del raw["train"]["loss"]["divide_by"]
    path.write_text(yaml.safe_dump(raw))
    stages = builders.played(read_config(config.folder))
    assert [stage.fingerprint for stage in stages[: len(done)]] == [stage.fingerprint for stage in done]
    losses = [stage.config.train.loss for stage in stages if stage.name == "train"]
    assert losses == [config.train.loss] * 2


def test_a_moved_run_is_read_where_it_lies(tmp_path: Path) -> None:
    config = builders.config(tmp_path)
    with opened(config):
        pass
    moved = tmp_path / "elsewhere" / "test"
    moved.parent.mkdir()
    config.folder.rename(moved)
    assert read_config(moved).folder == moved


@pytest.mark.process
def test_a_second_writer_is_told_who_holds_the_run_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    config = builders.config(tmp_path)
    program = (
        "import signal, sys; from pco.config.run import RunConfig; from pco.runs.folder import opened\n"
        "with opened(RunConfig.model_validate_json(sys.argv[1])): print('held', flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", program, config.model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunConflict, match=f"process {holder.pid} on "), opened(config):
            pass
        holder.kill()
    with opened(config):
        pass


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run here"):
        read_config(tmp_path)
