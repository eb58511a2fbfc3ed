"""A study's tables and report, over runs whose tables lie on disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data import store
from data.errors import BadInput, CorruptArtifact
from pco.config.study import Study
from pco.evaluation import metrics
from pco.evaluation.differences import per_prompt_differences
from pco.evaluation.intervals import paired_interval
from pco.report import study as report
from pco.runs import study as studies
from pco.runs import study_best, study_results
from pco.runs.study import RunLine
from pco.runs.study_best import Best
from pco.runs.study_results import Evaluated
from tests import builders
from tests.pco.report.report_runs import make_run, stage_of
from tests.pco.report.test_report import HOSTILE, Page


def study_of(folder: Path, seeds: Sequence[int] = (0, 1), **variants: dict[str, Any]) -> Study:
    """A study of two rounds whose runs do not exist yet."""
    base = builders.config(folder, rounds=2, seed=seeds[0])
    changes = variants or {"pco": {}, "slow": {"train__learning_rate": 1e-6}}
    configs = {name: builders.changed(base, run=f"s-{name}-s{seeds[0]}", **of) for name, of in changes.items()}
    return Study(name="s", variants=configs, seeds=list(seeds))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two variants, two seeds: the first went through both rounds, the second was refused in its second. Only read."""
    made = study_of(tmp_path_factory.mktemp("study"))
    with studies.opened(made):
        for variant, seed in made.runs:
            text = f"{variant} {seed} {HOSTILE}"
            make_run(made.config(variant, seed), text=text, refuse=2 if variant == "slow" else 0)
    return made


def over(study: Study, *, but: Sequence[tuple[str, int]] = ()) -> list[RunLine]:
    """Where the runs stand if all have ended, but for some that failed."""
    return [
        RunLine(
            variant,
            seed,
            study.config(variant, seed).run,
            "failed" if (variant, seed) in but else "finished",
            "",
            2,
            2,
            2,
            9,
            0,
        )
        for variant, seed in study.runs
    ]


def test_the_table_has_a_row_for_each_measure_and_says_what_its_run_says(study: Study) -> None:
    rows = study_results.results(study).to_pylist()
    assert len({(row["variant"], row["seed"], row["round"], row["measure"]) for row in rows}) == len(rows)
    for variant, seed in study.runs:
        for number in (0, 1, 2):
            folder = stage_of(study.config(variant, seed), number, "evaluate").folder
            summary = metrics.summarise(metrics.read(folder))
            found = {
                row["measure"]: row["value"]
                for row in rows
                if (row["variant"], row["seed"], row["round"]) == (variant, seed, number)
            }
            assert found == {name: summary[name] for name in found}
            assert {"reward", "repetition", "perplexity", "length"} <= found.keys()
    kept = {(row["variant"], row["round"]) for row in rows if row["kept"]}
    assert kept == {("pco", 2), ("slow", 1)}
    trained = {(row["round"], row["tokens_trained"], row["tokens_sampled"]) for row in rows}
    assert trained == {(0, 0, 0), (1, 300, 192), (2, 300, 192)}


def test_the_tables_lie_in_the_study_s_folder(study: Study) -> None:
    study_results.write(study)
    assert pq.read_table(study.folder / study_results.RESULTS).equals(study_results.results(study))
    assert pq.read_table(study.folder / study_results.RUNS).num_rows == len(study.runs)


def test_a_difference_is_the_mean_of_paired_ones_and_with_one_seed_the_interval_is_that_of_pco_compare(
    study: Study,
) -> None:
    policies = study_results.evaluated(study)
    later, earlier = (
        [policy for policy in policies if (policy.variant, policy.round) == ("pco", number)] for number in (2, 1)
    )
    found = study_best.difference(later[:1], earlier[:1], "reward")
    assert found is not None
    new, old = (metrics.read(of[0].folder) for of in (later, earlier))
    assert (found.mean, found.low, found.high) == pytest.approx(paired_interval(per_prompt_differences(new, old)))
    assert study_best.difference(later, earlier, "reward").seeds == 2  # type: ignore[union-attr]


def test_the_report_shows_every_variant_and_no_text_of_a_model_breaks_it(study: Study) -> None:
    path = report.write(study)
    content = path.read_text(encoding="utf-8")
    page = Page(content)
    assert page.open == []
    assert "script" not in page.tags
    for shown in ("Study s", "s-slow-s1", "Reward against Perplexity", "Reward against tokens", "slow better than pco"):
        assert shown in page.text or shown in content
    assert path.with_suffix(".md").read_text(encoding="utf-8") == report.as_markdown(study)


def test_a_study_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    with studies.opened(study):
        assert "not begun" in report.write(study).read_text()
        make_run(study.config("pco", 0), rounds=1, last="pair")
        assert "nothing to rank yet" in report.as_markdown(study)
        make_run(study.config("slow", 0))
        assert Page(report.write(study).read_text()).open == []


def test_a_failed_run_is_named_with_its_reason(tmp_path: Path) -> None:
    builders.write_prompts(tmp_path, ["train"], ["heldout"])
    study = study_of(tmp_path, [0])
    for variant in study.variants:
        builders.played(study.config(variant, 0), until=(0, "evaluate"))
    stage = stage_of(study.config("slow", 0), 0, "evaluate")
    stage.error_file.parent.mkdir(exist_ok=True)
    stage.error_file.write_text('{"kind": "BadInput", "message": "no *such* thing"}')
    assert "s-slow-s0: failed (round 0, evaluate: no *such* thing)." in report.sentences(report.StudyReport(study))
    assert r"no \*such\* thing" in report.as_markdown(study)


