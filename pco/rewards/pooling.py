"""A reward model in vLLM's pooling mode: the same tokens in and the same logit out as with transformers, faster."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pco.config.reward import ModelReward

# Held equal to transformers by a test (the first) or by hand; their head is one matrix, read at the last token.
_ARCHITECTURES = (
    "LlamaForSequenceClassification",
    "MistralForSequenceClassification",
    "Qwen2ForSequenceClassification",
    "Qwen3ForSequenceClassification",
)
_HEAD = "score.weight"
_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # that vLLM's attention takes on a CPU


def why_not(folder: Path, settings: Any, limit: int, config: ModelReward) -> str | None:
    """Why vLLM cannot score with a model of these `settings`, whose texts have up to `limit` tokens; None if it can."""
    found = settings.architectures[0]
    if found not in _ARCHITECTURES:
        return f"it is {found}, and only {', '.join(_ARCHITECTURES)} are known to score there as they should"
    if (size := _head_size(settings)) not in _HEAD_SIZES:
        return f"its attention heads have size {size}; vLLM takes {', '.join(map(str, _HEAD_SIZES))}"
    if limit > config.max_tokens_per_batch:
        return f"a text may have {limit} tokens and a batch {config.max_tokens_per_batch}; set max_tokens to no more"
    if _dtype(settings, config) is None:
        return "its config does not say its number format; set dtype"
    if not _has_head(folder):
        return f"its weights have no {_HEAD}"
    return None


def _head_size(settings: Any) -> int:
    return int(getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads)


def _dtype(settings: Any, config: ModelReward) -> str | None:
    """That of the files for `auto`: vLLM's own `auto` makes float32 a shorter format."""
    if config.dtype != "auto":
        return config.dtype
    return None if settings.dtype is None else str(settings.dtype).removeprefix("torch.")


def _has_head(folder: Path) -> bool:
    """Where the weights lack a head, vLLM would score with whatever the memory holds."""
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            if _HEAD in file.keys():  # noqa: SIM118
                return True
    return False


def logits(
    folder: Path, settings: Any, limit: int, config: ModelReward
) -> Callable[[Sequence[list[int]]], list[float]]:
    """Loads the model into an engine; the function gives each text's logit."""
    import torch
    from vllm import LLM, PoolingParams

    dtype = str(_dtype(settings, config))
    device: dict[str, Any] = {}
    if not torch.cuda.is_available():  # as for the policy: see engine.Sampler
        device = {"kv_cache_memory_bytes": _cache_bytes(settings, dtype, config), "enforce_eager": True}
    llm = LLM(
        str(folder),
        runner="pooling",
        dtype=dtype,
        max_model_len=limit,
        max_num_batched_tokens=config.max_tokens_per_batch,
        enable_chunked_prefill=False,
        enable_prefix_caching=False,
        **device,
    )
    raw = PoolingParams(use_activation=False)

    def score(texts: Sequence[list[int]]) -> list[float]:
        prompts = [{"prompt_token_ids": _read(text, settings.pad_token_id)} for text in texts]
        return [float(found.outputs.probs[0]) for found in llm.classify(prompts, pooling_params=raw, use_tqdm=False)]

    return score


def _read(text: list[int], pad: int | None) -> list[int]:
    """The text up to the token that transformers reads the reward at: the last that is not padding."""
    end = len(text)
    while end > 1 and text[end - 1] == pad:
        end -= 1
    return text[:end]


def _cache_bytes(settings: Any, dtype: str, config: ModelReward) -> int:
    """Keys and values of one batch, and some more for the blocks that texts only begin to fill."""
    numbers = 2 * settings.num_hidden_layers * settings.num_key_value_heads * _head_size(settings)
    return int(1.25 * config.max_tokens_per_batch * numbers * (4 if dtype == "float32" else 2)) + 2**24
