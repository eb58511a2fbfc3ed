"""The report shows what is on disk, whole or not, and nothing in a model's text can break it."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from data import store
from data.errors import BadInput, CorruptArtifact
from data.rows import FinalTestRow
from pco import report
from pco.config.run import RunConfig
from pco.evaluation import metrics
from pco.evaluation.differences import per_prompt_differences
from pco.evaluation.intervals import paired_interval
from pco.report import gather, markdown, page, plots, tables, wording
from pco.report.cells import Column, Table
from pco.report.numbers import FinalTest, Interval
from pco.specs import StageName
from tests import builders
from tests.pco.report.report_runs import finish, generate, make_run, prepare, stage_of

HOSTILE = (
    "![i](http://evil/i.png) "
    "<script>alert(1)</script></table></td> | a | b |\n\n| --- |\n```\n# not a heading `code` *x* [l](http://evil) "
    "<img src=http://evil> {{ 7 * 7 }} \x00\x1b[31m \u202e gnirts \U0001f600 \r\n> &lt; \\| end"
)


class Page(HTMLParser):
    """What a browser would make of the page: its tags, its text, and tags left open."""

    VOID = frozenset({"meta", "br", "path", "use", "img", "link"})

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(config: RunConfig) -> str:
    return report.write(config).read_text(encoding="utf-8")


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Rows of cells by table, split as Markdown does: at every pipe that no backslash hides."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block] for block in blocks]


def unescaped(text: str) -> str:
    """Markdown's text without its backslash escapes."""
    return re.sub(r"\\([^\w\s])", r"\1", text)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return builders.config(tmp_path)


def test_a_finished_run_says_so_and_shows_every_section(config: RunConfig) -> None:
    content = read_page(make_run(config))
    text = Page(content).text
    assert "2 of 2 rounds promoted: greedy repetition fell from 86.4 % to 43.2 %, perplexity stayed the same" in text
    assert "(held-out prompts, used for decisions)." in text
    for heading in ("Metrics per round", "Guards", "Decisions of the gate", "Pairs", "Training", "Time", "Config"):
        assert heading in text
    assert "What is missing" not in text and "Nothing yet" not in text
    assert content.count("<svg") == 8


def test_a_refused_run_names_the_broken_rule_and_the_policy_that_is_kept(tmp_path: Path) -> None:
    config = make_run(builders.config(tmp_path, rounds=3), rounds=2, refuse=2)
    text = Page(read_page(config)).text
    assert (
        "Round 2 of 3 refused by the gate (perplexity ratio 148.4, must be <= 1.5), the policy of round 1 is kept"
        in text
    )
    assert "Round 2 refused: perplexity ratio 148.4, must be <= 1.5." in text
    assert "✗ failed" in text and "Round 2 (refused)" in text
    assert re.search(r"3\s*generate\s*not run", text)
    assert "✗ failed" in report.round_markdown(config, 2)


def test_a_run_refused_in_its_first_round_keeps_the_start(config: RunConfig) -> None:
    text = wording.headline(gather.run_report(make_run(config, rounds=1, refuse=1)))
    assert text.startswith("Round 1 of 2 refused by the gate (perplexity ratio")
    assert "the starting policy is kept: in round 1's policy greedy repetition fell" in text


_ROUND = ("generate", "score", "pair", "train", "evaluate", "decide")


@pytest.mark.parametrize(("last", "waiting"), [*pairwise(_ROUND)])
def test_a_run_cut_after_any_stage_is_reported_as_far_as_it_got(
    config: RunConfig, last: StageName, waiting: StageName
) -> None:
    make_run(config, rounds=1, last=last)
    text = Page(read_page(config)).text
    assert f"0 of 2 rounds promoted; round 1 has yet to finish its {waiting} stage" in text
    assert "What is missing" in text
    assert report.run_markdown(config) and report.round_markdown(config, 1)


def test_a_run_that_only_froze_its_prompts_is_reported(config: RunConfig) -> None:
    prepare(config, "")
    assert "0 of 2 rounds promoted; the start has yet to finish its evaluate stage" in Page(read_page(config)).text
    assert "| start | evaluate | not begun | – |" in report.run_markdown(config)


def test_what_an_interrupted_stage_committed_is_counted(config: RunConfig) -> None:
    make_run(config, rounds=1)
    generate(config, 2, "")
    (stage_of(config, 2, "generate").folder / store.MANIFEST).unlink()
    assert "| 2 | generate | begun | 8 |" in report.run_markdown(config)


