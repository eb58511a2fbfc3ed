"""An answer is traced to the policy that gave it and to all trainings behind that, and a prompt is never guessed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from data import store
from data.errors import BadInput, CorruptArtifact
from data.readers import prompt_id
from flows.cli import app
from pco.config.run import RunConfig
from pco.runs import fork
from pco.runs.lineage import lineage
from pco.stage import Stage
from tests import builders
from tests.pco.runs.row_runs import play, run_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Two rounds that replay seed preferences and earlier pairs."""
    folder = tmp_path_factory.mktemp("run")
    config = run_of(folder, preferences=2, rounds=2, replay__rounds=2, replay__share=9.0)
    play(config)
    return config


def digest_of(config: RunConfig, number: int) -> str:
    manifest = store.read_manifest(Stage("train", number, config).folder)
    assert manifest
    return manifest.outputs["policy"]


def test_a_heldout_answer_has_its_measures_its_policy_and_every_training_back_to_the_start(run: RunConfig) -> None:
    traced = lineage(run, 2, "held 1")
    assert [(answer.mode, answer.measures["reward"]) for answer in traced.answers] == [
        ("greedy", 0.25),
        ("sampled", 0.25),
    ]
    assert (traced.policy.round, traced.policy.digest) == (2, digest_of(run, 2))
    assert [training.policy.round for training in traced.trainings] == [2, 1]
    assert [training.began_from for training in traced.trainings] == [digest_of(run, 1), "the starting policy"]
    assert [dict(training.pairs) for training in traced.trainings] == [
        {"own": 3, "replayed": 5},  # those of round 1, and the two seed preferences
        {"own": 3, "replayed": 2},
    ]
    assert all(not training.candidates and not training.of_prompt for training in traced.trainings)
    assert traced.pairs is None


def test_a_training_prompt_has_its_candidates_seeds_rewards_and_sides_in_every_round(run: RunConfig) -> None:
    traced = lineage(run, 2, prompt_id("train 0"))
    assert traced.policy.round == 1  # round 2 samples from what round 1 trained
    assert [(answer.seed, answer.measures["reward"]) for answer in traced.answers] == [(20, 0.0), (21, -1.0)]
    assert traced.pairs is not None
    assert [(pair["chosen_sample"], pair.get("round")) for pair in traced.pairs] == [(0, None), (0, 1)]
    (before,) = traced.trainings
    assert [answer.seed for answer in before.candidates] == [10, 11]
    assert [pair["rejected_sample"] for pair in before.of_prompt] == [1]


def test_the_start_has_no_training_behind_it(run: RunConfig) -> None:
    traced = lineage(run, 0, "held 0")
    assert (traced.policy.round, traced.policy.digest, list(traced.trainings)) == (0, "the starting policy", [])


def test_the_last_round_that_answered_is_the_default(run: RunConfig) -> None:
    assert lineage(run, None, "held 0").round == 2


@given(part=st.sampled_from(["held", "HELD  1", "train", "prose", "seed 0", "train 0", "1"]))
def test_a_text_leads_to_the_only_prompt_that_has_it_or_to_a_refusal(run: RunConfig, part: str) -> None:
    texts = [f"train {i}" for i in range(3)] + [f"held {i}" for i in range(2)]
    fitting = [text for text in texts if " ".join(part.casefold().split()) in text]
    if len(fitting) == 1:
        assert lineage(run, None, part).prompt["prompt"] == fitting[0]
        return
    with pytest.raises(BadInput) as refused:
        lineage(run, None, part)
    assert all(prompt_id(text) in str(refused.value) for text in fitting)
    assert f"fits {len(fitting)} prompts" in str(refused.value) or "The nearest" in str(refused.value)


def test_the_whole_text_of_a_prompt_that_others_contain_is_that_prompt(tmp_path: Path) -> None:
    config = run_of(tmp_path, train=11, rounds=1)  # `train 1` and `train 10`
    play(config)
    assert lineage(config, 1, "train 1").prompt["prompt"] == "train 1"


@pytest.mark.parametrize(("number", "named"), [(0, "train 0"), (3, "held 0")])
def test_a_round_that_did_not_answer_is_refused(run: RunConfig, number: int, named: str) -> None:
    with pytest.raises(BadInput, match=f"round {number} has no finished"):
        lineage(run, number, named)


def test_a_run_that_has_not_begun_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no prompts yet"):
        lineage(run_of(tmp_path), None, "held 0")


def test_answers_of_a_policy_whose_training_was_set_aside_are_not_given_to_another(tmp_path: Path) -> None:
    config = run_of(tmp_path, rounds=1)
    play(config)
    training = Stage("train", 1, config).folder
    training.rename(tmp_path / "away")
    with pytest.raises(CorruptArtifact, match="no training here made it"):
        lineage(config, 1, "held 0")


def test_a_policy_that_a_fork_shares_is_its_origins(run: RunConfig) -> None:
    new = builders.changed(run, run="forked")
    fork.fork(run, new, None)
    assert lineage(new, 2, "held 0").policy.run == "test"


def test_a_test_prompt_is_traced_to_the_best_policy(tmp_path: Path) -> None:
    test = builders.write_jsonl(tmp_path / "test.jsonl", [{"prompt": "final 0"}])
    config = run_of(tmp_path, rounds=1, prompts__test=str(test))
    play(config)
    assert lineage(config, None, "final").policy.round == 1


def test_the_command_tells_all_of_it_and_no_control_character_reaches_the_terminal(tmp_path: Path) -> None:
    config = run_of(tmp_path, rounds=1)
    builders.write_prompts(tmp_path, ["train"], ["held \x1b[31mred"])
    play(config)
    runner = CliRunner(env={"COLUMNS": "250"})
    told = runner.invoke(app, ["trace", f"{config.folder}:1", "red"])
    assert told.exit_code == 0, told.output
    for part in ("held ␛[31mred", "greedy", "0.25", digest_of(config, 1)[:12], "promoted", "the policy of round 1"):
        assert part in told.output
    assert "\x1b[31m" not in told.output
    trained = runner.invoke(app, ["trace", f"{config.folder}:1", "train"])
    assert "chosen" in trained.output
    assert "No training of this run is behind these answers" in trained.output
    refused = runner.invoke(app, ["trace", f"{config.folder}:1", "nothing like it"])
    assert refused.exit_code == 2
    assert "The nearest" in refused.output
