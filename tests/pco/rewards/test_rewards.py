"""Rewards, and the stage that gives them."""

import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from data import files, store
from data.errors import BadInput, CorruptArtifact, RunConflict
from data.readers import prompt_id
from pco import rewards
from pco.config.file import OF_RUN, models_in
from pco.config.reward import EnsembleReward, RepetitionReward, RewardConfig, settings
from pco.config.run import parse
from pco.rewards import Reward, Score
from pco.rewards.ensemble import combine
from pco.rewards.programs import number, repeated_share, same_answer
from pco.rounds import walk
from pco.runs import folder as run_folder
from pco.stage import Stage
from pco.stages import score
from tests import builders

tokens = st.lists(st.integers(0, 3), max_size=14)
ngrams = st.integers(1, 4)


def brute_force(text: list[int], n: int) -> float:
    """Count the n-grams that stand somewhere before, one by one."""
    grams = [text[i : i + n] for i in range(len(text)) if len(text[i : i + n]) == n]
    repeated = sum(any(grams[j] == grams[i] for j in range(i)) for i in range(len(grams)))
    return repeated / len(grams) if grams else 0.0


@given(text=tokens, n=ngrams)
def test_the_repeated_share_is_what_counting_one_by_one_gives(text: list[int], n: int) -> None:
    assert repeated_share(text, n) == pytest.approx(brute_force(text, n), abs=1e-12)


@given(text=tokens, n=ngrams)
def test_the_repeated_share_is_a_share_and_0_only_without_repetition(text: list[int], n: int) -> None:
    share = repeated_share(text, n)
    assert 0 <= share < 1
    assert (share == 0) == (brute_force(text, n) == 0)


@given(text=tokens, n=ngrams, shift=st.integers(1, 9))
def test_only_equality_of_tokens_counts(text: list[int], n: int, shift: int) -> None:
    assert repeated_share([token + shift for token in text], n) == repeated_share(text, n)


@pytest.mark.parametrize(
    ("text", "n", "share"), [([], 3, 0), ([1, 2], 3, 0), ([1, 2, 3], 3, 0), ([5] * 4, 3, 0.5), ([5] * 102, 3, 0.99)]
)
def test_examples_by_hand(text: list[int], n: int, share: float) -> None:
    assert repeated_share(text, n) == pytest.approx(share)


# Each kind of reward.

ADAPTER: TypeAdapter[RewardConfig] = TypeAdapter(RewardConfig)


def configured(kind: str, **knobs: Any) -> RewardConfig:
    return ADAPTER.validate_python({"kind": kind, **knobs})


def values(config: RewardConfig, rows: Sequence[dict[str, Any]]) -> list[float]:
    return [score.value for score in rewards.load(config).score(rows)]


def said(*completions: str, reference: str | None = None) -> list[dict[str, Any]]:
    """Candidates with some completions, as a reward that reads prompts is given them."""
    asked = {"source_prompt": "p", "reference": reference}
    return [{**builders.candidate_row(sample=i), "completion": text, **asked} for i, text in enumerate(completions)]


@given(batch=st.lists(tokens, max_size=4), n=ngrams)
def test_the_repetition_reward_is_minus_the_repeated_share_of_each_candidate(batch: list[list[int]], n: int) -> None:
    scored = values(configured("repetition", ngram=n), [builders.candidate_row(tokens=text) for text in batch])
    assert scored == [-repeated_share(text, n) for text in batch]
    assert not any(math.copysign(1, value) < 0 for value in scored if value == 0)


@given(low=st.integers(0, 9), width=st.integers(0, 9), count=st.integers(0, 60))
def test_length_costs_nothing_in_the_window_and_ever_more_outside(low: int, width: int, count: int) -> None:
    config = configured("length", min_tokens=low, max_tokens=max(1, low + width))
    inside, outside, further = values(
        config,
        [
            builders.candidate_row(tokens=[1] * n)
            for n in (low, max(1, low + width) + count, max(1, low + width) + count + 1)
        ],
    )
    assert inside == 0
    assert outside == (0 if count == 0 else pytest.approx(-count / max(1, low + width)))
    assert further < outside
    below = values(config, [builders.candidate_row(tokens=[1] * n) for n in range(low)])
    assert below == [pytest.approx((n - low) / low) for n in range(low)]


