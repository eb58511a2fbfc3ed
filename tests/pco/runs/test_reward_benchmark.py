"""Rewards held to a public benchmark: a real reward model, and a judge over real HTTP."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from data import reward_benchmarks, store
from data.errors import BadInput, BudgetSpent
from flows.cli import app
from pco.config.reward import EnsembleReward, JudgeReward, RegexReward, RepetitionReward, RewardConfig
from pco.runs import reward_benchmark
from tests import tiny_reward
from tests.chat_server import Fault, serving

runner = CliRunner(env={"COLUMNS": "200"})


def best(number: int, subset: str = "Math") -> dict[str, Any]:
    wrong = [f"w{number}", f"wrong {number}", "w"]
    row = {"id": str(number), "prompt": f"question {number}", "chosen": [f"right {number}"], "rejected": wrong}
    return {**row, "num_correct": 1, "subset": subset}


def tied(number: int) -> list[dict[str, Any]]:
    ref = {**best(number, "Ties"), "id": f"ref:{number}"}
    return [ref, {**ref, "id": f"tied:{number}", "chosen": ["right", "also right"], "num_correct": 2}]


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "benchmark.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def planned(folder: Path, config: RewardConfig, path: Path, max_cost: float | None = None) -> reward_benchmark.Plan:
    items = reward_benchmarks.read([path])
    return reward_benchmark.plan(config, items, [path], name="mine", out=folder / "out", max_cost=max_cost)


def likes_right(question: str) -> str:
    """A judge who knows the right answer, but takes the first one where the prompt is about 0."""
    first = question.split("### Answer A\n")[1].split("\n", maxsplit=1)[0]
    return "[[A]]" if "question 0" in question or first.startswith("right") else "[[B]]"


def test_a_judge_is_asked_in_both_orders_and_told_of_where_it_follows_the_position(tmp_path: Path) -> None:
    path = written(tmp_path, [*map(best, range(4)), *tied(9)])
    judge = tmp_path / "judge.yaml"
    with serving(likes_right) as server:
        reward = {"kind": "judge", "base_url": server.url, "model": "jury", "input_price": 1.0, "max_tokens": 8}
        judge.write_text(yaml.safe_dump({"run": "ignored", "reward": reward}))
        command = ["reward", "evaluate", str(judge), "--data", str(path), "--runs-dir", str(tmp_path / "runs")]
        dry = runner.invoke(app, [*command, "--dry-run"])
        assert dry.exit_code == 0, dry.output
        assert "24 requests" in dry.output
        assert not server.bodies
        result = runner.invoke(app, command)
        assert result.exit_code == 0, result.output
        assert len(server.bodies) == 4 * 3 * 2
        assert runner.invoke(app, command).exit_code == 0
        assert len(server.bodies) == 24  # finished work is not done again
    assert re.search(r"Verdict follows the position.*4.*25\.0 %", result.output)
    (folder,) = (tmp_path / "runs" / "reward-evaluations").iterdir()
    manifest = store.read_manifest(folder)
    assert manifest is not None
    assert (manifest.rows_in, manifest.rows_out, manifest.dropped) == (6, 4, {reward_benchmark.NO_MARGIN: 2})
    assert manifest.metrics["judge_requests"] == 24
    assert manifest.metrics["pair_accuracy"] == pytest.approx((0.5 + 3) / 4)
    page = (folder / reward_benchmark.REPORT).read_text()
    assert "best of 4" in page
    assert "jury" in folder.name


def test_an_evaluation_that_is_cut_off_goes_on_where_it_was_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_benchmark, "SHARD_ITEMS", 3)
    path = written(tmp_path, [best(i) for i in range(5)])
    with serving(likes_right) as server:
        config = JudgeReward(base_url=server.url, model="jury", input_price=1e4, max_tokens=1)  # 1 a reply, 6 a prompt
        whole = reward_benchmark.run(planned(tmp_path / "whole", config, path), lambda _: None)
        asked = len(server.bodies)
        with pytest.raises(BudgetSpent):
            reward_benchmark.run(planned(tmp_path, config, path, max_cost=24.0), lambda _: None)
        plan = planned(tmp_path, config, path, max_cost=1000.0)
        assert store.has_part(plan.folder, reward_benchmark.TABLE, 0, plan.fingerprint)
        assert asked < len(server.bodies) < 2 * asked
        resumed = reward_benchmark.run(plan, lambda _: None)
        assert len(server.bodies) == 2 * asked
        other = planned(tmp_path / "whole", config, path).folder
    assert store.read_table(plan.folder, reward_benchmark.TABLE) == store.read_table(other, reward_benchmark.TABLE)
    assert resumed.metrics["pair_accuracy"] == whole.metrics["pair_accuracy"]


def test_a_prompt_without_a_readable_verdict_is_left_out_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path, [best(0), best(1)])
    reply = "[[A]]"
    with serving(lambda question: "no idea" if "question 0" in question else reply) as server:
        config = JudgeReward(base_url=server.url, model="jury")
        manifest = reward_benchmark.run(planned(tmp_path, config, path), lambda _: None)
    assert (manifest.rows_out, manifest.dropped) == (1, {reward_benchmark.UNREAD: 1})
    with serving(lambda _: Fault(400)) as server:
        config = JudgeReward(base_url=server.url, model="other")
        with pytest.raises(BadInput, match="refused every question"):
            reward_benchmark.run(planned(tmp_path, config, path), lambda _: None)


def test_what_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, tied(1))
    with pytest.raises(BadInput, match="`repetition`"):
        planned(tmp_path, RepetitionReward(), path)
    with pytest.raises(BadInput, match="only a judge"):
        planned(tmp_path, RegexReward(pattern="x"), path, max_cost=1.0)
    with pytest.raises(BadInput, match="of the subset Ties"):
        planned(tmp_path, JudgeReward(base_url="http://127.0.0.1:1/v1", model="jury"), path)


def test_the_order_of_files_is_a_part_of_the_result_and_the_same_file_twice_is_refused(tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        paths.append(written(tmp_path / str(number), [best(number % 2)]))
    first, second, again = paths

    def folder(*files: Path) -> Path:
        items = reward_benchmarks.read(files)
        config = RegexReward(pattern="^right")
        return reward_benchmark.plan(config, items, files, name="mine", out=tmp_path / "out").folder

    # All three have one name; shards hold prompts by their place among all.
    assert len({folder(first), folder(second), folder(first, second), folder(second, first)}) == 4
    with pytest.raises(BadInput, match="same content"):
        folder(first, again)


def test_a_judge_in_an_ensemble_is_counted_too_and_has_no_limit(tmp_path: Path) -> None:
    path = written(tmp_path, [best(0), best(1)])
    judge = {"kind": "judge", "base_url": "http://127.0.0.1:1/v1", "model": "jury"}
    members = [{"reward": judge}, {"reward": {"kind": "regex", "pattern": "x"}}]
    config = EnsembleReward.model_validate({"members": members})
    ((model, estimate),) = reward_benchmark.estimates(planned(tmp_path, config, path))
    assert (model, estimate.requests) == ("jury", 2 * 3 * 2)
    with pytest.raises(BadInput, match="in an ensemble"):
        planned(tmp_path, config, path, max_cost=1.0)


def test_any_reward_of_texts_can_be_evaluated(tmp_path: Path) -> None:
    path = written(tmp_path, [best(0), *tied(1)])
    plan = planned(tmp_path, RegexReward(pattern="^(right|also)"), path)
    manifest = reward_benchmark.run(plan, lambda _: None)
    assert manifest.metrics["pair_accuracy"] == 1.0
    assert manifest.metrics["mean_of_subsets"] == pytest.approx((1 + 1.01) / 2)


@pytest.mark.engine
def test_a_reward_model_scores_every_answer(tmp_path: Path, tokenizer: Any) -> None:
    model = tiny_reward.make(tmp_path / "model", tokenizer, pad=tokenizer.pad_token_id)
    path = written(tmp_path, [best(0), best(1), *tied(1)])
    command = ["reward", "evaluate", str(model), "--data", str(path), "--out", str(tmp_path / "out")]
    result = runner.invoke(app, [*command, "--set", "reward.backend=transformers"])
    assert result.exit_code == 0, result.output
    assert "mean of subsets" in result.output
    (folder,) = (tmp_path / "out").iterdir()
    table = store.read_table(folder, reward_benchmark.TABLE).to_pylist()
    assert len(table) == 4 + 4 + 4 + 5
    assert len({row["reward"] for row in table}) > 3


def test_bad_data_ends_with_status_2_and_one_clear_message(tmp_path: Path) -> None:
    path = written(tmp_path, [{**best(0), "num_correct": 2}])
    config = tmp_path / "reward.yaml"
    config.write_text(yaml.safe_dump({"reward": {"kind": "regex", "pattern": "x"}}))
    result = runner.invoke(app, ["reward", "evaluate", str(config), "--data", str(path)])
    assert result.exit_code == 2
    assert "benchmark.jsonl, line 1" in result.output
    assert "Traceback" not in result.output
    config.write_text(yaml.safe_dump({"rewards": {}}))
    result = runner.invoke(app, ["reward", "evaluate", str(config), "--data", str(path)])
    assert "reward: required, but missing" in result.output
