"""A language model as judge of pairs: which of two answers to a prompt is better.

A candidate's reward is the mean share of comparisons that it wins; a tie is half a win. Judges favour a position (Zheng
et al., arXiv 2306.05685). So each comparison is asked in both orders and counts only when both replies can be read: a
single reply would carry the position bias into the reward. The shares of the two sides add up to 1.
"""

import math
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Literal

from data.errors import BadInput
from data.journal import Journal
from pco.config.reward import JudgeReward
from pco.rewards import endpoint
from pco.rewards.endpoint import Refusal, Reply
from pco.rewards.judge_replies import Estimate, Replies
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

_QUESTION = """\
Below are a request and two answers to it. Decide which answer is better: more helpful, more correct, and closer to \
what the request asks for. The order of the answers and their length must not matter.

### Request
{prompt}

### Answer A
{first}

### Answer B
{second}

### Verdict
"""
TEMPLATE = f"""\
{_QUESTION}\
Reply with [[A]] if answer A is better, [[B]] if answer B is better, or [[tie]] if neither is. Write nothing else.
"""
FIVE_WAY_TEMPLATE = f"""\
{_QUESTION}\
Reply with [[A>>B]] if answer A is much better, [[A>B]] if it is slightly better, [[A=B]] if neither is better, \
[[B>A]] if answer B is slightly better, or [[B>>A]] if it is much better. Write nothing else.
"""

_VERDICT = re.compile(r"\[\[\s*(A|B|tie)\s*\]\]|\A\W*(A|B|tie)\W*\Z", re.IGNORECASE)
_SHARES = {"A": 1.0, "B": 0.0, "TIE": 0.5}  # of the answer that comes first
_FIVE_WAY_VERDICT = re.compile(r"\[\[\s*([AB])\s*(>>|>|=|<|<<)\s*([AB])\s*\]\]", re.IGNORECASE)
_FIVE_WAY_SHARES = {">>": 1.0, ">": 0.75, "=": 0.5, "<": 0.25, "<<": 0.0}  # of the answer that is named first


@dataclass(frozen=True)
class Match:
    """Two answers to a prompt that a judge is to compare."""

    prompt: str
    text: str
    opponent: str

    def questions(self, template: str) -> tuple[str, str]:
        """The questions for both orders."""
        return (
            filled(template, self.prompt, self.text, self.opponent),
            filled(template, self.prompt, self.opponent, self.text),
        )


@dataclass(frozen=True)
class Verdict:
    """What a judge said of a match: the share of the win that goes to its `text`, 0 to 1, in either order.

    `first` is from the question in which the text came first, `second` from the other; None where there was no
    readable reply.
    """

    first: float | None
    second: float | None

    @property
    def share(self) -> float | None:
        """The mean of both orders; None unless both can be read, since one alone would carry the position bias."""
        return None if self.first is None or self.second is None else (self.first + self.second) / 2

    @property
    def follows_position(self) -> bool:
        """Whether the winner was the answer in the same place both times."""
        if self.first is None or self.second is None:
            return False
        return (self.first - 0.5) * (self.second - 0.5) < 0


@dataclass(frozen=True)
class _Comparison:
    """A candidate against another one, which then also gets a share, or against a fixed text (`other` is None)."""

    candidate: int
    other: int | None
    match: Match


def check(config: JudgeReward) -> None:
    """Refuse a judge that cannot work, as far as that is known without a request. Raises BadInput."""
    _template(config)
    endpoint.check(config)


def _template(config: JudgeReward) -> str:
    if config.template is None:
        return FIVE_WAY_TEMPLATE if config.verdicts == "five" else TEMPLATE
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