def test_a_pattern_is_searched_in_the_completion() -> None:
    assert values(configured("regex", pattern=r"\d+\Z"), said("it is 42", "42 it is", "", "a\n7")) == [1, 0, 0, 1]


POINT = {"type": "object", "required": ["x"], "properties": {"x": {"type": "integer"}}, "additionalProperties": False}


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ('{"x": 1}', 1),
        (' \n{"x": 1} ', 1),
        ('{"x": 1.5}', 0),
        ('{"x": 1, "y": 2}', 0),
        ("{}", 0),
        ('Sure: {"x": 1}', 0),
        ('{"x": NaN}', 0),
        ("", 0),
        ("[" * 100_000, 0),
    ],
)
def test_a_completion_must_be_json_that_fits_the_schema(tmp_path: Path, text: str, reward: float) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(POINT))
    for config in (configured("json_schema", inline=POINT), configured("json_schema", file=str(file))):
        assert values(config, said(text)) == [reward]


def test_a_schema_that_points_nowhere_is_refused() -> None:
    config = configured("json_schema", inline={"$ref": "#/$defs/absent"})
    with pytest.raises(BadInput, match="refers to a part it does not have"):
        values(config, said("1"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "could not be read"),
        ("{", "not valid JSON"),
        ('{"type": 3}', "not a JSON Schema"),
        ('{"$ref": "https://example.org/s.json"}', "only references into itself"),
    ],
)
def test_a_faulty_schema_file_is_refused_by_name(tmp_path: Path, content: str | None, told: str) -> None:
    file = tmp_path / "schema.json"
    if content is not None:
        file.write_text(content)
    config = configured("json_schema", file=str(file))
    with pytest.raises(BadInput, match=rf"schema\.json: .*{told}"):
        rewards.check(config, {})


@given(answer=st.integers(), others=st.lists(st.integers(), max_size=3))
def test_the_last_answer_counts_and_must_be_the_reference(answer: int, others: list[int]) -> None:
    config = configured("exact_answer", pattern=r"= (\S+)")
    text = "".join(f"= {other}. Or " for other in others) + f"= {answer} "
    assert values(config, said(text, f"{answer}", reference=f" {answer}\n")) == [1, 0]
    assert values(config, said(text, reference=f"{answer + 1}")) == [0]


@given(
    value=st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=3),
    other=st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=3),
)
def test_numbers_are_the_same_answer_if_their_values_are(value: Decimal, other: Decimal) -> None:
    forms = [
        f"{value:f}",
        f"{value:,f}",
        f"{value:f}00",
        f"{value:e}",
        f" {value:f}.\n",
        re.sub(r"^(-?)0\.", r"\1.", f"{value:f}"),
    ]
    for one, two in product(forms, repeat=2):
        assert same_answer(one, two)
    assert same_answer(forms[0], f"{other:,f}") == (value == other)


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("4.0", "4", True),
        ("1,000", "1000", True),
        (".5", "0.5", True),
        ("-.5", "-0.50", True),
        ("+7", "7", True),
        ("1e3", "1000", True),
        ("1,234,567.5", "1234567.50", True),
        ("$18", "18", True),
        ("-$18.00.", "-18", True),
        ("42.", "42", True),
        ("9007199254740993", "9007199254740992", False),
        ("0.1", "0.1000000000000000055511151231257827", False),
        ("1,00", "100", False),
        ("10,000,00", "1000000", False),
        ("1 000", "1000", False),
        ("50%", "50", False),
        ("1/2", "0.5", False),
        ("four", "4", False),
        ("Four", "four", False),
        ("nan", "NaN", False),
        (".", "", False),
        ("\u0664", "4", False),
        (" Paris ", "Paris", True),
    ],
)
def test_what_is_a_number_and_what_a_text(answer: str, reference: str, same: bool) -> None:
    assert same_answer(answer, reference) is same_answer(reference, answer) is same
    config = configured("exact_answer", pattern="(?s)<(.*)>")
    assert values(config, said(f"<{answer}>", reference=reference)) == [same]


