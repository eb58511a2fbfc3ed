"""vLLM as the stages use it: sample completions, and read log-probabilities of texts."""

import gc
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Protocol, Self

from pco.config.run import Engine, Generate
from pco.models.protocols import Tokenizer
from pco.models.rendering import Rendered

_SAMPLED_TOKENS = "vllm:generation_tokens"  # a metric of vLLM's
_METER_EVERY_S = 0.5
_UNFINISHED = 0.99  # of all requests, at most, for as long as none is known to be finished


@dataclass(frozen=True)
class Request:
    """One completion to sample."""

    prompt_id: str
    sample: int
    prompt: Rendered
    seed: int
    greedy: bool = False


@dataclass(frozen=True)
class Completion:
    """One sampled completion; `text` is what `token_ids` decode to, so what is scored is what is trained on."""

    request: Request
    text: str
    token_ids: list[int]
    logprob: float
    finish_reason: str


class _Logprob(Protocol):
    logprob: float


class _CompletionOutput(Protocol):
    """What this project reads of vLLM's CompletionOutput."""

    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[Mapping[int, _Logprob]]
    finish_reason: str
    stop_reason: int | str | None


class _RequestOutput(Protocol):
    """What this project reads of vLLM's RequestOutput."""

    outputs: Sequence[_CompletionOutput]


class Meter:
    """Tells how far requests are that are completed together, while the block under it runs.

    Finished ones count whole, the others by the tokens that `tokens` says were sampled, as if each had `expected` of
    them; together never all before all are finished.
    """

    def __init__(
        self, total: int, expected: float, tokens: Callable[[], float], on_done: Callable[[float], None]
    ) -> None:
        self._total, self._expected, self._tokens, self._on_done = total, expected, tokens, on_done
        self._finished, self._told, self._before = 0, 0.0, tokens()
        self._lock, self._ended = Lock(), Event()
        self._watch = Thread(target=self._watched, daemon=True)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    def finish(self, count: int) -> None:
        """So many more requests are finished."""
        with self._lock:
            self._finished += count
            self._tell()

    def _watched(self) -> None:
        while not self._ended.wait(_METER_EVERY_S):
            with self._lock:
                self._tell()

    def _tell(self) -> None:
        by_tokens = (self._tokens() - self._before) / self._expected
        done = max(self._finished, min(by_tokens, _UNFINISHED * self._total))
        if done > self._told:
            self._on_done(done - self._told)
            self._told = done


class Sampler:
    """One model in one engine. vLLM changes its process for good, so a process holds only one Sampler."""

    def __init__(self, model: Path, engine: Engine) -> None:
        import torch
        from vllm import LLM

        on_gpu = torch.cuda.is_available()
        device: dict[str, object] = {"gpu_memory_utilization": engine.gpu_memory_utilization}
        if not on_gpu:
            # Without a figure vLLM asks for nearly all of a CPU node's memory. Compiling costs more than it gains. A
            # prompt that is prefilled in two chunks rewinds its seeded generator, which CPU generators cannot do.
            device = {
                "kv_cache_memory_bytes": int(engine.kv_cache_gib * 2**30),
                "enforce_eager": True,
                "enable_chunked_prefill": False,
            }
        self._llm = LLM(
            str(model),
            dtype=engine.dtype,
            max_model_len=engine.max_model_len,
            tensor_parallel_size=engine.tensor_parallel,
            enable_prefix_caching=True,
            disable_log_stats=False,  # `_tokens` reads them
            generation_config="vllm",  # the config decides how to sample, not the model folder
            **device,
        )
        self._tokenizer: Tokenizer = self._llm.get_tokenizer()

    def complete(
        self, requests: list[Request], generate: Generate, *, expected_tokens: float, on_done: Callable[[float], None]
    ) -> list[Completion]:
        """Complete every request, in order.

        `on_done` is told from time to time how many more completions are done. All are sampled at once and end
        together, so one that is not finished counts in part, by its tokens of the `expected_tokens` of a completion.
        """
        prompts = [{"prompt_token_ids": request.prompt.token_ids} for request in requests]
        params = [_params(request, generate) for request in requests]
        with Meter(len(requests), expected_tokens, self._tokens, on_done) as meter:
            outputs = self._llm.generate(prompts, params, use_tqdm=_bar(meter.finish))
        return [self._completion(request, output) for request, output in zip(requests, outputs, strict=True)]

    def _tokens(self) -> float:
        """How many tokens the engine has sampled so far."""
        counters = (metric for metric in self._llm.get_metrics() if metric.name == _SAMPLED_TOKENS)
        return float(sum(counter.value for counter in counters))

    def _completion(self, request: Request, output: _RequestOutput) -> Completion:
        sampled = output.outputs[0]
        token_ids = list(sampled.token_ids)
        logprobs = [step[token].logprob for step, token in zip(sampled.logprobs, token_ids, strict=True)]
        if isinstance(sampled.stop_reason, str):
            token_ids = self._before_stop_string(token_ids, sampled.text)
        # Not sampled.text: it leaves out a character of which the last token holds only a part.
        text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
        return Completion(request, text, token_ids, sum(logprobs[: len(token_ids)]), sampled.finish_reason)

    def _before_stop_string(self, token_ids: list[int], text: str) -> list[int]:
        """The tokens that lie wholly before the stop string; a token that reaches into it is left out."""
        for count in range(len(token_ids), 0, -1):
            if len(self._tokenizer.decode(token_ids[:count], skip_special_tokens=True)) <= len(text):
                return token_ids[:count]
        return []

    @property
    def context(self) -> int:
        """How many tokens the engine can read and write of one text."""
        return int(self._llm.model_config.max_model_len)

    def text_logprobs(self, texts: list[str]) -> Iterator[tuple[float, int]]:
        """For each text: the sum of its tokens' log-probabilities (nats) after the first token, and their number."""
        encoded = [self._tokenizer(text)["input_ids"] for text in texts]
        logprobs = self.logprobs([(ids[:1], ids[1:]) for ids in encoded])
        yield from zip(logprobs, (len(ids) - 1 for ids in encoded), strict=True)

    def logprobs(self, texts: Sequence[tuple[list[int], list[int]]]) -> Iterator[float]:
        """For each prompt (a token at least) and completion: the completion's log-probability, nats.

        One token of the context must be left over, because vLLM always generates at least one.
        """
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        prompts = [{"prompt_token_ids": prompt + completion} for prompt, completion in texts]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        for (prompt, completion), output in zip(texts, outputs, strict=True):
            steps = zip(output.prompt_logprobs[len(prompt) :], completion, strict=True)
            yield sum(step[token].logprob for step, token in steps)


def free_memory() -> None:
    """Free the GPU memory of an engine that is no longer referred to."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _params(request: Request, generate: Generate) -> object:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0.0 if request.greedy else generate.temperature,
        top_p=1.0 if request.greedy else generate.top_p,
        top_k=0 if request.greedy else generate.top_k,
        seed=request.seed,
        min_tokens=generate.min_tokens,
        max_tokens=generate.max_tokens,
        stop=generate.stop or None,
        logprobs=0,  # of the sampled token alone
    )


def _bar(on_finished: Callable[[int], None]) -> Callable[..., object]:
    """A silent progress bar for vLLM that passes on how many requests each engine step finished."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def update(self, n: float | None = 1) -> object:
            on_finished(int(n or 0))
            return super().update(n)

    def start(*args: object, **kwargs: Any) -> object:
        if args:  # a bar around the adding of requests, which takes no time
            return args[0]
        return Bar(**kwargs, file=io.StringIO())

    return start
