"""A language model as judge of pairs: which of two answers to a prompt is better.

A candidate's reward is the mean share of comparisons that it wins; a tie is half a win. Judges favour a position (Zheng
et al., arXiv 2306.05685), so each comparison is asked in both orders, and counts only when both answers can be read:
one alone would carry the favour into the reward. So the shares of the two sides add up to 1.
"""

import contextlib
import math
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from data import store
from data.errors import BadInput
from data.journal import Journal
from pco.config.reward import JudgeReward
from pco.rewards import endpoint
from pco.rewards.endpoint import Answer, Refusal
from pco.rewards.scores import Candidates, Counts, Score, Scorer
from pco.seeds import seed_of

ANSWERS = "judge-answers.jsonl"  # in the run's folder
COUNTED = (
    "comparisons",
    "inconsistent",  # comparisons in which each order has another winner
    "unread",  # comparisons of which an answer could not be read
    "tie",  # answers, as are the next two
    "unparsable",
    "refused",
    "requests",
    "retries",
    "cached",  # answers that were not asked for again
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
_SHARES = {"A": 1.0, "B": 0.0, "TIE": 0.5}  # of the answer that stands first
_TOLD_EVERY_S = 30.0


@dataclass(frozen=True)
class _Comparison:
    """A candidate against a text: that of another candidate, which the outcome counts for as well, or a fixed one."""

    candidate: int
    other: int | None
    prompt: str
    text: str
    opponent: str

    def questions(self, template: str) -> tuple[str, str]:
        """Both orders."""
        return (
            filled(template, self.prompt, self.text, self.opponent),
            filled(template, self.prompt, self.opponent, self.text),
        )


def check(config: JudgeReward) -> None:
    """Refuse a judge that cannot work, as far as that is known without asking it. Raises BadInput."""
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
    if missing := [name for name in ("{prompt}", "{first}", "{second}") if name not in text]:
        raise BadInput(f"{path}: has no place for {', '.join(missing)}; a judge must be shown all three (`template`).")
    return text


def filled(template: str, prompt: str, first: str, second: str) -> str:
    """The question; what is filled in is left as it is, braces included."""
    values = {"prompt": prompt, "first": first, "second": second}
    return re.sub(r"\{(prompt|first|second)\}", lambda place: values[place[1]], template)


def verdict(answer: str) -> float | None:
    """The first text's share of the win, 1, 0 or 0.5, by the last [[A]], [[B]] or [[tie]]; a bare A, B or tie will do.

    None when the answer holds no verdict.
    """
    found = [one or other for one, other in _VERDICT.findall(answer)]
    return _SHARES[found[-1].upper()] if found else None


def scorer(config: JudgeReward, folder: Path | None, counts: Counts) -> Scorer:
    """Compares the candidates of a batch; counts what `metrics` tells of.

    Answers are kept in `folder`, and what is answered there is not asked again; without one they are forgotten.

    Raises BadInput as `check` does.
    """
    template = _template(config)
    endpoint.check(config)
    answers = _Answers(config, None if folder is None else Journal(folder / ANSWERS), counts)

    def score(candidates: Candidates) -> list[Score]:
        comparisons = list(_comparisons(candidates, config))
        differing = [one for one in comparisons if one.text != one.opponent]  # equal texts tie unasked
        given = answers.to([question for one in differing for question in one.questions(template)])
        shares: dict[int, list[float | None]] = defaultdict(list)
        for one in comparisons:
            there, back = (given.get(question) for question in one.questions(template))
            share = 0.5 if there is None or back is None else _share(there, back, counts)
            shares[one.candidate].append(share)
            if one.other is not None:
                shares[one.other].append(None if share is None else 1 - share)
        return [_scored(shares[i]) for i in range(len(candidates))]

    return score


def _scored(shares: list[float | None]) -> Score:
    read = [share for share in shares if share is not None]
    if not read:
        return Score(math.nan, why_none=UNREAD if shares else ALONE)
    return Score(fmean(read))


def _comparisons(candidates: Candidates, config: JudgeReward) -> Iterator[_Comparison]:
    """Each candidate with the reference or, in an evaluation, the baseline; else with others of its prompt."""
    fixed = "reference" if config.against == "reference" else "baseline"
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(candidates):
        if fixed in row:
            yield _Comparison(i, None, row["source_prompt"], row["completion"], row[fixed])
        else:
            groups[row["prompt_id"]].append(i)
    for prompt_id, members in groups.items():
        for i, j in _drawn(prompt_id, members, config.opponents):
            one, other = candidates[i], candidates[j]
            yield _Comparison(i, j, one["source_prompt"], one["completion"], other["completion"])


def _drawn(prompt_id: str, members: list[int], opponents: int | None) -> list[tuple[int, int]]:
    """All pairs, or those of neighbours up to `opponents` steps apart in a circle whose order is drawn."""
    circle = random.Random(seed_of("opponents", prompt_id)).sample(members, len(members))
    steps = range(1, min(opponents or len(circle), len(circle) - 1) + 1)
    pairs = {tuple(sorted((one, circle[(at + step) % len(circle)]))) for at, one in enumerate(circle) for step in steps}
    return sorted(pairs)  # type: ignore[arg-type]


def _share(one: Answer | Refusal, other: Answer | Refusal, counts: Counts) -> float | None:
    """The mean of the candidate's shares in both orders: in the first it stands first, in the other second."""
    counts["comparisons"] += 1
    firsts = [_counted(answer, counts) for answer in (one, other)]
    if firsts[0] is None or firsts[1] is None:
        counts["unread"] += 1
        return None
    counts["inconsistent"] += {firsts[0], firsts[1]} in ({1.0}, {0.0})
    return (firsts[0] + 1 - firsts[1]) / 2


def _counted(answer: Answer | Refusal, counts: Counts) -> float | None:
    if isinstance(answer, Refusal):
        counts["refused"] += 1
        return None
    first = verdict(answer.text)
    counts[{None: "unparsable", 1.0: "first", 0.0: "second", 0.5: "tie"}[first]] += 1
    return first


class _Answers:
    """The judge's answers by the content of the question: from the journal, or asked for now and noted there."""

    def __init__(self, config: JudgeReward, journal: Journal | None, counts: Counts) -> None:
        self._config, self._journal, self._counts = config, journal, counts
        self._known = dict(_noted(journal)) if journal else {}

    def to(self, questions: Sequence[str]) -> dict[str, Answer | Refusal]:
        """What the judge says to each question; one that stands twice in the list is asked once.

        Raises what `endpoint.ask` raises, and BadInput when the endpoint refused all that it was ever asked.
        """
        keys = {question: store.digest(endpoint.request(question, self._config)) for question in questions}
        missing = [question for question, key in keys.items() if key not in self._known]
        self._counts["cached"] += len(keys) - len(missing)
        refusals: dict[str, Answer | Refusal] = {}
        heard = time.monotonic()

        def note(question: str, answer: Answer | Refusal, left: int) -> None:
            nonlocal heard
            if isinstance(answer, Refusal):
                refusals[question] = answer
            else:
                self._keep(keys[question], answer)
            if time.monotonic() - heard > _TOLD_EVERY_S:  # a stage that says nothing is taken for one that hangs
                heard = time.monotonic()
                print(f"judge: {left:,} of {len(missing):,} questions left", flush=True)

        endpoint.ask(missing, self._config, on_answer=note, counts=self._counts)
        if missing and len(refusals) == len(missing) and not self._known:
            raise BadInput(f"{self._config.base_url}: refused every question; {refusals[missing[0]]}")
        answers = {question: self._known[key] for question, key in keys.items() if question not in refusals}
        self._count_tokens(answers.values())
        return {**answers, **refusals}

    def _keep(self, key: str, answer: Answer) -> None:
        self._known[key] = answer
        if self._journal:
            self._journal.add({"key": key, **asdict(answer)})

    def _count_tokens(self, answers: Iterable[Answer]) -> None:
        """Tokens and their price are those of the answers used, also where an earlier attempt paid for them."""
        config = self._config
        for answer in answers:
            self._counts["prompt_tokens"] += answer.prompt_tokens
            self._counts["completion_tokens"] += answer.completion_tokens
            self._counts["cost"] += (
                answer.prompt_tokens * config.input_price + answer.completion_tokens * config.output_price
            ) / 1e6


def _noted(journal: Journal) -> Iterator[tuple[str, Answer]]:
    for row in journal.read():
        with contextlib.suppress(KeyError, TypeError):  # a line that is none of ours
            yield row.pop("key"), Answer(**row)


def metrics(counts: Mapping[str, float]) -> dict[str, float]:
    """What a judge counted, for people; nothing where none was asked.

    `judge_position_bias` is the share of decided answers that are for the text that stood first: 0.5 is fair.
    """
    if not counts.get("comparisons"):
        return {}
    count: defaultdict[str, float] = defaultdict(float, counts)
    decided = count["first"] + count["second"]
    return {
        **({"judge_position_bias": count["first"] / decided} if decided else {}),
        **{f"judge_{name}": count[name] for name in COUNTED},
    }