@given(text=st.text(), other=st.text())
def test_texts_are_the_same_answer_if_their_characters_are(text: str, other: str) -> None:
    assert same_answer(text, f" {text}\n")
    if number(text) is None or number(other) is None:
        assert same_answer(text, other) == (text.strip() == other.strip())


def test_numbers_can_be_compared_as_texts_and_that_is_as_it_was_before() -> None:
    config = configured("exact_answer", pattern="(.+)", numbers=False)
    assert values(config, said("4", "4.0", reference="4")) == [1, 0]
    assert settings(config) == {"kind": "exact_answer", "pattern": "(.+)"}
    assert settings(configured("exact_answer", pattern="(.+)"))["numbers"] is True


@pytest.mark.parametrize("inside", ["reward", "second_reward", "ensemble"])
def test_a_run_that_was_made_before_compares_texts_to_its_end(tmp_path: Path, inside: str) -> None:
    exact = {"kind": "exact_answer", "pattern": "(.+)"}
    ensemble = {"kind": "ensemble", "members": [{"reward": exact}, {"reward": {"kind": "length", "max_tokens": 9}}]}
    place = {"second_reward": "evaluate__second_reward"}.get(inside, "reward")
    config = builders.config(tmp_path, **{place: ensemble if inside == "ensemble" else exact})
    run_folder.write_config(config, config.folder)
    path = config.folder / OF_RUN
    assert run_folder.read_config(config.folder) == parse(config.model_dump(mode="json"), source="test")
    text = path.read_text()
    assert text.count("numbers: true") == 1
    path.write_text(re.sub(" *numbers: true\n", "", text))
    before = run_folder.read_config(config.folder)
    assert "numbers=False" in repr(before)
    with pytest.raises(RunConflict, match="numbers"):
        run_folder.check_same(config)
    run_folder.check_same(before)


def test_exact_answers_need_a_reference_for_every_prompt() -> None:
    config = configured("exact_answer", pattern="(.+)")
    good = {**builders.prompt_row("a"), "reference": "1"}
    rewards.check(config, {"train.jsonl": [good]})
    with pytest.raises(BadInput, match=r"heldout\.jsonl: .* 7 .*`reference`"):
        rewards.check(
            config, {"train.jsonl": [good], "heldout.jsonl": [{**builders.prompt_row("b"), "source_id": "7"}]}
        )


# Functions of the user's.


def module(folder: Path, code: str, name: str = "my_reward") -> RewardConfig:
    (folder / f"{name}.py").write_text(code)
    return configured("python", function=f"{name}:judge", folder=str(folder))


def test_a_function_is_given_the_candidates_and_its_numbers_are_the_rewards(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def length(text): return len(text)")
    code = "import helper\ndef judge(rows): return [helper.length(r['completion'] + r['reference']) for r in rows]"
    config = module(tmp_path, code)
    rewards.check(config, {})
    assert values(config, said("a", "bcd", reference="!")) == [2, 4]
    assert values(config, []) == []


def test_a_function_may_use_dataclasses_and_a_package(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "other.py").write_text("ONE = 1.0")
    (package / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom .other import ONE\n"
        "@dataclass\nclass A:\n    x: float\ndef judge(rows): return [A(ONE).x for _ in rows]"
    )
    config = configured("python", function="pack.mine:judge", folder=str(tmp_path))
    assert values(config, said("a")) == [1.0]


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path: Path) -> None:
    code = "import numpy, torch\ndef judge(rows): return [numpy.float32(0.5), torch.tensor(0.25), 1]"
    assert values(module(tmp_path, code), said("a", "b", "c")) == [0.5, 0.25, 1]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import no_such_module", "could not be imported .*ModuleNotFoundError"),
        ("def judge(:", "could not be imported .*SyntaxError"),
        ("raise SystemExit", "could not be imported"),
        ("def other(rows): ...", "has no function `judge`"),
        ("judge = 3", "has no function `judge`"),
    ],
)
def test_a_function_that_cannot_be_had_is_refused_before_any_work(tmp_path: Path, code: str, told: str) -> None:
    with pytest.raises(BadInput, match=rf"my_reward\.py: {told}"):
        rewards.check(module(tmp_path, code), {})