def test_csv_and_latex_hold_the_same_numbers(study: Study, tmp_path: Path) -> None:
    report.write_csv(study, tmp_path / "s.csv")
    header, *lines = (tmp_path / "s.csv").read_text().splitlines()
    assert header.replace('"', "").split(",")[:5] == ["study", "variant", "seed", "run", "round"]
    assert len(lines) == study_results.results(study).num_rows
    report.write_latex(study, tmp_path / "s.tex")
    latex = (tmp_path / "s.tex").read_text()
    assert latex.count(r"\\" + "\n") == 1 + len(study.variants)
    assert r"\toprule" in latex and "slow" in latex
    body = latex.partition(r"\begin")[2]
    assert "%" not in body.replace(r"\%", "")


@pytest.mark.parametrize("measure", ["reward", "win_vs_start", "repetition"])
def test_the_best_variant_is_the_one_with_the_best_mean(study: Study, measure: str) -> None:
    found = study_best.best(study, study_results.evaluated(study), over(study), measure=measure)
    assert found.variant == "pco"  # its policies of round 2 repeat themselves less than those of round 1
    assert set(found.differences) == {"slow"}


def test_runs_that_did_not_end_are_left_out_by_name(study: Study) -> None:
    policies = study_results.evaluated(study)
    found = study_best.best(study, policies, over(study, but=[("slow", 1)]), measure="reward")
    assert (found.seeds, found.left_out) == ([0], ["seed 1: not every variant's run has ended"])
    assert any("nothing of what another seed" in line for line in report.best_sentences(found))
    with pytest.raises(BadInput, match="nothing to rank yet"):
        study_best.best(study, policies, over(study, but=[("slow", 0), ("slow", 1)]), measure="reward")


@pytest.mark.parametrize("wrong", ["length", "perplexity", "reward_", "win_vs_previous"])
def test_a_measure_that_ranks_nothing_is_refused_with_those_that_do(study: Study, wrong: str) -> None:
    with pytest.raises(BadInput, match="cannot rank variants.*reward"):
        study_best.best(study, [], over(study), measure=wrong)
    with pytest.raises(BadInput, match="was not measured"):
        study_best.best(study, study_results.evaluated(study), over(study), measure="second_reward")


def test_equal_variants_are_not_decided_and_that_is_said(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    for variant, seed in study.runs:
        make_run(study.config(variant, seed), text=variant)
    found = study_best.best(study, study_results.evaluated(study), over(study), measure="reward")
    assert not found.is_decided
    assert report.best_sentences(found)[0].startswith("The data do not decide which variant is best by reward")


def test_a_start_that_is_kept_wins_half_of_what_it_plays_against_itself(tmp_path: Path) -> None:
    study = study_of(tmp_path, seeds=[0])
    make_run(study.config("pco", 0))
    make_run(study.config("slow", 0), rounds=1, refuse=1)
    found = study_best.best(study, study_results.evaluated(study), over(study), measure="win_vs_start")
    assert found.means["slow"] == 0.5


def policy_of(folder: Path, variant: str, number: int, **means: dict[str, float]) -> Evaluated:
    """A kept policy that measured so much."""
    policy = Evaluated(builders.config(folder), variant, 0, number, None, kept=True)
    policy.__dict__["means"] = means
    return policy


def test_a_start_that_is_kept_has_its_own_wins_against_the_references_and_no_drift(tmp_path: Path) -> None:
    start = policy_of(tmp_path, "pco", 0, reward={"p": 1.0}, win_vs_reference={"p": 0.25})
    start.__dict__["texts"] = ["t"]
    assert study_best.values(start, "win_vs_reference") == {"p": 0.25}
    assert study_best.values(start, "win_vs_start") == {"p": 0.5}
    assert study_best.values(start, "second_win_vs_start") == {}
    assert study_best.values(start, "drift") == {"t": 0.0}


def test_a_variant_without_a_prompt_in_common_leaves_the_best_one_undecided(tmp_path: Path) -> None:
    study = study_of(tmp_path, [0], a={}, b={"train__learning_rate": 1e-6}, c={"train__learning_rate": 1e-7})
    means = {"a": {"p": 1.0, "q": 1.1}, "b": {"p": 0.0, "q": 0.1}, "c": {"r": 0.0}}
    policies = [policy_of(tmp_path, name, 1, reward=of_name) for name, of_name in means.items()]
    found = study_best.best(study, policies, over(study), measure="reward")
    assert found.differences["b"].is_clear
    assert not found.is_decided
    assert "Left out: variant c: it shares no prompt with a, so they cannot be held together." in (
        report.best_sentences(found)
    )


def test_variants_with_different_rewards_are_not_ranked_by_them(tmp_path: Path) -> None:
    study = study_of(tmp_path, [0], a={}, b={"reward": {"kind": "length", "max_tokens": 9}})
    with_rewards = {"a": 1.0, "b": 100.0}
    policies = [
        policy_of(tmp_path, name, 1, reward={"p": value}, repetition={"p": value})
        for name, value in with_rewards.items()
    ]
    for measure in ("reward", "win_vs_start", "best_of_n"):
        with pytest.raises(BadInput, match="different rewards"):
            study_best.best(study, policies, over(study), measure=measure)
    assert study_best.best(study, policies, over(study), measure="repetition").variant == "a"


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    folder = stage_of(make_run(study.config("pco", 0), rounds=1, last="generate"), 0, "evaluate").folder
    part = store.parts(folder, "evaluations")[0]
    (folder / part.file).write_bytes(b"nothing")
    with pytest.raises(CorruptArtifact, match="evaluations-00000"):
        study_results.results(study)


def test_variants_of_the_same_mean_are_named_together() -> None:
    tied = Best("a", "reward", 0.95, {"a": 0.5, "b": 0.5, "c": 0.4}, {}, [0, 1], [])
    assert report.best_sentences(tied)[0].endswith("by reward; a and b have the same mean.")
