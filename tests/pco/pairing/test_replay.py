"""Pairs of earlier rounds are mixed in by age and share, each at most once, and learnt from like the round's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from data import store
from data.errors import BadInput
from pco.config.run import RunConfig
from pco.pairing import replay
from pco.rounds import walk
from pco.stage import Artifact, Stage
from pco.stages import pair
from pco.training import batches
from tests import builders

FRESH = 8


def _pair_stage(
    folder: Path, number: int, earlier: dict[str, Artifact], prompts: int = FRESH, **settings: object
) -> Stage:
    """A pair stage whose round gives a pair for each of so many prompts; samples tell rounds and prompts apart."""
    rows = [
        builders.candidate_row(f"prompt {i}", sample, [number, i, sample]) for i in range(prompts) for sample in (0, 1)
    ]
    scores = [{**builders.score_row(f"prompt {i}", sample, float(sample))} for i in range(prompts) for sample in (0, 1)]
    inputs = {
        "candidates": builders.finished(folder / f"candidates-{number}", {"candidates": rows}),
        "scores": builders.finished(folder / f"scores-{number}", {"scores": scores}),
        **earlier,
    }
    return builders.stage("pair", builders.config(folder, rounds=9, **settings), inputs, number)


def _rounds(folder: Path, last: int, prompts: int = FRESH, **settings: object) -> Stage:
    """The pair stage of the last of some rounds, each of which was given all before it."""
    earlier: dict[str, Artifact] = {}
    for number in range(1, last + 1):
        stage = _pair_stage(folder, number, earlier, prompts, **settings)
        pair.run(stage)
        earlier = {**earlier, replay.input_name(number): builders.result(stage)}
    return stage


def _rounds_drawn(stage: Stage) -> list[int]:
    drawn: list[int] = store.read_table(stage.folder, "replay").column("round").to_pylist()
    return drawn


def test_a_first_round_has_nothing_to_replay(tmp_path: Path) -> None:
    stage = _rounds(tmp_path, 1)
    assert not store.has_table(stage.folder, "replay")
    assert len(replay.rows_of(stage.folder)) == FRESH


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, FRESH // 2), (1.0, FRESH), (99.0, 2 * FRESH), ("all", 2 * FRESH)]
)
def test_as_many_are_drawn_as_the_share_says_and_no_more_than_there_are(
    tmp_path: Path, share: float | str, expected: int
) -> None:
    stage = _rounds(tmp_path, 3, replay__share=share)
    manifest = store.read_manifest(stage.folder)
    assert manifest is not None
    assert manifest.metrics == {"pairs": FRESH, "replayed": expected}
    rows = replay.rows_of(stage.folder)
    assert len(rows) == FRESH + expected
    contents = {(row["prompt_id"], *row["chosen_token_ids"], *row["rejected_token_ids"]) for row in rows}
    assert len(contents) == len(rows)


def test_a_draw_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    drawn = [
        store.read_table(_rounds(tmp_path / str(i), 3, replay__share=0.5, seed=seed).folder, "replay")
        for i, seed in enumerate((0, 0, 1))
    ]
    assert drawn[0].equals(drawn[1])
    assert not drawn[0].equals(drawn[2])


def test_younger_pairs_are_drawn_more_often_the_shorter_the_half_life(tmp_path: Path) -> None:
    counts = {}
    for half_life in (None, 1.0, 0.1):
        last = _rounds(tmp_path / str(half_life), 4, 100, replay__half_life=half_life, replay__share=0.9)
        counts[half_life] = [_rounds_drawn(last).count(number) for number in (1, 2, 3)]
    assert all(15 < count < 45 for count in counts[None])
    assert counts[1.0][2] > counts[1.0][1] > counts[1.0][0] > 0
    assert counts[0.1] == [0, 0, 90]


def test_a_pair_that_came_again_is_not_replayed(tmp_path: Path) -> None:
    first = _pair_stage(tmp_path / "one", 1, {})
    pair.run(first)
    again = builders.stage(
        "pair",
        builders.config(tmp_path / "two", rounds=9),
        {**first.inputs, replay.input_name(1): builders.result(first)},
        2,
    )
    pair.run(again)
    assert _rounds_drawn(again) == []


@pytest.mark.parametrize(("rounds", "given"), [(0, []), (1, [3]), (2, [2, 3]), (9, [1, 2, 3]), ("all", [1, 2, 3])])
def test_a_round_is_given_the_pairs_of_as_many_earlier_rounds_as_the_config_says(
    tmp_path: Path, rounds: int | str, given: list[int]
) -> None:
    builders.write_prompts(tmp_path, ["train"], ["heldout"])
    config = builders.config(tmp_path, rounds=4, replay__rounds=rounds)
    builders.played(config)
    found: list[Stage] = []

    def look(stage: Stage) -> store.Manifest:
        found.append(stage)
        return _finished(stage)

    walk(config, look)
    (last,) = [stage for stage in found if (stage.name, stage.round) == ("pair", 4)]
    assert set(last.inputs) == {"candidates", "scores", *map(replay.input_name, given)}


def _seed(i: int, chosen: Sequence[int], rejected: Sequence[int]) -> dict[str, Any]:
    """A seed preference for a prompt of its own."""
    return {
        "prompt_id": f"seed {i}",
        "source_prompt": f"prompt {i}",
        "prompt": f"<user>prompt {i}",
        "chosen": "good",
        "rejected": "bad",
        "prompt_token_ids": [1],
        "chosen_token_ids": list(chosen),
        "rejected_token_ids": list(rejected),
        "chosen_sample": 2 * i,
        "rejected_sample": 2 * i + 1,
        "chosen_reward": None,
        "rejected_reward": None,
        "policy": "digest of the file",
    }


def test_seed_preferences_are_replayed_as_of_a_round_before_the_first(tmp_path: Path) -> None:
    row = _seed(0, [2], [3])
    seed = builders.finished(tmp_path / "prompts", {"preferences": [row]}, "prepare")
    stage = _pair_stage(tmp_path, 1, {replay.input_name(0): seed})
    assert pair.run(stage).metrics["replayed"] == 1
    (replayed,) = store.read_table(stage.folder, "replay").to_pylist()
    assert replayed == {name: row[name] for name in row if name != "source_prompt"} | {"round": 0}
    names = [batches.pair_id(one) for one in replay.rows_of(stage.folder)]
    assert len(set(names)) == len(names) == FRESH + 1


FRESH_TEXT, WORN_TEXT = (2, 3, 4, 5), (2, 2, 2, 2)  # the reward of these tests is for little repetition


def _rescored(folder: Path, **settings: object) -> Stage:
    """A round's pair stage that judges seed preferences anew: one as the reward has it, one against it, one it cannot
    tell apart.
    """
    pairs = [(FRESH_TEXT, WORN_TEXT), (WORN_TEXT, FRESH_TEXT), (FRESH_TEXT, FRESH_TEXT[::-1])]
    rows = [_seed(i, *pair) for i, pair in enumerate(pairs)]
    seed = builders.finished(folder / "prompts", {"preferences": rows, "prompts": []}, "prepare")
    return _pair_stage(folder, 1, {replay.input_name(0): seed, "prompts": seed}, replay__rescore=True, **settings)


def test_pairs_that_are_judged_anew_stand_as_the_reward_has_them(tmp_path: Path) -> None:
    stage = _rescored(tmp_path)
    assert pair.run(stage).metrics == {"pairs": FRESH, "replayed": 2, "turned": 1, "undecided": 1}
    found = {row["prompt_id"]: row for row in store.read_table(stage.folder, "replay").to_pylist()}
    for i, (name, chosen) in enumerate({"seed 0": "good", "seed 1": "bad"}.items()):
        row = found[name]
        assert (row["chosen_token_ids"], row["rejected_token_ids"]) == (list(FRESH_TEXT), list(WORN_TEXT))
        assert row["chosen_reward"] > row["rejected_reward"]
        assert row["chosen"] == chosen
        assert {row["chosen_sample"], row["rejected_sample"]} == {2 * i, 2 * i + 1}


@pytest.mark.parametrize(("rescore", "replayed"), [(False, 2), (True, 1)])
def test_the_same_two_texts_in_both_orders_are_one_pair_where_they_are_judged_anew(
    tmp_path: Path, rescore: bool, replayed: int
) -> None:
    rows = [_seed(0, FRESH_TEXT, WORN_TEXT), _seed(0, WORN_TEXT, FRESH_TEXT)]
    seed = builders.finished(tmp_path / "prompts", {"preferences": rows, "prompts": []}, "prepare")
    stage = _pair_stage(tmp_path, 1, {replay.input_name(0): seed, "prompts": seed}, replay__rescore=rescore)
    assert pair.run(stage).metrics["replayed"] == replayed


def test_a_reward_sees_one_pair_of_a_prompt_at_a_time_with_all_columns_of_candidates(tmp_path: Path) -> None:
    told = "[float(len(rows) == 2 and row['finish_reason'] is None and row['completion'] == 'good') for row in rows]"
    (tmp_path / "asks_rows.py").write_text(f"def judge(rows): return {told}")
    rows = [_seed(0, FRESH_TEXT, WORN_TEXT), _seed(0, FRESH_TEXT[::-1], WORN_TEXT)]
    seed = builders.finished(tmp_path / "prompts", {"preferences": rows, "prompts": []}, "prepare")
    reward = {"kind": "python", "function": "asks_rows:judge", "folder": str(tmp_path)}
    inputs = {replay.input_name(0): seed, "prompts": seed}
    metrics = pair.run(_pair_stage(tmp_path, 1, inputs, replay__rescore=True, reward=reward)).metrics
    assert (metrics["replayed"], metrics["undecided"]) == (2, 0)


def test_preferences_prepared_without_the_users_prompt_are_refused_where_a_reward_reads_it(tmp_path: Path) -> None:
    (tmp_path / "asks_nothing.py").write_text("def judge(rows): return [0.0 for row in rows]")
    rows = [_seed(0, FRESH_TEXT, WORN_TEXT) | {"source_prompt": None}]
    seed = builders.finished(tmp_path / "prompts", {"preferences": rows, "prompts": []}, "prepare")
    reward = {"kind": "python", "function": "asks_nothing:judge", "folder": str(tmp_path)}
    inputs = {replay.input_name(0): seed, "prompts": seed}
    with pytest.raises(BadInput, match="--from prepare --round 0"):
        pair.run(_pair_stage(tmp_path, 1, inputs, replay__rescore=True, reward=reward))


def test_a_stage_that_died_while_it_judged_anew_goes_on_with_the_next_shard(tmp_path: Path) -> None:
    stage = _rescored(tmp_path, generate__shard_size=1)
    finished = pair.run(stage)
    whole, parts = store.read_table(stage.folder, "replay"), sorted(stage.folder.glob("replay-*.parquet"))
    kept = parts[0].stat().st_mtime_ns
    (stage.folder / "manifest.json").unlink()
    parts[1].unlink()
    assert pair.run(stage).metrics == finished.metrics
    assert store.read_table(stage.folder, "replay").equals(whole)
    assert parts[0].stat().st_mtime_ns == kept


def test_a_reward_is_given_the_prompt_of_a_seed_preference_as_the_user_wrote_it(tmp_path: Path) -> None:
    told = "float(row['source_prompt'] == 'prompt 1') * (row['completion'] == 'bad')"
    (tmp_path / "asks_prompt.py").write_text(f"def judge(rows): return [{told} for row in rows]")
    reward = {"kind": "python", "function": "asks_prompt:judge", "folder": str(tmp_path)}
    assert pair.run(_rescored(tmp_path, reward=reward)).metrics == {
        "pairs": FRESH,
        "replayed": 1,
        "turned": 1,
        "undecided": 2,
    }


@pytest.mark.parametrize("rescore", [False, True])
def test_what_a_reward_is_made_of_is_an_input_where_pairs_are_judged_anew(tmp_path: Path, rescore: bool) -> None:
    builders.write_prompts(tmp_path, ["train"], ["heldout"])
    (tmp_path / "my_reward.py").write_text("def judge(rows): return [0.0] * len(rows)")
    reward = {"kind": "python", "function": "my_reward:judge", "folder": str(tmp_path)}
    config = builders.config(tmp_path, rounds=1, reward=reward, replay__rescore=rescore)
    builders.played(config)
    found: list[Stage] = []
    walk(config, lambda stage: found.append(stage) or _finished(stage))  # type: ignore[func-returns-value]
    (made,) = [stage for stage in found if stage.name == "pair"]
    assert ({"reward", "prompts"} <= set(made.inputs)) == rescore
    assert ("reward" in made.settings) == rescore


@pytest.mark.parametrize(
    "reward",
    [
        {"kind": "exact_answer", "pattern": "([0-9]+)"},
        {"kind": "judge", "against": "reference", "base_url": "http://localhost/v1", "model": "m"},
    ],
)
def test_seed_preferences_cannot_be_judged_by_a_reward_that_needs_references(
    tmp_path: Path, reward: dict[str, str]
) -> None:
    settings = {"reward": reward, "prompts__preferences": "seed.jsonl", "replay__rounds": 1}
    builders.config(tmp_path, **settings)
    with pytest.raises(ValidationError, match=r"replay\.rescore: .*`reference`"):
        builders.config(tmp_path, **settings, replay__rescore=True)


def test_human_answers_are_not_judged_anew(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="reference_worst"):
        builders.config(tmp_path, pair__strategy="reference_worst", replay__rescore=True)


def test_the_first_round_is_given_the_seed_preferences_and_later_ones_as_far_back_as_they_look(tmp_path: Path) -> None:
    builders.write_prompts(tmp_path, ["train"], ["heldout"])
    (tmp_path / "seed.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}')
    seed = str(tmp_path / "seed.jsonl")
    config = builders.config(tmp_path, rounds=3, replay__rounds=2, prompts__preferences=seed)
    given: dict[int, set[str]] = {}

    def look(stage: Stage) -> store.Manifest:
        if stage.name == "pair":
            given[stage.round] = {name for name in stage.inputs if name.startswith("pairs")}
        return _finished(stage)

    builders.played(config)
    walk(config, look)
    names = [replay.input_name(number) for number in range(3)]
    assert given == {1: set(names[:1]), 2: set(names[:2]), 3: set(names[1:])}


def _finished(stage: Stage) -> store.Manifest:
    manifest = stage.finished()
    assert manifest is not None
    return manifest


def test_the_example_in_the_docs_is_valid() -> None:
    text = (Path(__file__).parents[3] / "docs" / "pairs.md").read_text(encoding="utf-8")
    example = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    raw = builders.raw_config(Path("/somewhere"))
    raw["prompts"] |= example.pop("prompts")
    assert RunConfig.model_validate({**raw, **example}).replay.rounds == 2