@pytest.mark.parametrize("name", ["absent:judge", "absent.inner:judge", "sys:exit"])
def test_a_module_without_a_python_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"module `.*reward\.folder"):
        rewards.check(configured("python", function=name, folder=str(tmp_path)), {})


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ("[1.0]", "expected a list of 2 numbers, one per candidate; it returned 1"),
        ("[1.0] * 3", "it returned 3"),
        ("None", "it returned NoneType"),
        ("'12'", "it returned str"),
        ("[1.0, None]", "number 2 is None"),
        ("[True, 1.0]", "number 1 is True"),
        ("['1', 1.0]", "number 1 is '1'"),
        ("1 / 0", "failed on 2 candidates .ZeroDivisionError"),
    ],
)
def test_what_a_function_returns_is_held_to_one_number_per_candidate(tmp_path: Path, returned: str, told: str) -> None:
    with pytest.raises(BadInput, match=f"reward.function my_reward:judge: .*{told}"):
        values(module(tmp_path, f"def judge(rows): return {returned}"), said("a", "b"))


def test_a_namesake_that_is_in_use_stays_in_use(tmp_path: Path) -> None:
    before = json
    assert values(module(tmp_path, "def judge(rows): return [0] * len(rows)", name="json"), said("a")) == [0]
    import json as after

    assert after is before


# Ensembles.

numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=5)


def ensemble(combine: str, weights: Sequence[float], **knobs: Any) -> EnsembleReward:
    members = [{"reward": {"kind": "repetition"}, "weight": weight} for weight in weights]
    found = configured("ensemble", members=members, combine=combine, **knobs)
    assert isinstance(found, EnsembleReward)
    return found


@given(values=numbers, weight=st.floats(0.1, 10))
def test_equal_weights_are_as_none_and_the_mean_lies_among_the_members(values: list[float], weight: float) -> None:
    mean = combine(values, ensemble("mean", [weight] * len(values)))
    assert mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9


@given(values=numbers, shift=st.floats(-9, 9), kind=st.sampled_from(["mean", "min", "mean_minus_std"]))
def test_what_all_members_add_is_added(values: list[float], shift: float, kind: str) -> None:
    config = ensemble(kind, [1.0] * len(values))
    assert combine([value + shift for value in values], config) == pytest.approx(
        combine(values, config) + shift, abs=1e-6
    )


@given(values=numbers, cost=st.floats(0, 5), data=st.data())
def test_the_order_of_members_with_their_weights_does_not_matter(
    values: list[float], cost: float, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 9), min_size=len(values), max_size=len(values)))
    order = data.draw(st.permutations(range(len(values))))
    one = combine(values, ensemble("mean_minus_std", weights, uncertainty_weight=cost))
    config = ensemble("mean_minus_std", [weights[i] for i in order], uncertainty_weight=cost)
    assert combine([values[i] for i in order], config) == pytest.approx(one, abs=1e-9)


@given(values=numbers, cost=st.floats(0.1, 5))
def test_disagreement_costs_and_agreement_does_not(values: list[float], cost: float) -> None:
    count = [1.0] * len(values)
    penalised, mean = ensemble("mean_minus_std", count, uncertainty_weight=cost), ensemble("mean", count)
    assert combine(values, penalised) <= combine(values, mean)
    assert combine([values[0]] * len(values), penalised) == pytest.approx(values[0])
    free = ensemble("mean_minus_std", count, uncertainty_weight=0)
    assert combine(values, free) == combine(values, mean)


def test_ensembles_by_hand() -> None:
    assert combine([1, 4], ensemble("mean", [2, 1])) == 2
    assert combine([1, 4], ensemble("min", [1, 1])) == 1
    assert combine([1, 3], ensemble("mean_minus_std", [1, 1], uncertainty_weight=2)) == 0


