"""An OpenAI-compatible endpoint (`/chat/completions`): many questions at once, asked again where that can help."""

import asyncio
import ipaddress
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from data.errors import BadInput, PCOError, StageFailed
from pco.config.reward import JudgeReward
from pco.rewards.scores import Counts

FIRST_WAIT_S = 1.0  # before a request is tried again; it doubles each time
_LONGEST_WAIT_S = 120.0  # also where the endpoint asks for more, so that the stage is not taken for one that hangs
_TOLD = 300  # characters of what an endpoint says

_ASKED_WRONGLY = (401, 402, 403, 404, 405)  # key, credit, address or model: true of every request
_TRANSIENT = (408, 409, 425, 429)  # and all from 500


@dataclass(frozen=True)
class Answer:
    """What the model said, and what it read and wrote for it in its own tokens (0 where the endpoint does not say)."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Refusal:
    """Why the endpoint will not answer this one question, such as one that is too long for its model."""

    reason: str

    def __str__(self) -> str:
        return self.reason


OnAnswer = Callable[[str, Answer | Refusal, int], None]


class _Transient(Exception):
    """A request that failed and may succeed when it is sent again, after the wait that the endpoint asks for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def check(config: JudgeReward) -> None:
    """Raise BadInput where the key's environment variable is not set. Asks the endpoint nothing."""
    _key(config)


def request(question: str, config: JudgeReward) -> dict[str, Any]:
    """All that decides an answer: the body of a request."""
    return {
        "model": config.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
    }


def ask(
    questions: Sequence[str],
    config: JudgeReward,
    *,
    on_answer: OnAnswer,
    counts: Counts,
) -> None:
    """Ask all questions and hand over each answer as it comes, with how many are left. Counts `requests`, `retries`.

    Raises BadInput when no request can succeed (key, address, model), StageFailed when one failed too often. What was
    answered before was handed over.
    """
    try:
        asyncio.run(_ask_all(questions, config, on_answer, counts))
    except BaseExceptionGroup as group:  # the first failure ended the others
        raise next((error for error in group.exceptions if isinstance(error, PCOError)), group) from None


async def _ask_all(
    questions: Sequence[str],
    config: JudgeReward,
    on_answer: OnAnswer,
    counts: Counts,
) -> None:
    import httpx

    key = _key(config)
    left = set(questions)
    free, turn = asyncio.Semaphore(config.concurrency), _Turns(config)
    settings: dict[str, Any] = {
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "limits": httpx.Limits(max_connections=config.concurrency),
        "timeout": config.timeout_s,  # of each step; `_ask_once` holds the whole request to it
    }
    if _is_loopback(config.base_url):  # whatever proxy the environment names
        settings["mounts"] = {f"all://{urlsplit(config.base_url).netloc}": None}
    async with httpx.AsyncClient(**settings) as client, asyncio.TaskGroup() as group:

        async def one(question: str) -> None:
            async with free:
                found = await _ask_patiently(client, question, config, turn, counts)
            left.discard(question)
            on_answer(question, found, len(left))

        for question in questions:
            group.create_task(one(question))


class _Turns:
    """Lets requests begin no faster than the config allows."""

    def __init__(self, config: JudgeReward) -> None:
        self._spacing_s = 60 / config.requests_per_minute if config.requests_per_minute else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        now = time.monotonic()
        begin = max(now, self._next)
        self._next = begin + self._spacing_s
        await asyncio.sleep(begin - now)


async def _ask_patiently(
    client: Any, question: str, config: JudgeReward, turn: _Turns, counts: Counts
) -> Answer | Refusal:
    body = request(question, config)
    for attempt in range(config.retries + 1):
        await turn.wait()
        counts["requests"] += 1
        counts["retries"] += attempt > 0
        try:
            return await _ask_once(client, body, config)
        except _Transient as error:
            failed = error
        if attempt < config.retries:
            print(
                f"judge: asks again, because {failed}", flush=True
            )  # or a slow endpoint looks like a stage that hangs
            await asyncio.sleep(_wait_s(attempt, failed))
    raise StageFailed(
        f"{config.base_url}: a request failed {config.retries + 1} times, at last because {failed}. Answers so far are "
        "kept. See that the endpoint works, or raise the judge's retries or timeout_s, then resume."
    )


def _wait_s(attempt: int, failed: _Transient) -> float:
    """What the endpoint asks for; else ever longer, and by chance less, so that not all requests come back at once."""
    wanted = FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1) if failed.wait_s is None else failed.wait_s
    return min(wanted, _LONGEST_WAIT_S)


async def _ask_once(client: Any, body: dict[str, Any], config: JudgeReward) -> Answer | Refusal:
    import httpx

    try:
        async with asyncio.timeout(config.timeout_s):
            response = await client.post(f"{config.base_url.rstrip('/')}/chat/completions", json=body)
    except TimeoutError:
        raise _Transient(f"no answer came within {config.timeout_s:g} s (`timeout_s`)") from None
    except httpx.HTTPError as error:
        raise _Transient(f"of {type(error).__name__} ({_without_key(str(error), config)})") from None
    told = f"it answered {response.status_code}: {_without_key(response.text, config)}"
    if response.status_code in _TRANSIENT or response.status_code >= 500:
        raise _Transient(told, _retry_after(response.headers.get("retry-after")))
    if response.status_code in _ASKED_WRONGLY or response.is_redirect:
        raise BadInput(
            f"{config.base_url}: {told}. Check the judge's base_url and model ({config.model}), and the key in the "
            f"environment variable that api_key_env names ({config.api_key_env or 'none is sent'})."
        )
    if response.status_code >= 400:
        return Refusal(told)
    return _answer(response, told)


def _answer(response: Any, told: str) -> Answer:
    try:
        content = response.json()
        text = content["choices"][0]["message"]["content"]
        usage = content.get("usage") or {}
        read, written = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _Transient(f"{told}, which is no chat completion with a choice") from None
    return Answer(text if isinstance(text, str) else "", read, written)


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, of a Retry-After header (RFC 9110, section 10.2.3): a number or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _key(config: JudgeReward) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise BadInput(
            f"The environment variable {config.api_key_env}, which the judge's `api_key_env` names, is not set. Put "
            "the key in it, or leave `api_key_env` out where the endpoint needs none."
        )
    if not (key.isascii() and key.isprintable()):
        raise BadInput(
            f"The environment variable {config.api_key_env} holds no key: it has characters no header may have."
        )
    return key


def _without_key(text: str, config: JudgeReward) -> str:
    """The beginning of what an endpoint says; some repeat the key they were given."""
    key = _key(config)
    return " ".join((text.replace(key, "***") if key else text).split())[:_TOLD]
