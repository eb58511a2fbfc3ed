"""`pco data`, as typed."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from tests import builders
from tests.builders import write_jsonl

runner = CliRunner(env={"COLUMNS": "200"})

PAIRS = [
    {
        "instruction": f"Question {i % 30}?",
        "output_1": "yes",
        "output_2": f"no, {i}",
        "preference": [1, 2, 1.5, 2][i % 4],
    }
    for i in range(120)
]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pairs.jsonl", [*PAIRS, PAIRS[0]])


def told(*arguments: object) -> str:
    result = runner.invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    """The one line that a user's mistake ends with."""
    result = runner.invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    (line,) = result.stderr.strip().splitlines()
    return line


def test_help_explains_every_command() -> None:
    assert {"import", "check", "show"} <= set(told("--help").split())
    for command in ("import", "check", "show"):
        assert "Example" in told(command, "--help")


def test_an_import_says_what_came_in_what_came_out_and_why_the_rest_did_not(tmp_path: Path, pairs: Path) -> None:
    out, held = tmp_path / "out.parquet", tmp_path / "held.parquet"
    said = told("import", pairs, "--kind", "preferences", "--out", out, "--heldout-share", 0.2, "--heldout-out", held)
    rows = [pq.read_metadata(path).num_rows for path in (out, held)]
    assert sum(rows) == 90
    for line in (
        "Shape: output pairs, from instruction, output_1, output_2, preference",
        "Rows in: 121",
        f"Rows out: {rows[0]} with ",
        f"Held out: {rows[1]} with ",
        "Dropped: 31",
        "  exact duplicate: 1",
        "  tie or no preference: 30",
    ):
        assert line in said
    assert "tie or no preference | 30" in (tmp_path / "held.md").read_text()
    assert "No prompt is in both." in told("check", out, "--against", held)


def test_an_explained_import_prints_what_rows_would_become_and_writes_nothing(tmp_path: Path) -> None:
    kept = {"question": "Why  so?", "chosen": "x" * 999, "rejected": "b\n"}
    rows = [kept, {"question": "c", "chosen": "", "rejected": "d"}]
    said = told("import", "--explain", write_jsonl(tmp_path / "a.jsonl", rows))
    for line in (
        "Kind: preferences",
        "Shape: compared, from question, chosen, rejected",
        'prompt: "Why  so?"',
        "(999 characters in all)",
        'rejected: "b\\n"',
        "line 2: dropped: empty answer",
        "Nothing was written",
    ):
        assert line in said
    assert list(tmp_path.iterdir()) == [tmp_path / "a.jsonl"]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "a", "completion": "b", "label": 1, "margin": 2}, "feedback"),
        ({"instruction": "a", "output": "b"}, "prompts"),
        ({"instruction": "a", "output_1": "b", "output_2": "c", "preference": 1}, "preferences"),
    ],
)
def test_the_kind_of_an_explained_file_is_told_by_its_columns(
    tmp_path: Path, row: dict[str, object], kind: str
) -> None:
    assert f"Kind: {kind}" in told("import", "--explain", write_jsonl(tmp_path / "a.jsonl", [row]))


def test_a_file_of_no_kind_is_not_explained(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [{"headline": "a"}])
    assert "no known shape of preferences. Found columns headline" in refused("import", "--explain", source)


def test_an_import_without_kind_or_out_is_refused(tmp_path: Path, pairs: Path) -> None:
    for options in (["--kind", "preferences"], ["--out", tmp_path / "out.parquet"]):
        assert "--kind and --out: both are needed" in refused("import", pairs, *options)


def test_votes_labels_and_ignored_columns_are_taken_as_typed(tmp_path: Path) -> None:
    row = {"prompt": "x", "question": "Why?", "output_1": "b", "output_2": "c"}
    votes = [(0, 0, 1), (1, 1, 1), (0, 1, 2)]
    source = write_jsonl(tmp_path / "a.jsonl", [row | dict(zip("pqr", cast, strict=True)) for cast in votes])
    said = told(
        *("import", source, "--kind", "preferences", "--out", tmp_path / "out.parquet", "--ignore", "prompt"),
        *("--map", "p=preference", "--map", "q=preference", "--map", "r=preference"),
        *("--labels", "first=0,second=1,tie=2"),
    )
    for line in (
        "Read: 0 -> output_1: 3, 1 -> output_2: 5, 2 -> tie: 1",
        "Agreement of annotators: 44.4% of 9 pairs of votes on the same row say the same",
        "annotators disagree, no majority: 1",
    ):
        assert line in said
    assert pq.read_table(tmp_path / "out.parquet").column("chosen").to_pylist() == ["b", "c"]


def test_pairs_of_a_ranking_are_made_as_typed(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "responses": ["b", "c", "d"], "scores": [1, 2, 3]}])
    said = told("import", source, "--kind", "preferences", "--out", tmp_path / "out.parquet", "--pairs", "all")
    assert "Rows in: 1\nPairs or rows without any: 3\nRows out: 3" in said