def test_the_members_are_kept_in_the_order_of_the_config(tmp_path: Path) -> None:
    config = configured(
        "ensemble",
        members=[
            {"reward": {"kind": "length", "max_tokens": 2}},
            {"reward": {"kind": "regex", "pattern": "1"}, "weight": 3},
        ],
    )
    stage = scoring(tmp_path, config.model_dump(), [builders.candidate_row(tokens=[1, 2, 3])])
    assert score.run(stage).rows_out == 1
    (row,) = store.read_table(stage.folder, "scores").to_pylist()
    assert row["members"] == [-0.5, 1.0]
    assert row["reward"] == pytest.approx((-0.5 + 3) / 4)
    assert row["reward_model"] == rewards.load(config).digest


def test_a_candidate_without_a_finite_reward_of_one_member_gets_none(tmp_path: Path) -> None:
    nan = module(tmp_path, "def judge(rows): return [float('nan'), 1.0]").model_dump()
    members = [{"reward": {"kind": "regex", "pattern": "a"}}, {"reward": nan}]
    config = configured("ensemble", members=members, combine="min")
    one, other = rewards.load(config).score(said("a", "b"))
    assert one.dropped == "reward is not finite"
    assert other == Score(0.0, [0.0, 1.0])


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"members": [{"reward": {"kind": "repetition"}}]}, "at least 2"),
        ({"members": [{"reward": {"kind": "repetition"}, "weight": 0}] * 2}, "greater than 0"),
        ({"members": [{"reward": {"kind": "repetition"}, "weight": 2}] * 2, "combine": "min"}, "takes no weights"),
        ({"members": [{"reward": {"kind": "ensemble", "members": []}}] * 2}, "ensemble"),
    ],
)
def test_an_ensemble_that_makes_no_sense_is_refused(knobs: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        configured("ensemble", **knobs)


# What names a reward.


def test_rewards_that_score_differently_have_different_digests(tmp_path: Path) -> None:
    kinds = [
        *(configured("repetition", ngram=n) for n in (1, 2, 3)),
        *(configured("length", max_tokens=n) for n in (1, 2)),
        configured("regex", pattern="a"),
        configured("json_schema", inline=POINT),
        ensemble("mean", [1, 1]),
        ensemble("min", [1, 1]),
    ]
    assert len({rewards.load(config).digest for config in kinds}) == len(kinds)


def test_the_digest_of_a_reward_without_files_is_that_of_its_settings() -> None:
    config = configured("repetition", ngram=2)
    assert settings(config) == {"kind": "repetition", "ngram": 2}
    assert rewards.load(config).digest == files.digest(settings(config))


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", ["python", "json_schema"])
def test_another_content_of_a_rewards_file_is_another_reward(tmp_path: Path, kind: str, wrapped: bool) -> None:
    code = tmp_path / "my_reward.py"
    file = tmp_path / "schema.json"
    config = module(tmp_path, "def judge(rows): return [0.0] * len(rows)")
    if kind == "json_schema":
        config = configured("json_schema", file=str(file))
    if wrapped:
        other = {"reward": {"kind": "repetition"}}
        config = configured("ensemble", members=[other, {"reward": config.model_dump()}])
    file.write_text("{}")
    given = builders.config(tmp_path, reward=config.model_dump())
    stage = Stage("score", 1, given, {})
    ((name, before),) = rewards.inputs(stage).items()
    assert name == ("reward.members.1" if wrapped else "reward")
    digest = rewards.load(config).digest
    told = Stage("score", 1, given, {name: before})
    rewards.check_unchanged(told)
    code.write_text("def judge(rows): return [1.0] * len(rows)")
    file.write_text('{"type": "object"}')
    (after,) = rewards.inputs(stage).values()
    assert before.fingerprint != after.fingerprint
    assert rewards.load(config).digest != digest
    with pytest.raises(CorruptArtifact, match=f"`{name}` .*changed"):
        rewards.check_unchanged(told)


def test_a_second_rewards_files_are_inputs_of_the_evaluation_alone(tmp_path: Path) -> None:
    second = module(tmp_path, "def judge(rows): return [0.0] * len(rows)")
    given = builders.config(tmp_path, evaluate__second_reward=second.model_dump())
    score, evaluate = (Stage(name, 1, given, {}) for name in ("score", "evaluate"))
    assert rewards.inputs(score) == {}
    ((name, before),) = rewards.inputs(evaluate).items()
    assert name == "second_reward"
    (tmp_path / "my_reward.py").write_text("def judge(rows): return [1.0] * len(rows)")
    with pytest.raises(CorruptArtifact, match="`second_reward` .*changed"):
        rewards.check_unchanged(Stage("evaluate", 1, given, {name: before}))


def inputs_by_stage(config: Any) -> dict[tuple[int, str], dict[str, str]]:
    """What each stage of a run that was played through is given, by name."""
    found = {}

    def look(stage: Stage) -> store.Manifest:
        found[stage.round, stage.name] = {name: artifact.fingerprint for name, artifact in stage.inputs.items()}
        manifest = store.read_manifest(stage.folder)
        assert manifest is not None
        return manifest

    walk(config, look)
    return found


def test_only_the_stages_that_judge_depend_on_the_rewards_files(tmp_path: Path) -> None:
    builders.write_prompts(tmp_path, ["a"], ["b"])
    reward = module(tmp_path, "def judge(rows): return [0.0] * len(rows)")
    config = builders.config(tmp_path, reward=reward.model_dump(), rounds=1)
    builders.played(config)
    before = inputs_by_stage(config)
    (tmp_path / "my_reward.py").write_text("def judge(rows): return [2.0] * len(rows)")
    after = inputs_by_stage(config)
    changed = {point for point in before if before[point] != after[point]}
    assert changed == {(0, "evaluate"), (1, "score"), (1, "evaluate")}


@pytest.mark.parametrize("kind", ["python", "json_schema"])
def test_a_run_that_was_moved_away_from_its_rewards_files_can_still_be_looked_at(tmp_path: Path, kind: str) -> None:
    builders.write_prompts(tmp_path, ["a"], ["b"])
    file = tmp_path / "schema.json"
    reward = configured("json_schema", file=str(file))
    if kind == "python":
        file = tmp_path / "moved_reward.py"
        reward = configured("python", function="moved_reward:judge", folder=str(tmp_path))
    config = builders.config(tmp_path, reward=reward.model_dump(), rounds=1)
    with pytest.raises(BadInput, match=file.stem):
        builders.played(config)
    file.write_text("{}")
    builders.played(config)
    before = inputs_by_stage(config)
    file.unlink()
    assert inputs_by_stage(config) == before


def test_a_reward_that_reads_no_prompts_and_no_files_leaves_the_stages_inputs_alone(tmp_path: Path) -> None:
    builders.write_prompts(tmp_path, ["a"], ["b"])
    config = builders.config(tmp_path, rounds=1)
    builders.played(config)
    assert set(inputs_by_stage(config)[1, "score"]) == {"candidates"}
    config = builders.config(tmp_path, run="other", rounds=1, reward={"kind": "exact_answer", "pattern": "(a)"})
    builders.played(config)
    assert set(inputs_by_stage(config)[1, "score"]) == {"candidates", "prompts"}


# The stage.


def scoring(
    folder: Path, reward: dict[str, Any], candidates: list[dict[str, Any]], reference: str | None = None
) -> Stage:
    """A stage that scores candidates of the prompt `p`."""
    prompt = {**builders.prompt_row("p"), "reference": reference}
    given = {
        "candidates": builders.finished(folder / "candidates", {"candidates": candidates}, "generate"),
        "prompts": builders.finished(folder / "prompts", {"prompts": [prompt]}, "prepare"),
    }
    return builders.stage("score", builders.config(folder, reward=reward), given)


def fake(monkeypatch: pytest.MonkeyPatch, *scores: Score) -> None:
    monkeypatch.setattr(
        rewards, "load", lambda *_: Reward(RepetitionReward(), "fake", lambda batch: list(scores[: len(batch)]))
    )


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (Score(math.nan), "reward is not finite"),
        (Score(math.inf), "reward is not finite"),
        (Score(-math.inf), "reward is not finite"),
        (Score(math.nan, why_none="too long"), "too long"),
    ],
)
def test_a_candidate_without_a_finite_reward_is_dropped_and_counted_by_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: Score, reason: str
) -> None:
    fake(monkeypatch, Score(0.5), lost, Score(-0.5))
    stage = scoring(tmp_path, {"kind": "repetition"}, [builders.candidate_row("p", sample) for sample in range(3)])
    manifest = score.run(stage)
    assert (manifest.rows_in, manifest.rows_out) == (3, 2)
    assert manifest.dropped == {"reward is not finite": 0, reason: 1}
    kept = store.read_table(stage.folder, "scores").to_pylist()
    assert [(row["sample"], row["reward"]) for row in kept] == [(0, 0.5), (2, -0.5)]
    assert {row["reward_model"] for row in kept} == {"fake"}