def test_a_loss_without_a_margin_has_only_its_loss_curve(tmp_path: Path) -> None:
    config = make_run(builders.config(tmp_path, train__loss={"kind": "sft"}))
    assert "<h3>Gate</h3>" not in read_page(config) and "<h3>Loss</h3>" in read_page(config)


def test_hostile_text_stays_text_on_the_page(config: RunConfig) -> None:
    quiet = Page(read_page(make_run(config)))
    loud = read_page(make_run(builders.changed(config, run="loud"), text=HOSTILE))
    parsed = Page(loud)
    assert parsed.tags == quiet.tags and not parsed.open
    assert "<script>alert(1)</script></table></td> | a | b |" in parsed.text
    assert "{{ 7 * 7 }}" in parsed.text and "\U0001f600" in parsed.text
    assert "␀␛[31m" in parsed.text and not set("\x00\x1b\u202e") & set(loud)


def test_a_table_s_caption_is_no_markup() -> None:
    shown = markdown.table(Table("<b>_x_ less y", [Column("measure")], []))
    assert shown.startswith(r"\<b\>\_x\_ less y")


def test_hostile_text_stays_within_its_markdown_cell(config: RunConfig) -> None:
    make_run(config, text=HOSTILE)
    text = report.round_markdown(config, 1)
    shown = markdown_tables(text)
    assert len(shown) == 7
    assert all({len(row) for row in rows} == {len(rows[0])} for rows in shown)
    sample = unescaped(shown[5][2][2])
    assert "<script>alert(1)</script></table></td> | a | b | | --- | ```" in sample
    whole = report.run_markdown(config)
    assert all({len(row) for row in rows} == {len(rows[0])} for rows in markdown_tables(whole))
    assert "<script>alert(1)</script></table></td> | a | b | | --- | ```" in unescaped(whole)
    for written in (text, whole):
        # Every mark that could begin markup stands behind a backslash, and no backslash is itself escaped away.
        assert not re.findall(r"(?<!\\)(?:\\\\)*[<`\[\]*_]", written) and "\x00" not in written


def test_numbers_are_those_of_the_tables(config: RunConfig) -> None:
    make_run(config)
    rows = store.read_table(stage_of(config, 2, "evaluate").folder, "evaluations").to_pylist()
    summary = metrics.summarise(rows)
    gathered = gather.run_report(config)
    assert gathered.rounds[2].summary == summary
    for text in (Page(read_page(config)).text, unescaped(report.run_markdown(config))):
        for metric in ("repetition/greedy", "win_vs_start", "win_vs_previous", "distinct_2"):
            assert f"{summary[metric] * 100:.1f} %" in text
        assert f"{summary['perplexity']:.1f}" in text and f"{summary['reward']:.3f}".replace("-", "−") in text
    assert gathered.rounds[1].funnel.dropped == {("pair", "prompts", "all candidates tie"): 1}
    assert "| 1 | 4 | 8 | 8 | 3 (75.0 %) | 3 | 1 prompts: all candidates tie |" in unescaped(
        report.run_markdown(config)
    )


def test_sample_pairs_are_those_at_the_ends_of_the_margin(config: RunConfig) -> None:
    pairs = gather.run_report(make_run(config)).rounds[1].pairs
    assert [one.margin for one in pairs.largest] == [0.75, 0.25, 0.125]
    assert pairs.smallest == []  # three pairs in all, and none is shown twice
    assert pairs.largest[0].prompt.startswith("train prompt 2")


def test_heldout_changes_compare_the_start_with_the_last_evaluated_policy(config: RunConfig) -> None:
    changes = gather.run_report(make_run(config)).changes
    assert (changes.round, changes.improved, changes.equal, changes.worsened) == (2, 2, 2, 0)
    best = changes.most_improved[0]
    assert best.gain == pytest.approx(19 / 22) and "[1, 2, 3]" in best.before and "[0, 1, 2]" in best.after


def test_completions_are_shown_of_the_policy_that_is_kept(tmp_path: Path) -> None:
    config = make_run(builders.config(tmp_path, rounds=3), rounds=2, refuse=2)
    assert gather.run_report(config).changes.round == 1
    refused = make_run(builders.config(tmp_path, run="first"), rounds=1, refuse=1)
    assert gather.run_report(refused).changes.round == 1  # for want of one that is kept


