"""A reward model in vLLM's pooling mode: the same tokens and the same logit as with transformers, but faster."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pco.config.reward import ModelReward
from pco.models.protocols import ModelConfig

# Compared with transformers by a test (the first) or by hand. Their head is one matrix, read at the last token.
_ARCHITECTURES = (
    "LlamaForSequenceClassification",
    "MistralForSequenceClassification",
    "Qwen2ForSequenceClassification",
    "Qwen3ForSequenceClassification",
)
_HEAD = "score.weight"
_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # that vLLM's attention takes on a CPU


def why_not(folder: Path, settings: ModelConfig, limit: int, config: ModelReward) -> str | None:
    """Why vLLM cannot score with a model of these `settings` and texts of up to `limit` tokens; None if it can."""
    architecture = (settings.architectures or [""])[0]
    if architecture not in _ARCHITECTURES:
        return f"it is {architecture}, and only {', '.join(_ARCHITECTURES)} are known to give the same scores there"
    size = _head_size(settings)
    if size not in _HEAD_SIZES:
        return f"its attention heads have size {size}; vLLM takes {', '.join(map(str, _HEAD_SIZES))}"
    if limit > config.max_tokens_per_batch:
        return f"a text may have {limit} tokens and a batch {config.max_tokens_per_batch}; set max_tokens to no more"
    if _dtype(settings, config) is None:
        return "its config does not say its number format; set dtype"
    if not _has_head(folder):
        return f"its weights have no {_HEAD}"
    return None


def _head_size(settings: ModelConfig) -> int:
    return int(getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads)


def _dtype(settings: ModelConfig, config: ModelReward) -> str | None:
    """The number format; for `auto` that of the files, because vLLM's own `auto` shortens float32."""
    if config.dtype != "auto":
        return config.dtype
    return None if settings.dtype is None else str(settings.dtype).removeprefix("torch.")


def _has_head(folder: Path) -> bool:
    """Whether the weights have a head; without one vLLM would score with uninitialised memory."""
    from safetensors import safe_open

    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            if _HEAD in file.keys():  # noqa: SIM118
                return True
    return False


def logits(
    folder: Path, settings: ModelConfig, limit: int, config: ModelReward
) -> Callable[[Sequence[list[int]]], list[float]]:
    """Load the model into an engine; returns a function from texts to their logits."""
    import torch
    from vllm import LLM, PoolingParams

    dtype = str(_dtype(settings, config))
    device: dict[str, object] = {}
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
        prompts = [{"prompt_token_ids": _without_padding(text, settings.pad_token_id)} for text in texts]
        outputs = llm.classify(prompts, pooling_params=raw, use_tqdm=False)
        return [float(output.outputs.probs[0]) for output in outputs]

    return score


def _without_padding(text: list[int], pad: int | None) -> list[int]:
    """The text up to its last token that is not padding, where transformers reads the reward."""
    end = len(text)
    while end > 1 and text[end - 1] == pad:
        end -= 1
    return text[:end]


def _cache_bytes(settings: ModelConfig, dtype: str, config: ModelReward) -> int:
    """Bytes of the keys and values of one batch, and a quarter more for blocks that are only partly full."""
    numbers = 2 * settings.num_hidden_layers * settings.num_key_value_heads * _head_size(settings)
    return int(1.25 * config.max_tokens_per_batch * numbers * (4 if dtype == "float32" else 2)) + 2**24