def test_a_resumed_stage_counts_what_its_earlier_attempt_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = scoring(tmp_path, {"kind": "repetition"}, [builders.candidate_row("p", sample) for sample in range(2)])
    fake(monkeypatch, Score(0.5), Score(math.nan, why_none="too long"))
    score.run(stage)
    (stage.folder / store.MANIFEST).unlink()
    monkeypatch.setattr(rewards, "load", lambda *_: pytest.fail("nothing is left to score"))
    assert score.run(stage).dropped["too long"] == 1


def test_a_file_that_changed_since_the_stage_was_planned_is_noticed_before_anything_is_scored(tmp_path: Path) -> None:
    reward = module(tmp_path, "def judge(rows): return [0.0] * len(rows)", name="changing")
    stage = scoring(tmp_path, reward.model_dump(), [builders.candidate_row()])
    stage = Stage("score", 1, stage.config, {**stage.inputs, **rewards.inputs(stage)})
    module(tmp_path, "def judge(rows): return [1.0] * len(rows)", name="changing")
    with pytest.raises(CorruptArtifact, match="`reward` .*changed"):
        score.run(stage)
    assert store.read_parts(stage.folder, "scores").num_rows == 0


def test_a_reward_that_loses_a_candidate_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    with pytest.raises(ValueError, match="shorter"):
        score.run(scoring(tmp_path, {"kind": "repetition"}, [builders.candidate_row()]))


