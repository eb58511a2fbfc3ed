"""The evaluation with a pretended engine: who judges what, and what is measured against whom."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import store
from data.errors import BadInput
from pco.evaluation import metrics
from pco.evaluation.judged import judged_prompts
from pco.stage import Artifact, Stage
from pco.stages import evaluate
from tests import builders
from tests.fake_sampler import FakeSampler

PROMPTS = {"z": "a reference of some tokens", "y": None}
EXACT = {"kind": "exact_answer", "pattern": "(z)"}


@pytest.fixture
def evaluated(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    def run(name: str, tokens: int, inputs: dict[str, Artifact] | None = None, **settings: Any) -> Stage:
        monkeypatch.setattr(evaluate, "Sampler", lambda *_: FakeSampler(tokens))
        rows = [{**builders.prompt_row(text, "heldout"), "reference": answer} for text, answer in PROMPTS.items()]
        prompts = {"prompts": [*rows, builders.prompt_row("x", "text")]}
        config = builders.config(tmp_path, tiny, run=name, evaluate__samples=1, **settings)
        given = {"policy": builders.model(tiny), "prompts": builders.finished(tmp_path / "prompts", prompts)}
        stage = builders.stage("evaluate", config, {**given, **(inputs or {})})
        evaluate.run(stage)
        return stage

    return run


def summary(stage: Stage) -> metrics.Summary:
    return metrics.summarise(metrics.read(stage.folder))


def test_the_second_reward_has_measures_of_its_own_and_changes_none_of_the_first(
    evaluated: Callable[..., Stage],
) -> None:
    reward, second = {"kind": "length", "max_tokens": 9}, {"kind": "length", "min_tokens": 12, "max_tokens": 99}
    alone, both = (
        evaluated(name, 6, reward=reward, evaluate__second_reward=judge)
        for name, judge in (("alone", None), ("both", second))
    )
    found = summary(both)
    assert (found["reward"], found["second_reward"]) == (0.0, -0.5)
    assert not any("second" in measure for measure in summary(alone))
    assert {name: value for name, value in found.items() if "second" not in name} == summary(alone)


def test_each_policy_is_measured_against_the_start_the_previous_and_the_reference(
    evaluated: Callable[..., Stage],
) -> None:
    reward, second = {"kind": "length", "max_tokens": 1}, {"kind": "length", "min_tokens": 99, "max_tokens": 99}
    settings = {"reward": reward, "evaluate__second_reward": second}
    start = evaluated("start", 2, **settings)
    others = {"start": builders.result(start), "previous": builders.result(start)}
    now = evaluated("now", 4, others, **settings)
    found = summary(now)
    # Longer by two tokens: the first reward loses, the second wins.
    for name in ("start", "previous"):
        assert (found[f"win_vs_{name}"], found[f"second_win_vs_{name}"], found[f"length_vs_{name}"]) == (0, 1, 2)
    assert found["kl"] == pytest.approx(1 / 2) and found["drift"] == pytest.approx((-5 + 2.5) / 5)
    assert {"win_vs_reference", "second_win_vs_reference", "length_vs_reference", "f1"} <= found.keys()
    assert not {"win_vs_start", "drift", "kl"} & summary(start).keys()
    met = [row["prompt_id"] for row in metrics.read(now.folder) if row["measure"] in {"win_vs_reference", "f1"}]
    assert set(met) == {builders.prompt_row("z")["prompt_id"]}


def test_a_bare_answer_is_not_judged_as_a_completion(
    evaluated: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROMPTS, "y", "z")
    found = summary(evaluated("exact", 2, reward=EXACT))
    assert "win_vs_reference" not in found
    assert found["length_vs_reference"] < 0 and found["f1"] > 0


def test_a_start_sample_that_fills_the_context_is_not_read_again(
    evaluated: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = evaluated("start", 3)
    monkeypatch.setattr(FakeSampler, "context", 4)
    found = summary(evaluated("now", 3, {"start": builders.result(start)}))
    assert "kl" not in found and "drift" in found


def test_a_second_reward_that_cannot_work_is_refused_before_sampling(
    evaluated: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSampler, "complete", lambda *_, **__: pytest.fail("it sampled"))
    with pytest.raises(BadInput, match="has no `reference`"):
        evaluated("second", 2, evaluate__second_reward=EXACT)


def test_a_second_reward_that_judges_nothing_is_an_error(evaluated: Callable[..., Stage], tmp_path: Path) -> None:
    (tmp_path / "silent.py").write_text("def judge(rows): return [float('nan')] * len(rows)")
    silent = {"kind": "python", "function": "silent:judge", "folder": str(tmp_path)}
    with pytest.raises(BadInput, match="none of 4 "):
        evaluated("silent", 2, evaluate__second_reward=silent)
    assert math.isfinite(summary(evaluated("fine", 2))["reward"])


def test_a_judged_share_of_the_prompts_gets_the_reward_and_all_get_every_other_metric(
    evaluated: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(8):
        monkeypatch.setitem(PROMPTS, f"more {i}", None)
    reward = {"kind": "length", "max_tokens": 1}
    judged = {"share": 0.5, "beside": "length"}
    everyone, some = (
        evaluated(name, 3, reward=reward, gate__judged=share) for name, share in (("all", None), ("some", judged))
    )

    def prompts(stage: Stage, metric: str) -> set[str | None]:
        return {row["prompt_id"] for row in metrics.read(stage.folder) if row["measure"] == metric}

    assert len(prompts(some, "reward")) == 5
    assert prompts(some, "reward") < prompts(some, "length") == prompts(everyone, "reward")
    manifest = store.read_manifest(some.folder)
    assert manifest is not None
    assert manifest.metrics["judged_prompts"] == 5
    assert "without_reward" not in manifest.metrics
    assert some.fingerprint != everyone.fingerprint


@given(ids=st.lists(st.text(min_size=1), min_size=1, max_size=40, unique=True), share=st.sampled_from([0.1, 0.25, 0.9]))
def test_the_judged_prompts_are_a_share_and_the_same_in_every_order(ids: list[str], share: float) -> None:
    judged = judged_prompts(ids, share, 0)
    assert len(judged) == min(len(ids), max(4, round(share * len(ids))))
    assert judged == judged_prompts(reversed(ids), share, 0) <= set(ids)
    assert judged_prompts(ids, min(0.99, share + 0.05), 0) >= judged  # a larger share keeps those of a smaller one