def test_intervals_are_of_the_prompts_paired_with_the_start(config: RunConfig) -> None:
    make_run(config)
    start, rows = (evaluation_rows(config, number) for number in (0, 2))
    gathered = gather.run_report(config).rounds[2].intervals
    for metric in ("reward", "length"):
        _, low, high = paired_interval(per_prompt_differences(rows, start, metric=metric))
        assert gathered[metric] == Interval(low, high)
    wins = gathered["win_vs_start"]
    assert 0 <= wins.low < metrics.summarise(rows)["win_vs_start"] < wins.high
    assert "second_reward" not in gathered
    assert "drift" not in gathered  # of a single text nothing is known


def test_a_second_reward_is_drawn_and_named_beside_the_first(tmp_path: Path) -> None:
    config = make_run(builders.config(tmp_path, evaluate__second_reward={"kind": "length", "max_tokens": 9}))
    content = read_page(config)
    assert content.count("<svg") == 9
    text = Page(content).text
    assert "Second reward" in text and "by the second reward" in text and "may be gamed" in text
    assert "| Second wins" in report.run_markdown(config)


def test_an_evaluation_of_an_earlier_version_is_reported_without_what_it_did_not_measure(config: RunConfig) -> None:
    make_run(config)
    known = {"reward", "repetition", "length", "win_vs_start", "win_vs_previous", "distinct_2"}
    for number in (0, 1, 2):
        rows = [row for row in evaluation_rows(config, number) if row["measure"] in known or row["mode"] == "text"]
        rows = [row for row in rows if row["measure"] != "drift"]
        (stage_of(config, number, "evaluate").folder / store.MANIFEST).unlink()
        finish(config, number, "evaluate", "evaluations", rows)
    text = Page(read_page(config)).text
    assert "Wins against the start" in text and "Entropy" not in text and "Second reward" not in text


def evaluation_rows(config: RunConfig, number: int) -> list[dict]:
    return store.read_table(stage_of(config, number, "evaluate").folder, "evaluations").to_pylist()


def test_seconds_outside_of_the_stages_are_what_no_stage_covers(config: RunConfig) -> None:
    make_run(config)
    timings = gather.run_report(config).timings
    # The fixture's stages overlap, each two seconds long: nothing lies outside of them all.
    assert timings.outside_s == pytest.approx(0, abs=1e-6)
    assert {stage.tokens_per_s for stage in timings.stages if stage.name == "train"} == {300.0}


@pytest.mark.parametrize("ask", [report.write, report.run_markdown, lambda config: report.round_markdown(config, 1)])
def test_a_run_with_nothing_is_refused_with_what_to_do(config: RunConfig, ask: Callable[[RunConfig], object]) -> None:
    with pytest.raises(BadInput, match=r"no such folder. Check `run` and `runs_dir`"):
        ask(config)
    config.folder.mkdir(parents=True)
    with pytest.raises(BadInput, match="no stage of this run is finished yet. Resume"):
        ask(config)
    assert list(config.folder.iterdir()) == []


@pytest.mark.parametrize(("number", "text"), [(3, "has rounds 1 to 2"), (-1, "has rounds"), (2, "none of its stages")])
def test_a_round_that_is_not_there_is_refused(config: RunConfig, number: int, text: str) -> None:
    make_run(config, rounds=1)
    with pytest.raises(BadInput, match=text):
        report.round_markdown(config, number)


def test_a_damaged_table_is_an_error_and_not_a_report(config: RunConfig) -> None:
    make_run(config)
    path = store.part_path(stage_of(config, 1, "pair").folder, "pairs", 0)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptArtifact, match="pairs-00000.parquet"):
        report.write(config)


def test_the_page_needs_nothing_from_outside(config: RunConfig) -> None:
    content = read_page(make_run(config))
    assert "http" not in content and "<script" not in content and "@import" not in content
    assert not re.search(r"url\((?!#)", content) and not re.search(r"(src|href)=\"(?!#)", content)
    ids = re.findall(r' id="([^"]*)"', content)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", content)) | set(re.findall(r'href="#([^"]*)"', content)) <= set(ids)


