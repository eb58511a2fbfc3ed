"""An engine for tests of what is around one: the same answer to everything."""

from collections.abc import Callable
from typing import Any

from pco.models.engine import Completion, Request

SAMPLED = -3.0  # log-probability of each completion under the policy that samples it


class FakeSampler:
    """Completes with `z` as often as it was made to, and finds given text likelier the longer it writes."""

    context = 99

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def complete(
        self, requests: list[Request], *_: Any, on_done: Callable[[float], None], **__: Any
    ) -> list[Completion]:
        return [Completion(one, "z " * self.tokens, [5] * self.tokens, SAMPLED, "length") for one in requests]

    def text_logprobs(self, texts: list[str]) -> list[tuple[float, int]]:
        return [(-10.0 / self.tokens, 5) for _ in texts]

    def logprobs(self, given: list[tuple[list[int], list[int]]]) -> list[float]:
        return [SAMPLED - 1 for _ in given]