def test_answers_are_compared_with_the_references_of_the_frozen_prompts(tmp_path: Path) -> None:
    rows = [builders.candidate_row("p", sample, tokens=[sample]) for sample in range(3)]
    stage = scoring(tmp_path, {"kind": "exact_answer", "pattern": r"(\d)"}, rows, reference="2")
    score.run(stage)
    kept = store.read_table(stage.folder, "scores").to_pylist()
    assert [row["reward"] for row in kept] == [0, 0, 1]
    assert {row["prompt_id"] for row in kept} == {prompt_id("p")}


# The documentation.

EXAMPLES = re.findall(r"```yaml\n(.*?)```", (Path(__file__).parents[3] / "docs" / "rewards.md").read_text(), re.DOTALL)


def test_the_documentation_has_an_example_of_every_kind() -> None:
    kinds = {model.model_fields["kind"].default for model in models_in(RewardConfig) if "kind" in model.model_fields}
    assert {yaml.safe_load(text)["reward"]["kind"] for text in EXAMPLES} == kinds


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_of_the_documentation_is_valid(tmp_path: Path, text: str) -> None:
    found = parse(builders.raw_config(tmp_path) | yaml.safe_load(text), source="docs/rewards.md")
    assert found.reward.kind == yaml.safe_load(text)["reward"]["kind"]


def test_the_paths_of_a_reward_become_absolute_and_a_hub_id_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "judge").mkdir()
    members = [
        {"kind": "model", "model": "judge"},
        {"kind": "model", "model": "owner/judge"},
        {"kind": "python", "function": "a:b"},
        {"kind": "json_schema", "file": "schema.json"},
        {"kind": "json_schema", "inline": {}},
    ]
    for reward in [{"kind": "ensemble", "members": [{"reward": member} for member in members]}, *members]:
        found = parse(builders.raw_config(tmp_path) | {"reward": reward}, source="x").reward.model_dump_json()
        for relative, absolute in (('"judge"', "judge"), ('"."', ""), ('"schema.json"', "schema.json")):
            assert relative not in found
            assert (f'"{tmp_path / absolute}"' in found) == (relative in json.dumps(reward).replace('"a:b"', '"."'))
        assert ("owner/judge" in found) == ("owner/judge" in str(reward))