def test_many_rounds_are_drawn_too(tmp_path: Path) -> None:
    config = make_run(builders.config(tmp_path, rounds=7, gate__require={"reward": None}), rounds=7)
    text = Page(page.render(gather.run_report(config))).text
    assert "7 of 7 rounds promoted" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(-0.0, "0.000"), (-0.0004, "0.000"), (-0.1197, "−0.120"), (1234.5, "1,234.500")],
)
def test_numbers_carry_a_minus_only_if_it_shows(value: float, text: str) -> None:
    assert wording.decimal(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(8.26, "8.3 s"), (59.9, "1 min 00 s"), (725, "12 min 05 s"), (3720, "1 h 02 min")]
)
def test_durations_read_like_a_clock(value: float, text: str) -> None:
    assert wording.duration(value) == text


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_every_round_has_one_tick(tmp_path: Path, rounds: int) -> None:
    config = make_run(builders.config(tmp_path, rounds=rounds), rounds=rounds)
    (wins,) = (plot for plot in plots.rewards(gather.run_report(config)) if plot.title == "Wins")
    assert re.findall(r">round ([^<]+)<", wins.svg) == [str(number) for number in range(1, rounds + 1)]


def test_a_training_of_one_step_has_one_tick() -> None:
    (loss, _) = plots.learning([{"step": 0, "loss": 0.5, "accuracy": 1.0}])
    ticks = loss.svg.partition('id="loss-matplotlib.axis_1"')[2].partition('id="loss-matplotlib.axis_2"')[0]
    assert re.findall(r">([\d.]+)</text>", ticks) == ["1"]


def final_test(number: int, *, best: int, looks: int = 1, note: str = "") -> FinalTest:
    row: FinalTestRow = {
        "metric": "reward",
        "prompts": 40,
        "start": -0.5,
        "best": -0.25,
        "difference": 0.25,
        "low": 0.1,
        "high": 0.4,
    }
    repetition: FinalTestRow = {**row, "metric": "repetition", "difference": -0.25, "low": -0.4, "high": -0.1}
    return FinalTest([row, repetition], number, number == best, looks, note)


def test_the_headline_is_that_of_the_test_prompts_where_there_are_some(config: RunConfig) -> None:
    numbers = replace(gather.run_report(make_run(config)), test=final_test(2, best=2))
    said = (
        "2 of 2 rounds promoted: on 40 test prompts (looked at once), round 2's policy less the start: "
        "reward +0.250 (95 % interval +0.100 to +0.400); repetition −25.0 pp (95 % interval −40.0 pp to −10.0 pp)."
    )
    assert wording.headline(numbers) == said
    content = page.render(numbers)
    text = " ".join(Page(content).text.split())
    assert said in text and "Test 40 test prompts, which decided nothing (looked at once)" in text
    assert "used for decisions" in text
    found = next(table for table in markdown_tables(markdown.run(numbers)) if "Difference" in "".join(table[0]))
    assert [row[1].strip() for row in found[2:]] == ["required", "guarded"]


def test_a_test_of_an_earlier_policy_is_no_headline_and_says_so(config: RunConfig) -> None:
    note = "A test of the best policy would be another look"
    numbers = replace(gather.run_report(make_run(config)), test=final_test(1, best=2, looks=3, note=note))
    assert "test prompts" not in wording.headline(numbers)
    caption = tables.final_test(numbers).caption
    assert "looked at 3 times" in caption and note in caption and "the best no longer" in caption
    assert note in markdown.run(numbers)


def test_a_run_without_test_prompts_says_nothing_of_a_test_and_others_what_it_waits_for(config: RunConfig) -> None:
    assert "<h2>Test</h2>" not in read_page(make_run(config))
    named = builders.changed(config, prompts__test=str(config.folder / "test.jsonl"))
    numbers = gather.run_report(named)
    assert numbers.test is not None and numbers.test.note.startswith("The test is not finished yet")
    assert numbers.test.rows == [] and numbers.test.looks == 0


def test_wins_at_equal_length_are_shown_with_their_interval(config: RunConfig) -> None:
    make_run(config)
    rows = metrics.read(stage_of(config, 1, "evaluate").folder)
    numbers = gather.run_report(config)
    low, high = numbers.rounds[1].intervals["lc_win_vs_start"].low, numbers.rounds[1].intervals["lc_win_vs_start"].high
    assert (low, high) == metrics.length_controlled_interval(rows, "lc_win_vs_start")[1:]  # type: ignore[index]
    assert f"95 % interval {wording.percent(low)} to {wording.percent(high)}" in Page(page.render(numbers)).text
