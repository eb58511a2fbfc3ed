"""A judge's replies: kept by the content of their questions, so that none is paid for twice, and within a budget."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from data import files
from data.errors import BadInput, BudgetSpent
from data.journal import Journal
from pco.config.reward import JudgeReward
from pco.rewards import endpoint
from pco.rewards.endpoint import Refusal, Reply
from pco.rewards.scores import Counts

_PRINT_EVERY_S = 30.0
_CHARACTERS_PER_TOKEN = 4  # of English text, roughly
_TEMPLATE_TOKENS = 64  # more than the endpoint's chat template adds to a question


@dataclass(frozen=True)
class Estimate:
    """What questions would cost: requests to send, questions answered before, tokens, and money where prices are known.

    `prompt_tokens` is a rough count, a token for four characters; `completion_tokens` is the most that may be written,
    which the `cost` counts in full.
    """

    requests: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def __str__(self) -> str:
        kept = f" ({self.cached:,} more were answered before)" if self.cached else ""
        cost = "; no prices are given"
        if self.cost is not None:
            cost = f", for about {self.cost:,.4g} by the prices given if all are as long as that"
        return (
            f"{self.requests:,} requests{kept}, about {self.prompt_tokens:,} tokens read and at most "
            f"{self.completion_tokens:,} written{cost}"
        )


class Replies:
    """The judge's replies by the content of the question: read from the journal, or asked for and added to it.

    With `max_cost` a question is only asked while all replies so far, those under way and it itself at its longest cost
    no more. A reply without a count of tokens is taken to cost the most that it may.

    Raises BadInput for a `max_cost` without prices.
    """

    def __init__(
        self, config: JudgeReward, journal: Journal | None, counts: Counts, *, max_cost: float | None = None
    ) -> None:
        if max_cost is not None and not has_prices(config):
            raise BadInput(
                "max_cost: the judge has no prices, so nothing would ever be spent. Give input_price and output_price, "
                "per million tokens, in the judge's config."
            )
        self._config, self._journal, self._counts, self._max_cost = config, journal, counts, max_cost
        self._replies: dict[str, Reply] = {}
        self._spent = 0.0
        self._set_aside: dict[str, float] = {}  # for requests under way
        for key, reply, spent in _recorded(journal) if journal else ():
            self._replies[key] = reply
            self._spent += self._cost(reply) or spent

    def estimate(self, questions: Sequence[str]) -> Estimate:
        """What asking these would cost. No request is sent."""
        distinct = list(dict.fromkeys(questions))
        missing = [question for question in distinct if self._key(question) not in self._replies]
        read = sum(len(question) // _CHARACTERS_PER_TOKEN + 1 for question in missing)
        written = len(missing) * self._config.max_tokens
        cost = price(read, written, self._config) if has_prices(self._config) else None
        return Estimate(len(missing), len(distinct) - len(missing), read, written, cost)

    def get(self, questions: Sequence[str]) -> dict[str, Reply | Refusal]:
        """The judge's reply to each question; equal questions are asked once.

        Raises what `endpoint.ask` raises, BadInput when the endpoint refused every question so far, and BudgetSpent
        when the budget does not suffice. Replies so far are kept.
        """
        keys = {question: self._key(question) for question in questions}
        missing = [question for question, key in keys.items() if key not in self._replies]
        self._counts["cached"] += len(keys) - len(missing)
        refusals: dict[str, Reply | Refusal] = {}
        last_print = time.monotonic()

        def record(question: str, reply: Reply | Refusal, left: int) -> None:
            nonlocal last_print
            if isinstance(reply, Refusal):
                self._set_aside.pop(question, None)
                refusals[question] = reply
            else:
                self._keep(question, keys[question], reply)
            if time.monotonic() - last_print > _PRINT_EVERY_S:  # a stage without output looks like one that hangs
                last_print = time.monotonic()
                print(f"judge: {left:,} of {len(missing):,} questions left", flush=True)

        unasked = missing
        while unasked:
            endpoint.ask(unasked, self._config, on_reply=record, counts=self._counts, may_ask=self._may_ask)
            left = [
                question for question in unasked if keys[question] not in self._replies and question not in refusals
            ]
            if len(left) == len(unasked):
                raise self._budget_spent(unasked, len(keys))
            unasked = left  # replies that cost less than was set aside have left room for more
        if missing and len(refusals) == len(missing) and not self._replies:
            raise BadInput(f"{self._config.base_url}: refused every question; {refusals[missing[0]]}")
        replies = {question: self._replies[key] for question, key in keys.items() if question not in refusals}
        self._count_tokens(replies.values())
        return {**replies, **refusals}

    def _budget_spent(self, unasked: Sequence[str], count: int) -> BudgetSpent:
        return BudgetSpent(
            f"{self._config.base_url}: {len(unasked):,} of {count:,} questions were not asked: {self._spent:.4g} is "
            f"spent, each may cost up to {max(map(self._most, unasked)):.2g}, and max_cost is {self._max_cost:g}. "
            "Answers so far are kept; the same command goes on with a higher max_cost."
        )

    def _key(self, question: str) -> str:
        return files.digest(endpoint.request(question, self._config))

    def _keep(self, question: str, key: str, reply: Reply) -> None:
        self._replies[key] = reply
        self._set_aside.pop(question, None)
        is_counted = reply.prompt_tokens + reply.completion_tokens > 0
        spent = 0.0 if is_counted else self._most(question)
        self._spent += self._cost(reply) or spent
        if self._journal:
            # What a reply without a count of tokens is taken to cost, for a later attempt, which may have a limit.
            uncounted = {"spent": spent} if spent else {}
            self._journal.add({"key": key, **asdict(reply), **uncounted})

    def _may_ask(self, question: str) -> bool:
        """Whether the budget suffices; the most that the reply may cost is then set aside."""
        if self._max_cost is None:
            return True
        most = self._most(question)
        if self._spent + sum(self._set_aside.values()) + most > self._max_cost:
            return False
        self._set_aside[question] = most
        return True

    def _most(self, question: str) -> float:
        """The most that a reply may cost: no tokenizer makes more tokens of a text than it has bytes."""
        return price(len(question.encode()) + _TEMPLATE_TOKENS, self._config.max_tokens, self._config)

    def _cost(self, reply: Reply) -> float:
        return price(reply.prompt_tokens, reply.completion_tokens, self._config)

    def _count_tokens(self, replies: Iterable[Reply]) -> None:
        """Count tokens and cost of all replies that are used, also of those that an earlier attempt paid for."""
        for reply in replies:
            self._counts["prompt_tokens"] += reply.prompt_tokens
            self._counts["completion_tokens"] += reply.completion_tokens
            self._counts["cost"] += self._cost(reply)


def has_prices(config: JudgeReward) -> bool:
    """Whether the judge's config says what tokens cost."""
    return config.input_price > 0 or config.output_price > 0


def price(prompt_tokens: int, completion_tokens: int, config: JudgeReward) -> float:
    """What so many tokens cost by the config's prices per million."""
    return (prompt_tokens * config.input_price + completion_tokens * config.output_price) / 1e6


def _recorded(journal: Journal) -> Iterator[tuple[str, Reply, float]]:
    for row in journal.read():
        with contextlib.suppress(KeyError, TypeError):  # a line that this module did not write
            spent = float(row.pop("spent", 0.0))
            yield row.pop("key"), Reply(**row), spent
