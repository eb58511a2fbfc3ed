"""An OpenAI-compatible endpoint (`/chat/completions`): concurrent requests, with retries where they can help."""

import asyncio
import ipaddress
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from data.errors import BadInput, PCOError, StageFailed
from pco.config.reward import JudgeReward
from pco.rewards.scores import Counts

if TYPE_CHECKING:
    import httpx

FIRST_WAIT_S = 1.0  # before the first retry; it doubles for each further retry
_LONGEST_WAIT_S = 120.0  # also where the endpoint asks for more: a longer silence looks like a stage that hangs
_QUOTED = 300  # characters of an endpoint's error that are quoted

_PERMANENT = (401, 402, 403, 404, 405)  # wrong key, credit, address or model: no request can succeed
_TRANSIENT = (408, 409, 425, 429)  # and all from 500


@dataclass(frozen=True)
class Reply:
    """The model's text, and the tokens of question and text by its own count (0 where the endpoint gives none)."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Refusal:
    """Why the endpoint refuses this question, such as one that is too long for its model."""

    reason: str

    def __str__(self) -> str:
        return self.reason


OnReply = Callable[[str, Reply | Refusal, int], None]
MayAsk = Callable[[str], bool]


class _Transient(Exception):
    """A request that failed and may succeed later, after the wait that the endpoint asks for."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def check(config: JudgeReward) -> None:
    """Raise BadInput where the key's environment variable is not set. Sends no request."""
    _key(config)


def request(question: str, config: JudgeReward) -> dict[str, object]:
    """The body of a request: everything that decides a reply."""
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
    on_reply: OnReply,
    counts: Counts,
    may_ask: MayAsk = lambda _: True,
) -> None:
    """Ask all questions; calls `on_reply` for each reply, with how many are left. Counts `requests` and `retries`.

    `may_ask` is called before a question is first sent. One that it denies is left out; those under way are awaited.

    Raises BadInput when no request can succeed (key, address, model), StageFailed when a request failed too often.
    `on_reply` was called for all replies before that.
    """
    try:
        asyncio.run(_ask_all(questions, config, on_reply, counts, may_ask))
    except BaseExceptionGroup as group:  # the first failure ended the others
        raise next((error for error in group.exceptions if isinstance(error, PCOError)), group) from None


async def _ask_all(
    questions: Sequence[str],
    config: JudgeReward,
    on_reply: OnReply,
    counts: Counts,
    may_ask: MayAsk,
) -> None:
    import httpx

    key = _key(config)
    left = set(questions)
    free, rate_limit = asyncio.Semaphore(config.concurrency), _RateLimit(config)
    settings: dict[str, Any] = {
        "headers": {"Authorization": f"Bearer {key}"} if key else {},
        "limits": httpx.Limits(max_connections=config.concurrency),
        "timeout": config.timeout_s,  # of each step; `_ask_once` applies it to the whole request
    }
    if is_loopback(config.base_url):  # whatever proxy the environment names
        settings["mounts"] = {f"all://{urlsplit(config.base_url).netloc}": None}
    async with httpx.AsyncClient(**settings) as client, asyncio.TaskGroup() as group:

        async def ask_when_free(question: str) -> None:
            async with free:
                if not may_ask(question):
                    return
                reply = await _ask_with_retries(client, question, config, rate_limit, counts)
            left.discard(question)
            on_reply(question, reply, len(left))

        for question in questions:
            group.create_task(ask_when_free(question))


class _RateLimit:
    """Starts requests no faster than the config allows."""

    def __init__(self, config: JudgeReward) -> None:
        self._spacing_s = 60 / config.requests_per_minute if config.requests_per_minute else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        now = time.monotonic()
        begin = max(now, self._next)
        self._next = begin + self._spacing_s
        await asyncio.sleep(begin - now)


async def _ask_with_retries(
    client: "httpx.AsyncClient", question: str, config: JudgeReward, rate_limit: _RateLimit, counts: Counts
) -> Reply | Refusal:
    body = request(question, config)
    for attempt in range(config.retries + 1):
        await rate_limit.wait()
        counts["requests"] += 1
        counts["retries"] += attempt > 0
        try:
            return await _ask_once(client, body, config)
        except _Transient as error:
            failed = error
        if attempt < config.retries:
            # Without a line of output a slow endpoint looks like a stage that hangs.
            print(f"judge: asks again, because {failed}", flush=True)
            await asyncio.sleep(_wait_s(attempt, failed))
    raise StageFailed(
        f"{config.base_url}: a request failed {config.retries + 1} times, at last because {failed}. Answers so far are "
        "kept. Make sure that the endpoint works, or raise the judge's retries or timeout_s, then resume."
    )


def _wait_s(attempt: int, failed: _Transient) -> float:
    """The wait that the endpoint asks for; else a wait that doubles, with jitter so that retries do not coincide."""
    wait_s = FIRST_WAIT_S * 2**attempt * random.uniform(0.5, 1) if failed.wait_s is None else failed.wait_s
    return min(wait_s, _LONGEST_WAIT_S)


async def _ask_once(client: "httpx.AsyncClient", body: dict[str, object], config: JudgeReward) -> Reply | Refusal:
    import httpx

    try:
        async with asyncio.timeout(config.timeout_s):
            response = await client.post(f"{config.base_url.rstrip('/')}/chat/completions", json=body)
    except TimeoutError:
        raise _Transient(f"no answer came within {config.timeout_s:g} s (`timeout_s`)") from None
    except httpx.HTTPError as error:
        raise _Transient(f"of {type(error).__name__} ({_without_key(str(error), config)})") from None
    quote = f"it answered {response.status_code}: {_without_key(response.text, config)}"
    if response.status_code in _TRANSIENT or response.status_code >= 500:
        raise _Transient(quote, _retry_after(response.headers.get("retry-after")))
    if response.status_code in _PERMANENT or response.is_redirect:
        raise BadInput(
            f"{config.base_url}: {quote}. Check the judge's base_url and model ({config.model}), and the key in the "
            f"environment variable that api_key_env names ({config.api_key_env or 'none is sent'})."
        )
    if response.status_code >= 400:
        return Refusal(quote)
    return _reply(response, quote)


def _reply(response: "httpx.Response", quote: str) -> Reply:
    try:
        content = response.json()
        text = content["choices"][0]["message"]["content"]
        usage = content.get("usage") or {}
        read, written = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise _Transient(f"{quote}, which is no chat completion with a choice") from None
    return Reply(text if isinstance(text, str) else "", read, written)


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110, section 10.2.3), which holds a number or a date."""
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


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine itself."""
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
    """The beginning of an endpoint's error, without the key, which some endpoints repeat."""
    key = _key(config)
    return " ".join((text.replace(key, "***") if key else text).split())[:_QUOTED]
