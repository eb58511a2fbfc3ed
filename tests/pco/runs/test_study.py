"""Studies on disk: who shares what with whom, what may change, what is told of each run. Stages are pretended."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data.errors import BadInput, RunConflict
from pco.config.run import RunConfig
from pco.config.study import Study
from pco.runs import study as studies
from pco.runs.status import points
from tests import builders


def study_of(folder: Path, seeds: Sequence[int] = (0, 1), **variants: dict[str, Any]) -> Study:
    """A study of two rounds; each variant is named with its changes, as `builders.changed` takes them."""
    builders.write_prompts(folder, ["train"], ["heldout"])
    base = builders.config(folder, rounds=2, seed=seeds[0])
    changes = variants or {"pco": {}, "dpo": {"train__loss": {"kind": "dpo"}}}
    configs = {name: builders.changed(base, run=f"s-{name}-s{seeds[0]}", **of) for name, of in changes.items()}
    return Study(name="s", variants=configs, seeds=list(seeds))


def make(study: Study, variant: str, seed: int, **played: Any) -> RunConfig:
    """Make one run of a study, as far as `played` says."""
    config = study.config(variant, seed)
    studies.begin(study, variant, seed)
    builders.played(config, **played)
    return config


KINDS: list[dict[str, Any]] = [
    {},
    {"train__loss": {"kind": "dpo"}},
    {"train__loss": {"kind": "dpo", "beta": 0.5}},
    {"train__loss": {"kind": "ipo"}},
    {"train__learning_rate": 1e-3},
    {"generate__n": 8},
    {"pair__min_margin": 0.1},
    {"evaluate__samples": 1},
    {"gate__guards__length__max_ratio": 9.0},
    {"rounds": 3},
]


@pytest.mark.parametrize(("chosen", "seeds"), [((0, 1, 2), 2), ((5, 0, 7, 6), 1), ((4, 9, 8, 3), 1)])
def test_shared_work_is_made_once(tmp_path: Path, chosen: tuple[int, ...], seeds: int) -> None:
    """The stages that all runs make themselves are as many as their settings say, and none is made twice."""
    variants = {f"v{i}": KINDS[i] for i in chosen}
    study = study_of(tmp_path, range(seeds), **variants)
    predicted = 0
    for variant, seed in study.runs:
        config, origin = study.config(variant, seed), studies.origin_of(study, variant, seed)
        predicted += len(points(config)) - (len(studies.shareable(origin, config)) if origin else 0)
        make(study, variant, seed)
    lines = studies.lines(study)
    assert sum(line.made for line in lines) == predicted
    assert {line.state for line in lines} == {"finished"}
    for line, (variant, seed) in zip(lines, study.runs, strict=True):
        assert line.made + line.shared == len(points(study.config(variant, seed)))


def test_variants_of_a_seed_share_all_before_they_differ_and_seeds_share_the_prompts(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    for variant, seed in study.runs:
        make(study, variant, seed)
    shared = {(line.variant, line.seed): line.shared for line in studies.lines(study)}
    assert shared == {("pco", 0): 0, ("dpo", 0): 5, ("pco", 1): 1, ("dpo", 1): 5}


def test_a_variant_shares_with_the_one_that_is_nearest(tmp_path: Path) -> None:
    dpo = {"train__loss": {"kind": "dpo"}}
    study = study_of(tmp_path, [0], pco={}, dpo=dpo, quick={**dpo, "train__learning_rate": 1e-3})
    origin = studies.origin_of(study, "quick", 0)
    assert origin is not None and origin.run == "s-dpo-s0"
    for variant, seed in study.runs:
        make(study, variant, seed)
    assert studies.lines(study)[-1].shared == 6  # the reference's log-probabilities as well


def test_a_run_is_ready_once_all_that_it_shares_is_finished_and_then_shares_as_much_as_later(tmp_path: Path) -> None:
    study = study_of(tmp_path, [0])
    first = study.config("pco", 0)
    assert not studies.is_ready(study, "dpo", 0)
    for until in ((1, "generate"), (1, "pair")):
        builders.played(first, until=until)  # type: ignore[arg-type]
        assert not studies.is_ready(study, "dpo", 0)
    builders.played(first, until=(1, "train"))
    assert not studies.is_ready(study, "dpo", 0)  # until it is known that the training differs
    builders.played(first, until=(1, "evaluate"))
    assert studies.is_ready(study, "dpo", 0)
    make(study, "dpo", 0)
    assert studies.lines(study)[1].shared == 5


def test_a_study_s_settings_are_read_back_wherever_its_folder_lies(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    with studies.opened(study):
        assert studies.read("s", study.runs_dir) == study
    study.runs_dir.rename(tmp_path / "moved")
    assert studies.read("s", tmp_path / "moved").folder == tmp_path / "moved" / "studies" / "s"


def test_an_unknown_study_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    with studies.opened(study), pytest.raises(BadInput, match=r"other: no study here.*: s\."):
        studies.read("other", study.runs_dir)


def changes_of(study: Study) -> dict[str, Study]:
    """Other settings of a study, by what is told of them."""
    pco, dpo = study.variants.values()
    return {
        "variant `dpo`: train.loss.beta: 0.1 there, 0.2 now": study.model_copy(
            update={"variants": {"pco": pco, "dpo": builders.changed(dpo, train__loss__beta=0.2)}}
        ),
        "variant `dpo` is gone": study.model_copy(update={"variants": {"pco": pco}}),
        "seed 1 is gone": study.model_copy(update={"seeds": [0]}),
        "was `pco`, is `dpo`": study.model_copy(update={"variants": {"dpo": dpo, "pco": pco}}),
    }


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    with studies.opened(study):
        pass
    for told, other in changes_of(study).items():
        with pytest.raises(RunConflict, match=told), studies.opened(other):
            pass


def test_variants_seeds_and_rounds_may_join_and_what_decides_no_result_may_change(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    with studies.opened(study):
        make(study, "pco", 0)
    more = {
        name: builders.changed(config, rounds=3, train__micro_batch_pairs=1) for name, config in study.variants.items()
    }
    more["sft"] = builders.changed(more["pco"], run="s-sft-s0", train__loss={"kind": "sft"})
    grown = study.model_copy(update={"variants": more, "seeds": [0, 1, 2], "max_concurrent": 2})
    with studies.opened(grown):
        make(grown, "pco", 0)
        assert studies.lines(grown)[0].decided == 3


def test_a_run_of_the_same_name_with_other_settings_is_not_taken_for_the_study_s(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    builders.played(builders.changed(study.config("dpo", 0), train__learning_rate=0.5), until=(1, "train"))
    with pytest.raises(RunConflict, match="s-dpo-s0: this run was made with another config"), studies.opened(study):
        pass


def test_only_one_process_writes_to_a_study(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    with studies.opened(study), pytest.raises(RunConflict, match="is being written by"), studies.opened(study):
        pass


def test_policies_that_another_run_shares_must_be_kept(tmp_path: Path) -> None:
    strict = {"gate__guards__length__max_ratio": 1.1}
    with pytest.raises(BadInput, match="keep_last: variant `strict` shares policies with the run s-a-s0"):
        studies.check_policies_are_kept(study_of(tmp_path, a={"keep_last": 1}, strict={"keep_last": 1, **strict}))
    studies.check_policies_are_kept(study_of(tmp_path, a={"keep_last": 1}, b={"generate__n": 9, "keep_last": 1}))
    studies.check_policies_are_kept(study_of(tmp_path, a={}, strict=strict))


def test_a_fork_that_was_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    left = study.runs_dir / f".{study.config('dpo', 1).run}.123.tmp" / "round-00"
    left.mkdir(parents=True)
    with studies.opened(study):
        assert not left.exists()


@pytest.mark.parametrize(("variant", "seed"), itertools.product(("pco", "dpo"), (0, 1)))
def test_a_run_that_its_gate_refuses_is_told_with_the_round_that_it_keeps(
    tmp_path: Path, variant: str, seed: int
) -> None:
    study = study_of(tmp_path)
    make(study, variant, seed, refused=2)
    (line,) = [line for line in studies.lines(study) if (line.variant, line.seed) == (variant, seed)]
    assert (line.state, line.kept, line.decided) == ("refused by the gate", 1, 2)
