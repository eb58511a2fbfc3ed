"""A language model as judge of pairs: which of two answers to a prompt is better.

A candidate's reward is the mean share of comparisons that it wins; a tie is half a win. Judges favour a position (Zheng
et al., arXiv 2306.05685). So each comparison is asked in both orders and counts only when both replies can be read: a
single reply would carry the position bias into the reward. The shares of the two sides add up to 1.
"""

import contextlib
import math
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Literal

from data import files
from data.errors import BadInput
from data.journal import Journal
from pco.config.reward import JudgeReward
from pco.rewards import endpoint
from pco.rewards.endpoint import Refusal, Reply
from pco.rewards.scores import Candidates, Counts, Score, Scorer
from pco.seeds import seed_of

ANSWERS = "judge-answers.jsonl"  # in the run's folder
COUNTED = (
    "comparisons",
    "inconsistent",  # comparisons whose winner differs between the two orders
    "unread",  # comparisons with a reply that could not be read
    "tie",  # replies, like the next two
    "unparsable",
    "refused",
    "requests",
    "retries",
    "cached",  # replies that were in the journal
    "prompt_tokens",
    "completion_tokens",
    "cost",
)
UNREAD = "the judge gave no readable verdict"
ALONE = "nothing to compare with"

TEMPLATE = """\
Below are a request and two answers to it. Decide which answer is better: more helpful, more correct, and closer to \
what the request asks for. The order of the answers and their length must not matter.

### Request
{prompt}

### Answer A
{first}

### Answer B
{second}

### Verdict
Reply with [[A]] if answer A is better, [[B]] if answer B is better, or [[tie]] if neither is. Write nothing else.
"""

_VERDICT = re.compile(r"\[\[\s*(A|B|tie)\s*\]\]|\A\W*(A|B|tie)\W*\Z", re.IGNORECASE)
_SHARES = {"A": 1.0, "B": 0.0, "TIE": 0.5}  # of the answer that comes first
_PRINT_EVERY_S = 30.0


@dataclass(frozen=True)
class _Comparison:
    """A candidate against another one, which then also gets a share, or against a fixed text (`other` is None)."""

    candidate: int
    other: int | None
    prompt: str
    text: str
    opponent: str

    def questions(self, template: str) -> tuple[str, str]:
        """The questions for both orders."""
        return (
            filled(template, self.prompt, self.text, self.opponent),
            filled(template, self.prompt, self.opponent, self.text),
        )


def check(config: JudgeReward) -> None:
    """Refuse a judge that cannot work, as far as that is known without a request. Raises BadInput."""
    _template(config)
    endpoint.check(config)


def _template(config: JudgeReward) -> str:
    if config.template is None:
        return TEMPLATE
    path = Path(config.template)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: could not be read ({error}). The judge's `template` is a text file.") from error
    missing = [name for name in ("{prompt}", "{first}", "{second}") if name not in text]
    if missing:
        raise BadInput(f"{path}: has no place for {', '.join(missing)}; a judge must be shown all three (`template`).")
    return text


def filled(template: str, prompt: str, first: str, second: str) -> str:
    """The question. The texts that are filled in are not changed, braces included."""
    values = {"prompt": prompt, "first": first, "second": second}
    return re.sub(r"\{(prompt|first|second)\}", lambda place: values[place[1]], template)


def verdict(reply: str) -> float | None:
    """The first text's share of the win, 1, 0 or 0.5, by the last [[A]], [[B]] or [[tie]]; a bare A, B or tie counts.

    None when the reply has no verdict.
    """
    names = [bracketed or bare for bracketed, bare in _VERDICT.findall(reply)]
    return _SHARES[names[-1].upper()] if names else None


def scorer(config: JudgeReward, folder: Path | None, counts: Counts) -> Scorer:
    """Compares the candidates of a batch; adds to `counts` what `metrics` summarises.

    Replies are kept in `folder`, and a question with a reply there is not asked again. Without a folder they are lost.

    Raises BadInput as `check` does.
    """
    template = _template(config)
    endpoint.check(config)
    replies = _ReplyCache(config, None if folder is None else Journal(folder / ANSWERS), counts)

    def score(candidates: Candidates) -> list[Score]:
        comparisons = list(_comparisons(candidates, config))
        # Equal texts tie without a request.
        differing = [comparison for comparison in comparisons if comparison.text != comparison.opponent]
        questions = chain.from_iterable(comparison.questions(template) for comparison in differing)
        reply_to = replies.get(list(questions))
        shares: dict[int, list[float | None]] = defaultdict(list)
        for comparison in comparisons:
            first, second = (reply_to.get(question) for question in comparison.questions(template))
            share = 0.5 if first is None or second is None else _share(first, second, counts)
            shares[comparison.candidate].append(share)
            if comparison.other is not None:
                shares[comparison.other].append(None if share is None else 1 - share)
        return [_scored(shares[i]) for i in range(len(candidates))]

    return score


def _scored(shares: list[float | None]) -> Score:
    read = [share for share in shares if share is not None]
    if not read:
        return Score(math.nan, why_none=UNREAD if shares else ALONE)
    return Score(fmean(read))