def test_a_prompt_that_answers_repeated_is_told_with_the_count(tmp_path: Path) -> None:
    row = {"prompt": "Why so?", "chosen": "Why so? Because.", "rejected": "Why so? No."}
    source, out = write_jsonl(tmp_path / "a.jsonl", [row]), tmp_path / "out.parquet"
    said = told("import", source, "--kind", "preferences", "--out", out)
    assert "repeated the prompt, which was removed from both: 1" in said


def test_check_tells_of_right_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "reference": 4}, {"prompt": "b", "reference": float("nan")}]
    assert "references: 1 of 2 rows; 1 are NaN" in told("check", write_jsonl(tmp_path / "a.jsonl", rows))


def test_columns_are_mapped_as_typed(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [{"q": "Why?", "a": "So.", "thumb": 1, "mood": "fine"}])
    maps = ["--map", "q=prompt", "--map", "a=completion", "--map", "thumb=good"]
    said = told("import", source, "--kind", "feedback", "--out", tmp_path / "out.parquet", *maps)
    assert "Columns not used: mood" in said
    assert pq.read_table(tmp_path / "out.parquet").column("good").to_pylist() == [True]


def test_dropped_conversations_are_told_with_the_way_to_keep_them(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "Hm?"} for role in ("user", "assistant", "user", "assistant")]
    source = write_jsonl(tmp_path / "a.jsonl", [{"messages": turns}, {"messages": turns[:2]}])
    command = ["import", source, "--kind", "prompts", "--out", tmp_path / "out.parquet"]
    assert "--turns transcript" in told(*command, "--turns", "single")
    assert "Dropped: 0" in told(*command)
    assert "[assistant] Hm?" in told("show", tmp_path / "out.parquet")
    assert "Dropped: 0" in told(*command, "--turns", "transcript")


def test_check_tells_what_a_file_holds(pairs: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "long", "rejected": "b"}] * 2
    said = told("check", write_jsonl(tmp_path / "a.jsonl", rows))
    assert "2 rows of preferences, 1 different prompts, 1 exact duplicates" in said
    assert "longer answer chosen: 100.0% of 2 pairs" in said


def test_show_prints_the_first_rows_of_any_format(pairs: Path) -> None:
    said = told("show", pairs, "--limit", 2)
    assert "the first 2 rows" in said
    assert "Question 1?" in said
    assert "Question 2?" not in said


def test_leakage_ends_with_status_2_after_the_counts(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "one.jsonl", [{"prompt": "Why?"}])
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "WHY? "}])
    result = runner.invoke(app, ["data", "check", str(one), "--against", str(other)])
    assert result.exit_code == 2
    assert "1 rows of prompts" in result.stdout
    assert "are in both" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{folder}/nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["nobody/nothing"], "nobody/nothing: no such file, and the hub did not give it"),
        (["{pairs}", "--map", "instruction"], "expected column=name"),
        (["{pairs}", "--map", "nowhere=prompt"], "--map names `nowhere`, but the columns are instruction, output_1"),
        (["{pairs}", "--heldout-share", "0.1"], "belong together"),
        (["{pairs}", "--split", "train"], "a file has none"),
        (["{broken}"], "line 2: not valid JSON"),
    ],
)
def test_a_mistake_ends_with_status_2_and_one_clear_line(
    tmp_path: Path, pairs: Path, arguments: list[str], said: str
) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt"')
    typed = [word.format(folder=tmp_path, pairs=pairs, broken=broken) for word in arguments]
    assert said in refused("import", *typed, "--kind", "preferences", "--out", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_check_and_show_of_what_is_no_data_end_with_one_clear_line(tmp_path: Path, pairs: Path) -> None:
    assert "no such file" in refused("check", tmp_path / "nowhere.parquet")
    assert "no such file" in refused("show", tmp_path / "nowhere.parquet")
    assert "Make such a file with `pco data import`" in refused("check", pairs)


def test_a_run_takes_what_was_imported(tmp_path: Path, tiny: Path) -> None:
    prompts = write_jsonl(tmp_path / "instructions.jsonl", [{"instruction": f"the river {i}"} for i in range(40)])
    told(
        *("import", prompts, "--kind", "prompts", "--out", tmp_path / "train.parquet"),
        *("--heldout-share", 0.2, "--heldout-out", tmp_path / "heldout.parquet"),
    )
    thumbs = write_jsonl(tmp_path / "thumbs.jsonl", [{"prompt": "a town", "completion": "b", "label": True}])
    told("import", thumbs, "--kind", "feedback", "--out", tmp_path / "feedback.parquet")
    builders.write_prompts(tmp_path, train=[], heldout=[])
    raw = builders.raw_config(tmp_path, tiny) | {"generate": {"max_tokens": 8}}
    raw["prompts"] |= {name: str(tmp_path / f"{name}.parquet") for name in ("train", "heldout", "feedback")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw))
    result = runner.invoke(app, ["run", str(tmp_path / "config.yaml"), "--dry-run"])
    assert result.exit_code == 0, result.output
    held = pq.read_metadata(tmp_path / "heldout.parquet").num_rows
    assert f"{40 - held} training prompts, {held} held-out, 1 texts, 1 pieces of feedback" in result.output