def five_way_verdict(reply: str) -> float | None:
    """The first text's share of the win by the last [[A>>B]], [[A>B]], [[A=B]], [[B>A]] or [[B>>A]]: 1, 0.75, ... 0.

    The scale is that of Arena-Hard (arXiv 2406.11939); [[B<A]] is [[A>B]]. None when the reply has no verdict.
    """
    verdicts = [
        (left, relation) for left, relation, right in _FIVE_WAY_VERDICT.findall(reply) if left.upper() != right.upper()
    ]
    if not verdicts:
        return None
    left, relation = verdicts[-1]
    share = _FIVE_WAY_SHARES[relation]
    return share if left.upper() == "A" else 1 - share


class Judge:
    """Compares answers. Its replies are kept in `folder`, and a question with a reply there is not asked again.

    Without a folder they are lost. `counts` gets what `metrics` summarises. `max_cost` is what all its replies in the
    folder may cost together.

    Raises BadInput as `check` does, or for a `max_cost` without prices.
    """

    def __init__(
        self, config: JudgeReward, folder: Path | None, counts: Counts, *, max_cost: float | None = None
    ) -> None:
        self._template = _template(config)
        endpoint.check(config)
        journal = None if folder is None else Journal(folder / ANSWERS)
        self._replies = Replies(config, journal, counts, max_cost=max_cost)
        self._read = five_way_verdict if config.verdicts == "five" else verdict
        self._counts = counts

    def estimate(self, matches: Sequence[Match]) -> Estimate:
        """What `verdicts` of these would ask and cost at most."""
        return self._replies.estimate(self._questions(matches))

    def verdicts(self, matches: Sequence[Match]) -> list[Verdict]:
        """A verdict for each match, in order. Equal texts tie without a request.

        Raises what `Replies.get` raises.
        """
        reply_to = self._replies.get(self._questions(matches))
        verdicts = []
        for match in matches:
            if match.text == match.opponent:
                verdicts.append(Verdict(0.5, 0.5))
                continue
            first, second = (reply_to[question] for question in match.questions(self._template))
            verdicts.append(self._verdict(first, second))
        return verdicts

    def _questions(self, matches: Sequence[Match]) -> list[str]:
        differing = [match for match in matches if match.text != match.opponent]
        return list(chain.from_iterable(match.questions(self._template) for match in differing))

    def _verdict(self, as_first: Reply | Refusal, as_second: Reply | Refusal) -> Verdict:
        first, opponent = self._counted(as_first), self._counted(as_second)
        found = Verdict(first, None if opponent is None else 1 - opponent)
        self._counts["comparisons"] += 1
        self._counts["unread"] += found.share is None
        self._counts["inconsistent"] += found.follows_position
        return found

    def _counted(self, reply: Reply | Refusal) -> float | None:
        """The share of the text that comes first, counted by kind; None when there is no verdict."""
        if isinstance(reply, Refusal):
            self._counts["refused"] += 1
            return None
        share = self._read(reply.text)
        if share is None:
            self._counts["unparsable"] += 1
        else:
            self._counts["tie" if share == 0.5 else "first" if share > 0.5 else "second"] += 1
        return share


def scorer(config: JudgeReward, folder: Path | None, counts: Counts) -> Scorer:
    """Compares the candidates of a batch, with a `Judge`."""
    judge = Judge(config, folder, counts)

    def score(candidates: Candidates) -> list[Score]:
        comparisons = list(_comparisons(candidates, config))
        verdicts = judge.verdicts([comparison.match for comparison in comparisons])
        shares: dict[int, list[float | None]] = defaultdict(list)
        for comparison, found in zip(comparisons, verdicts, strict=True):
            share = found.share
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
            yield _Comparison(i, None, Match(row["source_prompt"], row["completion"], opponent))
        else:
            groups[row["prompt_id"]].append(i)
    for prompt_id, members in groups.items():
        for i, j in opponents(prompt_id, members, config.opponents):
            text, opponent = candidates[i]["completion"], candidates[j]["completion"]
            yield _Comparison(i, j, Match(candidates[i]["source_prompt"], text, opponent))


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
