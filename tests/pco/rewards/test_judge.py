"""A language model as judge, over real HTTP: its laws, and what goes wrong at the other end."""

import asyncio
import json
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import store
from data.errors import BadInput, BudgetSpent, PCOError, StageFailed
from data.journal import Journal
from pco import rewards
from pco.config.reward import JudgeReward, settings
from pco.config.run import parse
from pco.rewards import endpoint, llm_judge
from pco.rewards.llm_judge import ALONE, ANSWERS, UNREAD, Judge, Match, Verdict, filled, five_way_verdict, verdict
from pco.stage import Stage
from pco.stages import evaluate, score
from tests import builders
from tests.chat_server import ChatServer, Fault, Reply, serving
from tests.pco.rewards.test_reward_models import FakeSampler, evaluating
from tests.pco.rewards.test_rewards import scoring
from tests.points import PATIENCE_S

Serve = Callable[[Reply], ChatServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts servers that end with the test; failed requests are tried again at once."""
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.001)
    with ExitStack() as stack:
        yield lambda reply: stack.enter_context(serving(reply))


def shown(question: str) -> tuple[str, str]:
    """The two answers in a question of the built-in template."""
    found = re.search(r"### Answer A\n(.*?)\n\n### Answer B\n(.*?)\n\n### Verdict", question, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def longer(question: str) -> str:
    """A fair judge who likes length."""
    first, second = shown(question)
    return "[[tie]]" if len(first) == len(second) else "[[A]]" if len(first) > len(second) else "[[B]]"


def rows(*completions: str, prompt: str = "p", **columns: Any) -> list[dict[str, Any]]:
    asked = {"source_prompt": prompt, "reference": None, **columns}
    return [
        {**builders.candidate_row(prompt, sample), "completion": text, **asked}
        for sample, text in enumerate(completions)
    ]


def configured(server: ChatServer, **knobs: Any) -> JudgeReward:
    return JudgeReward(base_url=server.url, model="judge", **knobs)


def values(config: JudgeReward, candidates: list[dict[str, Any]], folder: Path | None = None) -> list[float]:
    return [found.value for found in rewards.load(config, folder).score(candidates)]


# Laws.


@given(answer=st.text(), named=st.sampled_from(["A", "B", "tie", "TIE", "a"]))
def test_the_last_verdict_counts_whatever_stands_around_it(answer: str, named: str) -> None:
    assert verdict(f"[[A]] or [[B]]? {answer} [[{named}]]!") == {"A": 1, "B": 0, "TIE": 0.5}[named.upper()]


@pytest.mark.parametrize(
    ("answer", "share"),
    [("A", 1), (" b. ", 0), ("**Tie**", 0.5), ("", None), ("Answer A", None), ("AB", None), ("[[C]]", None)],
)
def test_a_bare_verdict_is_one_and_anything_else_is_none(answer: str, share: float | None) -> None:
    assert verdict(answer) == share


@given(
    left=st.sampled_from("ABab"),
    relation=st.sampled_from(["<<", "<", "=", ">", ">>"]),
    around=st.text(alphabet="A>[ ]"),
)
def test_a_five_way_verdict_is_the_same_from_either_side(left: str, relation: str, around: str) -> None:
    right = "B" if left in "Aa" else "A"
    turned = {"<<": ">>", "<": ">", "=": "=", ">": "<", ">>": "<<"}[relation]
    share = five_way_verdict(f"[[A=B]] {around} [[{left}{relation}{right}]].")
    assert share == five_way_verdict(f"[[{right}{turned}{left}]]")
    assert share == {"<<": 0.0, "<": 0.25, "=": 0.5, ">": 0.75, ">>": 1.0}[relation if left in "Aa" else turned]


@pytest.mark.parametrize("reply", ["", "A", "[[A]]", "[[A>A]]", "[A>B]", "[[A>>>B]]"])
def test_what_is_no_five_way_verdict_is_none(reply: str) -> None:
    assert five_way_verdict(reply) is None


def test_a_five_way_judge_gives_shares_in_quarters_and_its_settings_are_new_only_where_it_is_one(serve: Serve) -> None:
    server = serve(lambda question: "[[A>>B]]" if shown(question)[0] == "x" else "[[A=B]]")
    config = configured(server, verdicts="five")
    assert values(config, rows("x", "y")) == [0.75, 0.25]
    assert "[[B>>A]]" in server.questions[0]
    assert settings(config)["verdicts"] == "five"
    assert "verdicts" not in settings(configured(server))


def test_a_budget_stops_before_it_is_exceeded_and_a_higher_one_asks_only_what_is_left(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(longer)  # 103 tokens a reply: 1.03 each at 10 per thousand
    config = configured(server, input_price=1e4, output_price=1e4, max_tokens=3, concurrency=2)
    matches = [Match("p", "x" * (i + 1), "") for i in range(10)]

    def judge(max_cost: float | None) -> Judge:
        return Judge(config, tmp_path, rewards.scores.Counts(float), max_cost=max_cost)

    estimate = judge(None).estimate(matches)
    assert (estimate.requests, estimate.cached, estimate.completion_tokens) == (20, 0, 60)
    assert estimate.cost is not None
    assert estimate.cost > 0
    with pytest.raises(BudgetSpent, match="were not asked"):
        judge(10.0).verdicts(matches)
    paid = len(server.bodies)
    assert 0 < paid * 1.03 <= 10
    with pytest.raises(BudgetSpent):
        judge(10.0).verdicts(matches)
    assert len(server.bodies) == paid  # what an earlier attempt spent counts
    assert [found.share for found in judge(1000.0).verdicts(matches)] == [1.0] * 10
    assert len(server.bodies) == 20
    assert judge(None).estimate(matches).requests == 0


def test_replies_without_a_count_of_tokens_cost_the_most_also_those_of_an_attempt_without_a_budget(
    serve: Serve, tmp_path: Path
) -> None:
    uncounted = json.dumps({"choices": [{"message": {"role": "assistant", "content": "[[A]]"}}]})
    server = serve(lambda _: Fault(200, uncounted, {}))
    config = configured(server, input_price=1e4, max_tokens=1)
    Judge(config, tmp_path, rewards.scores.Counts(float)).verdicts([Match("p", "x", "y")])
    with pytest.raises(BudgetSpent, match="is spent"):
        Judge(config, tmp_path, rewards.scores.Counts(float), max_cost=12.0).verdicts([Match("q", "x", "y")])
    assert len(server.bodies) == 2


def test_a_budget_without_prices_is_refused(serve: Serve) -> None:
    with pytest.raises(BadInput, match="input_price"):
        Judge(configured(serve(longer)), None, rewards.scores.Counts(float), max_cost=1.0)


@given(first=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), second=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_a_verdict_follows_the_position_where_both_orders_name_the_same_place(first: float, second: float) -> None:
    found = Verdict(first, second)
    assert found.share == (first + second) / 2
    places = {"A" if first > 0.5 else "B" if first < 0.5 else "", "A" if second < 0.5 else "B" if second > 0.5 else ""}
    assert found.follows_position == (places in ({"A"}, {"B"}))
    assert Verdict(first, None).share is None


@given(texts=st.tuples(st.text(), st.text(), st.text()))
def test_what_is_filled_in_is_left_as_it_is(texts: tuple[str, str, str]) -> None:
    prompt, first, second = ("{second}" + texts[0], texts[1] + "{prompt}", texts[2])
    assert filled("{prompt}|{first}|{second}|{other}", prompt, first, second) == f"{prompt}|{first}|{second}|{{other}}"


def test_a_candidates_reward_is_the_mean_share_of_the_others_it_beats(serve: Serve) -> None:
    server = serve(longer)
    assert values(configured(server), rows("a", "bbb", "cc", "dd")) == [0, 1, 0.5, 0.5]
    assert len(server.bodies) == 2 * 6
    assert server.bodies[0].keys() == {"model", "messages", "temperature", "max_tokens"}


def test_each_comparison_is_asked_in_both_orders_and_the_shares_of_its_sides_add_up(serve: Serve) -> None:
    server = serve(lambda question: ["[[A]]", "[[B]]", "[[tie]]"][hash(question) % 3])
    one, other = values(configured(server), rows("x", "y"))
    assert one + other == 1
    assert {shown(question) for question in server.questions} == {("x", "y"), ("y", "x")}
    assert values(configured(server), rows("y", "x")) == [other, one]


@pytest.mark.parametrize(("answer", "bias"), [("[[A]]", 1.0), ("[[B]]", 0.0)])
def test_a_judge_who_only_sees_the_position_prefers_nobody_and_is_told_of(
    serve: Serve, answer: str, bias: float
) -> None:
    reward = rewards.load(configured(serve(lambda _: answer)))
    assert [found.value for found in reward.score(rows("a", "b", "c"))] == [0.5] * 3
    told = rewards.metrics(reward.counts)
    assert (told["judge_position_bias"], told["judge_inconsistent"], told["judge_comparisons"]) == (bias, 3, 3)


def test_a_fair_judge_has_no_position_bias(serve: Serve) -> None:
    reward = rewards.load(configured(serve(longer), input_price=2.0, output_price=10.0))
    reward.score(rows("a", "bb", "cc"))
    told = rewards.metrics(reward.counts)
    assert (told["judge_position_bias"], told["judge_inconsistent"], told["judge_tie"]) == (0.5, 0, 2)
    assert (told["judge_requests"], told["judge_prompt_tokens"], told["judge_completion_tokens"]) == (6, 600, 18)
    assert told["judge_cost"] == pytest.approx((600 * 2 + 18 * 10) / 1e6)


def test_the_rewards_depend_neither_on_concurrency_nor_on_the_order_of_the_candidates(serve: Serve) -> None:
    candidates = rows("a", "bbb", "cc", "dd") + rows("eeee", "f", "gg", prompt="q")

    expected = values(configured(serve(longer), opponents=1), candidates)
    for concurrency in (1, 3, 50):
        server = serve(meeting(min(concurrency, 2)))
        config = configured(server, concurrency=concurrency, opponents=1)
        assert values(config, candidates) == expected
        assert values(config, candidates[::-1])[::-1] == expected
        assert min(concurrency, 2) <= server.busiest <= concurrency


def meeting(parties: int) -> Reply:
    """Answers the first questions only once so many are under way, and each after a moment in which others may come."""
    meet, first = threading.Barrier(parties), threading.Semaphore(parties)

    def reply(question: str) -> str:
        if first.acquire(blocking=False):
            meet.wait(PATIENCE_S)
        time.sleep(0.01)
        return longer(question)

    return reply


@given(count=st.integers(1, 9), opponents=st.none() | st.integers(1, 9))
def test_each_candidate_meets_as_many_others_as_were_asked_for(count: int, opponents: int | None) -> None:
    pairs = llm_judge.opponents("p", list(range(count)), opponents)
    assert len(set(pairs)) == len(pairs)
    assert all(i < j for i, j in pairs)
    met = [sum(i in pair for pair in pairs) for i in range(count)]
    assert all(min(opponents or count, count - 1) <= times <= count - 1 for times in met)
    assert len(pairs) <= count * (opponents or count)
    if opponents is None:
        assert len(pairs) == count * (count - 1) // 2


def test_equal_texts_tie_unasked_and_a_lone_candidate_has_no_reward(serve: Serve) -> None:
    server = serve(longer)
    assert values(configured(server), rows("a", "a")) == [0.5, 0.5]
    (alone,) = rewards.load(configured(server)).score(rows("a"))
    assert alone.dropped == ALONE
    assert not server.bodies


def test_against_references_each_candidate_stands_alone(serve: Serve) -> None:
    server = serve(longer)
    config = configured(server, against="reference")
    assert values(config, rows("a", "bb", "ccc", reference="rr")) == [0, 0.5, 1]
    assert values(config, rows("ccc", reference="rr")) == [1]


# What is kept.


def test_a_second_run_asks_nothing_and_finds_the_same(serve: Serve, tmp_path: Path) -> None:
    server = serve(longer)
    first = values(configured(server), rows("a", "bb"), tmp_path)
    down = configured(server, timeout_s=9.0).model_copy(update={"base_url": "http://127.0.0.1:9/v1"})
    reward = rewards.load(down, tmp_path)
    assert [found.value for found in reward.score(rows("a", "bb"))] == first
    told = rewards.metrics(reward.counts)
    assert (told["judge_requests"], told["judge_cached"], told["judge_prompt_tokens"]) == (0, 2, 200)


@pytest.mark.parametrize("knobs", [{"temperature": 0.5}, {"max_tokens": 9}, {"model": "other"}])
def test_whatever_decides_an_answer_is_asked_anew_when_it_changes(
    serve: Serve, tmp_path: Path, knobs: dict[str, Any]
) -> None:
    server = serve(longer)
    config = configured(server)
    values(config, rows("a", "bb"), tmp_path)
    values(config.model_copy(update=knobs), rows("a", "bb"), tmp_path)
    assert len(server.bodies) == 4


def test_a_journal_that_was_torn_anywhere_loses_at_most_its_last_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "notes.jsonl")
    assert list(journal.read()) == []
    lines = [{"key": "ä\n", "n": n} for n in range(3)]
    for line in lines:
        journal.add(line)
    whole = (tmp_path / "notes.jsonl").read_bytes()
    for cut in range(len(whole) + 1):
        (tmp_path / "notes.jsonl").write_bytes(whole[:cut])
        kept = list(journal.read())
        assert kept == lines[: len(kept)]
        journal.add({"n": 9})
        assert list(journal.read()) == [*kept, {"n": 9}]


def test_a_journal_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.jsonl").mkdir()
    with pytest.raises(BadInput, match=r"notes\.jsonl: .*read"):
        list(Journal(tmp_path / "notes.jsonl").read())
    with pytest.raises(PCOError, match=r"notes\.jsonl: .*written"):
        Journal(tmp_path / "notes.jsonl").add({})


@pytest.mark.process
def test_a_process_killed_while_it_asks_has_kept_every_answer_that_came(serve: Serve, tmp_path: Path) -> None:
    answered, enough, over = threading.Semaphore(3), threading.Event(), threading.Event()

    def stalls(question: str) -> str | Fault:
        if answered.acquire(blocking=False):
            return longer(question)
        enough.set()
        over.wait()
        return Fault(cut=True)

    config = configured(serve(stalls), concurrency=1)
    program = (
        "import json, sys; from pathlib import Path\n"
        "from pco import rewards; from pco.config.reward import JudgeReward\n"
        "config, rows, folder = sys.argv[1:]\n"
        "rewards.load(JudgeReward.model_validate_json(config), Path(folder)).score(json.loads(rows))"
    )
    candidates = rows("a", "bb", "ccc")
    command = [sys.executable, "-c", program, config.model_dump_json(), json.dumps(candidates), str(tmp_path)]
    with subprocess.Popen(command) as process:
        assert enough.wait(PATIENCE_S)
        process.kill()
    over.set()
    server = serve(longer)
    resumed = config.model_copy(update={"base_url": server.url})
    assert values(resumed, candidates, tmp_path) == [0, 0.5, 1]
    assert len(server.bodies) == 6 - 3


# What goes wrong at the other end.


def flaky(faults: int, fault: Fault, then: Reply = longer) -> Reply:
    """Fails the first requests."""
    left = threading.Semaphore(faults)
    return lambda question: fault if left.acquire(blocking=False) else then(question)


NO_CHOICES = Fault(200, json.dumps({"choices": []}))


@pytest.mark.parametrize(
    "fault",
    [
        Fault(429),
        Fault(429, headers={"Retry-After": format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)}),
        Fault(500, headers={}),
        Fault(503, headers={"Retry-After": "soon"}),
        Fault(cut=True),
        NO_CHOICES,
        Fault(200, "<html>"),
        Fault(200, "[]"),
    ],
)
def test_what_may_pass_is_tried_again_and_changes_nothing(serve: Serve, fault: Fault) -> None:
    reward = rewards.load(configured(serve(flaky(2, fault))))
    assert [found.value for found in reward.score(rows("a", "bb"))] == [0, 1]
    told = rewards.metrics(reward.counts)
    assert (told["judge_requests"], told["judge_retries"]) == (4, 2)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Fault(500), "failed 3 times, at last because it answered 500: out of order"),
        (NO_CHOICES, "no chat completion with a choice"),
        (Fault(cut=True), "because of RemoteProtocolError"),
    ],
)
def test_an_endpoint_that_does_not_recover_fails_the_stage_for_another_try(
    serve: Serve, fault: Fault, told: str
) -> None:
    with pytest.raises(StageFailed, match=f"http://127.*{told}"):
        values(configured(serve(lambda _: fault), retries=2), rows("a", "bb"))


def test_an_endpoint_that_is_not_there_or_hangs_fails_the_stage(serve: Serve) -> None:
    nowhere = JudgeReward(base_url="http://127.0.0.1:9/v1", model="judge", retries=1)
    with pytest.raises(StageFailed, match="2 times.* ConnectError"):
        values(nowhere, rows("a", "bb"))

    over = threading.Event()

    def hangs(_: str) -> str:
        over.wait()
        return "[[A]]"

    with pytest.raises(StageFailed, match=r"127\.0\.0\.1.*within 0\.05 s.*timeout_s"):
        values(configured(serve(hangs), timeout_s=0.05, retries=1), rows("a", "bb"))
    over.set()


@pytest.mark.parametrize("status", [401, 402, 403, 404, 302])
def test_what_is_wrong_with_every_request_is_told_at_once_and_without_the_key(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-4711")
    server = serve(lambda _: Fault(status, "bad key secret-4711", {"Location": "/"}))
    with pytest.raises(BadInput, match=rf"{status}: .*\*\*\*.*JUDGE_KEY") as caught:
        values(configured(server, api_key_env="JUDGE_KEY", concurrency=1), rows("a", "bb"))
    assert server.keys == ["Bearer secret-4711"]
    assert "secret-4711" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "told"), [("", "is not set"), ("two\nlines", "no header may have"), ("ключ", "no key")]
)
def test_a_key_that_is_none_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, key: str, told: str) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    config = JudgeReward(base_url="http://127.0.0.1:9/v1", model="judge", api_key_env="JUDGE_KEY")
    with pytest.raises(BadInput, match=f"JUDGE_KEY.*{told}"):
        rewards.check(config, {})
    with pytest.raises(BadInput, match=told):
        rewards.load(config)


def test_a_comparison_counts_only_when_both_orders_can_be_read(serve: Serve) -> None:
    reward = rewards.load(configured(serve(lambda question: longer(question) if "bb" in question else "Well!")))
    scored = reward.score(rows("a", "bb", "ccc"))
    assert [found.value for found in scored] == [0, 0.5, 1]
    one_sided = rewards.load(configured(serve(lambda question: "?" if shown(question)[0] == "a" else "[[A]]")))
    assert [found.dropped for found in one_sided.score(rows("a", "b"))] == [UNREAD] * 2
    for found, unparsable in ((reward, 2), (one_sided, 1)):
        told = rewards.metrics(found.counts)
        assert (told["judge_unread"], told["judge_unparsable"]) == (1, unparsable)


def test_refusals_alone_are_no_fault_of_an_endpoint_that_has_answered_before(serve: Serve, tmp_path: Path) -> None:
    config = configured(serve(lambda text: Fault(400, "too long") if "ccc" in text else longer(text)))
    candidates = rows("a", "bb", "ccc")
    first = values(config, candidates, tmp_path)
    resumed = values(config, candidates, tmp_path)  # as after a kill: all but the refused questions is known
    assert resumed[:2] == first[:2] == [0, 1] and math.isnan(resumed[2])


def test_a_question_that_the_endpoint_refuses_is_no_readable_answer(serve: Serve) -> None:
    reward = rewards.load(configured(serve(lambda text: Fault(400, "too long") if "ccc" in text else longer(text))))
    scored = reward.score(rows("a", "bb", "ccc"))
    assert [found.dropped for found in scored] == [None, None, UNREAD]
    assert rewards.metrics(reward.counts)["judge_refused"] == 4
    with pytest.raises(BadInput, match=r"every question.* 400: too long"):
        values(configured(serve(lambda _: Fault(400, "too long"))), rows("a", "bb"))


def test_no_more_requests_begin_than_the_rate_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    for rate, expected in ((1200.0, [0.0, 0.05, 0.1]), (None, [0.0] * 3)):
        turns = endpoint._RateLimit(JudgeReward(base_url="http://h/v1", model="judge", requests_per_minute=rate))
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "sleep", note)
            for _ in range(3):
                asyncio.run(turns.wait())
        assert waits == pytest.approx(expected)
        waits.clear()


def waits_before_requests(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, retry_after: str | None, retries: int = 1
) -> list[float]:
    """Seconds between the failures of an endpoint that asks for so much patience."""
    slept, sleep = [], asyncio.sleep

    async def note(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    headers = {} if retry_after is None else {"Retry-After": retry_after}
    config = configured(serve(lambda _: Fault(503, headers=headers)), retries=retries, concurrency=1)
    with monkeypatch.context() as patch, pytest.raises(StageFailed):
        patch.setattr(endpoint, "FIRST_WAIT_S", 1.0)
        patch.setattr(asyncio, "sleep", note)
        values(config, rows("a", "bb"))
    return slept[1 : 2 * retries : 2]  # before each it also waits for its turn


def test_the_wait_doubles_up_to_a_limit_and_the_endpoint_may_ask_for_its_own(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = waits_before_requests(serve, monkeypatch, None, retries=19)
    assert all(2**attempt / 2 <= wait <= 2**attempt for attempt, wait in enumerate(waits[:6]))
    assert len(waits) == 19 and waits[-1] == 120
    assert waits_before_requests(serve, monkeypatch, "1000000000") == [120]
    assert waits_before_requests(serve, monkeypatch, "7") == [7]
    in_half_a_day, yesterday = (datetime.now(UTC) + timedelta(hours=hours) for hours in (12, -24))
    assert waits_before_requests(serve, monkeypatch, format_datetime(in_half_a_day, usegmt=True)) == [120]
    assert waits_before_requests(serve, monkeypatch, format_datetime(yesterday, usegmt=True)) == [0]


# The config.


def test_only_what_decides_an_answer_is_part_of_a_stages_settings(serve: Serve, tmp_path: Path) -> None:
    config = JudgeReward(base_url="http://h/v1", model="judge")
    for knobs in ({"base_url": "http://i/v1"}, {"concurrency": 1}, {"retries": 0}, {"input_price": 1.0}):
        assert settings(config.model_copy(update=knobs)) == settings(config)
    for knobs in ({"model": "b"}, {"against": "reference"}, {"opponents": 2}, {"max_tokens": 1}):
        assert settings(config.model_copy(update=knobs)) != settings(config)


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"base_url": "http://user:geheim@h/v1"}, "reward.judge.base_url: expected http://HOST"),
        ({"base_url": "http://h:geheim/v1"}, "expected http://HOST"),
        ({"base_url": "h/geheim"}, "expected http://HOST"),
        ({"base_url": "http://h/v1?key=geheim"}, "expected http://HOST"),
        ({"api_key_env": "geheim-123"}, "api_key_env"),
        ({"against": "reference", "opponents": 2}, "`opponents` are drawn among candidates"),
    ],
)
def test_a_config_that_cannot_work_is_refused_without_repeating_a_secret(
    tmp_path: Path, knobs: dict[str, Any], told: str
) -> None:
    reward = {"kind": "judge", "base_url": "http://h/v1", "model": "judge", **knobs}
    with pytest.raises(BadInput, match=told) as caught:
        parse(builders.raw_config(tmp_path) | {"reward": reward}, source="x")
    assert "geheim" not in str(caught.value)


def test_a_template_of_ones_own_is_asked_and_its_content_names_the_reward(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "ask.txt"
    file.write_text("{prompt}? {first} or {second}")
    server = serve(lambda question: "A" if question == "p? a or b" else "B")
    config = configured(server, template=str(file))
    stage = Stage("score", 1, builders.config(tmp_path, reward=config.model_dump()), {})
    before, (given,) = rewards.load(config).digest, rewards.inputs(stage).values()
    assert values(config, rows("a", "b")) == [1, 0]
    file.write_text("{prompt}: {first} or {second}")
    assert rewards.load(config).digest != before
    assert rewards.inputs(stage)["reward"].fingerprint != given.fingerprint
    file.write_text("{first} or")
    with pytest.raises(BadInput, match=r"ask\.txt: .*\{prompt\}, \{second\}"):
        rewards.check(config, {})
    file.unlink()
    with pytest.raises(BadInput, match=r"ask\.txt: .*read"):
        rewards.check(config, {})


def test_a_judge_against_references_needs_one_for_every_prompt() -> None:
    config = JudgeReward(base_url="http://h/v1", model="judge", against="reference")
    rows = [builders.prompt_row("p")]
    with pytest.raises(BadInput, match="has no `reference`"):
        rewards.check(config, {"x": rows})
    rewards.check(config.model_copy(update={"against": "candidates"}), {"x": rows})


# The stages.


def test_a_stage_tells_of_all_comparisons_and_keeps_the_answers_in_the_runs_folder(
    serve: Serve, tmp_path: Path
) -> None:
    candidates = [builders.candidate_row("p", sample, tokens=[1] * (sample + 1)) for sample in range(3)]
    server = serve(longer)
    stage = scoring(tmp_path, configured(server).model_dump(), candidates)
    manifest = score.run(stage)
    assert manifest.metrics["judge_comparisons"] == 3
    assert [row["reward"] for row in store.read_table(stage.folder, "scores").to_pylist()] == [0, 0.5, 1]
    assert len(list(Journal(stage.config.folder / ANSWERS).read())) == 6
    (stage.folder / store.MANIFEST).unlink()
    again = score.run(stage)  # nothing is left to score
    assert again.metrics == manifest.metrics
    assert len(server.bodies) == 6


def test_an_evaluation_compares_with_the_starting_policys_completions(
    serve: Serve, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "Sampler", FakeSampler)
    server = serve(longer)
    start = evaluating(tmp_path, tiny, **configured(server).model_dump())
    start = Stage("evaluate", 0, start.config, start.inputs)
    assert evaluate.run(start).metrics["reward"] == 0.5
    assert not server.bodies  # it is compared with itself

    class Wordy(FakeSampler):
        def __init__(self, *_: Any) -> None:
            self.tokens = 1

    monkeypatch.setattr(evaluate, "Sampler", Wordy)
    evaluations = {"start": builders.result(start), "previous": builders.result(start)}
    later = Stage("evaluate", 1, start.config, {**start.inputs, **evaluations})
    manifest = evaluate.run(later)
    assert (manifest.metrics["reward"], manifest.metrics["judge_comparisons"]) == (1, 4)
