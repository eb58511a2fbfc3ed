"""Public benchmarks of reward models, as files in their shapes."""

import json
from pathlib import Path
from typing import Any

import pytest

from data import reward_benchmarks
from data.errors import BadInput

ONE: dict[str, Any] = {"prompt": "p", "chosen": "good", "rejected": "bad", "subset": "chat"}
BEST: dict[str, Any] = {
    "id": "7",
    "prompt": "q",
    "chosen": ["good"],
    "rejected": ["bad", "worse", "worst"],
    "num_correct": 1,
    "subset": "Math",
}
REF: dict[str, Any] = {**BEST, "id": "ref:3", "subset": "Ties"}
TIED: dict[str, Any] = {**BEST, "id": "tied:3", "subset": "Ties", "chosen": ["a", "b"], "num_correct": 2}


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "benchmark.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_both_shapes_give_right_and_wrong_answers(tmp_path: Path) -> None:
    (item,) = reward_benchmarks.read([written(tmp_path, ONE)])
    assert (item.subset, item.prompt, item.correct, item.incorrect, item.tie) == ("chat", "p", ["good"], ["bad"], None)
    best, ref, tied = reward_benchmarks.read([written(tmp_path, BEST, REF, TIED)])
    assert (best.source_id, len(best.incorrect), best.tie) == ("7", 3, None)
    assert (ref.tie, tied.tie, tied.correct) == (("ref", 3), ("tied", 3), ["a", "b"])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{**ONE, "subset": None}], ["line 1", "`subset`"]),
        ([ONE, {key: value for key, value in ONE.items() if key != "prompt"}], ["line 2", "`prompt`"]),
        ([ONE, BEST], ["line 2", "RewardBench 2", "two files"]),
        ([{**ONE, "chosen": ["good"]}], ["line 1", "is a list"]),
        ([{**BEST, "num_correct": 2}], ["line 1", "`num_correct` is 2"]),
        ([{**BEST, "chosen": ["a", "b"], "num_correct": 2}], ["line 1", "only Ties"]),
        ([{**BEST, "rejected": ["bad", 3]}], ["line 1", "`rejected`"]),
        ([{**BEST, "rejected": []}], ["line 1", "`rejected`"]),
        ([{**REF, "id": "3"}, TIED], ["line 1", "ref:7"]),
        ([{**TIED, "id": "ref:3"}], ["line 1", "one of a `ref`"]),
        ([REF, TIED, REF], ["line 3", "there twice"]),
        ([BEST, TIED], ["line 2", "no ref:3"]),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_row(
    tmp_path: Path, rows: list[dict[str, Any]], told: list[str]
) -> None:
    with pytest.raises(BadInput) as error:
        reward_benchmarks.read([written(tmp_path, *rows)])
    assert all(part in str(error.value) for part in ("benchmark.jsonl", *told))


def test_a_file_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        reward_benchmarks.read([tmp_path / "nowhere.jsonl"])
    with pytest.raises(BadInput, match="no rows"):
        reward_benchmarks.read([written(tmp_path)])