def _comparisons(candidates: Candidates, config: JudgeReward) -> Iterator[_Comparison]:
    """Each candidate with the reference or, in an evaluation, the baseline; else with others of its prompt."""
    fixed: Literal["reference", "baseline"] = "reference" if config.against == "reference" else "baseline"
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(candidates):
        if fixed in row:
            opponent = row[fixed]
            assert opponent is not None  # `rewards.check` refuses prompts without a reference
            yield _Comparison(i, None, row["source_prompt"], row["completion"], opponent)
        else:
            groups[row["prompt_id"]].append(i)
    for prompt_id, members in groups.items():
        for i, j in opponents(prompt_id, members, config.opponents):
            text, opponent = candidates[i]["completion"], candidates[j]["completion"]
            yield _Comparison(i, j, candidates[i]["source_prompt"], text, opponent)


def opponents(prompt_id: str, members: list[int], count: int | None) -> list[tuple[int, int]]:
    """All pairs, or those of neighbours up to `count` steps apart in a circle of random order."""
    circle = random.Random(seed_of("opponents", prompt_id)).sample(members, len(members))
    steps = min(count or len(circle), len(circle) - 1)
    pairs: set[tuple[int, int]] = set()
    for place, member in enumerate(circle):
        for step in range(1, steps + 1):
            neighbour = circle[(place + step) % len(circle)]
            pairs.add((min(member, neighbour), max(member, neighbour)))
    return sorted(pairs)


def _share(as_first: Reply | Refusal, as_second: Reply | Refusal, counts: Counts) -> float | None:
    """The mean of a candidate's shares in both orders: it comes first in one question and second in the other."""
    counts["comparisons"] += 1
    share_of_first, share_of_opponent = _counted(as_first, counts), _counted(as_second, counts)
    if share_of_first is None or share_of_opponent is None:
        counts["unread"] += 1
        return None
    counts["inconsistent"] += {share_of_first, share_of_opponent} in ({1.0}, {0.0})
    return (share_of_first + 1 - share_of_opponent) / 2


def _counted(reply: Reply | Refusal, counts: Counts) -> float | None:
    """The share of the text that comes first, counted by kind; None when there is no verdict."""
    if isinstance(reply, Refusal):
        counts["refused"] += 1
        return None
    first = verdict(reply.text)
    counts[{None: "unparsable", 1.0: "first", 0.0: "second", 0.5: "tie"}[first]] += 1
    return first


class _ReplyCache:
    """The judge's replies by the content of the question: read from the journal, or asked for and added to it."""

    def __init__(self, config: JudgeReward, journal: Journal | None, counts: Counts) -> None:
        self._config, self._journal, self._counts = config, journal, counts
        self._replies = dict(_recorded(journal)) if journal else {}

    def get(self, questions: Sequence[str]) -> dict[str, Reply | Refusal]:
        """The judge's reply to each question; equal questions are asked once.

        Raises what `endpoint.ask` raises, and BadInput when the endpoint refused every question so far.
        """
        keys = {question: files.digest(endpoint.request(question, self._config)) for question in questions}
        missing = [question for question, key in keys.items() if key not in self._replies]
        self._counts["cached"] += len(keys) - len(missing)
        refusals: dict[str, Reply | Refusal] = {}
        last_print = time.monotonic()

        def record(question: str, reply: Reply | Refusal, left: int) -> None:
            nonlocal last_print
            if isinstance(reply, Refusal):
                refusals[question] = reply
            else:
                self._replies[keys[question]] = reply
                if self._journal:
                    self._journal.add({"key": keys[question], **asdict(reply)})
            if time.monotonic() - last_print > _PRINT_EVERY_S:  # a stage without output looks like one that hangs
                last_print = time.monotonic()
                print(f"judge: {left:,} of {len(missing):,} questions left", flush=True)

        endpoint.ask(missing, self._config, on_reply=record, counts=self._counts)
        if missing and len(refusals) == len(missing) and not self._replies:
            raise BadInput(f"{self._config.base_url}: refused every question; {refusals[missing[0]]}")
        replies = {question: self._replies[key] for question, key in keys.items() if question not in refusals}
        self._count_tokens(replies.values())
        return {**replies, **refusals}

    def _count_tokens(self, replies: Iterable[Reply]) -> None:
        """Count tokens and cost of all replies that are used, also of those that an earlier attempt paid for."""
        config = self._config
        for reply in replies:
            self._counts["prompt_tokens"] += reply.prompt_tokens
            self._counts["completion_tokens"] += reply.completion_tokens
            self._counts["cost"] += (
                reply.prompt_tokens * config.input_price + reply.completion_tokens * config.output_price
            ) / 1e6


def _recorded(journal: Journal) -> Iterator[tuple[str, Reply]]:
    for row in journal.read():
        with contextlib.suppress(KeyError, TypeError):  # a line that this module did not write
            yield row.pop("key"), Reply(**row)


def metrics(counts: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a judge from its counts; none where it compared nothing.

    `judge_position_bias` is the share of decided replies for the text that came first: 0.5 is fair.
    """
    if not counts.get("comparisons"):
        return {}
    count: defaultdict[str, float] = defaultdict(float, counts)
    decided = count["first"] + count["second"]
    return {
        **({"judge_position_bias": count["first"] / decided} if decided else {}),
        **{f"judge_{name}": count[name] for name in COUNTED},
    }
