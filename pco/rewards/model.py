"""A learned reward: one logit of a Hugging Face sequence classification model.

Each candidate becomes one text as the reward model's own tokenizer and chat template write it. Texts are padded on the
right and masked, so that a score does not depend on the other texts of its batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from data import prompts
from data.errors import BadInput
from data.prompts import Prompt
from data.rows import Message
from pco.config.reward import ModelReward
from pco.models import adapters, hub, weights
from pco.models.hub import Found
from pco.models.protocols import Classifier, ModelConfig, Tokenizer
from pco.models.rendering import dialogue, load_tokenizer, writes_date
from pco.rewards import pooling
from pco.rewards.scores import Candidate, Candidates, Score, Scorer

TOO_LONG = "too long for the reward model"

Tokens = list[int]


@dataclass(frozen=True)
class _Loaded:
    model: Classifier | None  # None where vLLM has it
    pad: int | None  # as the model's config has it
    tokenizer: Tokenizer
    limit: int  # tokens
    config: ModelReward
    pooled: Callable[[Sequence[Tokens]], list[float]] | None = None  # vLLM's logit of each text


def found(config: ModelReward) -> Found:
    """Where the model's files lie; a hub id is fetched."""
    return hub.find(config.model, config.revision, task="SEQ_CLS", key="reward.model")


def check(config: ModelReward) -> None:
    """Refuse a model that cannot score, without loading its weights.

    Raises BadInput.
    """
    files = found(config)
    settings, tokenizer = _checked_settings(files), _checked_tokenizer(files, config)
    _check_head(files, settings)
    weights.check_embedding(files.folder, tokenizer, "reward.model")
    if config.backend == "vllm":
        _check_pooling(files, settings, longest_text(settings, tokenizer, config), config)


def _checked_settings(files: Found) -> ModelConfig:
    from transformers import AutoConfig

    path = files.folder
    try:
        settings: ModelConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{path / 'config.json'}: not the config of a known model ({error}).") from error
    names = settings.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in names):
        if files.adapter is not None:  # it brings the head, of one label
            return settings
        raise BadInput(
            f"{path}: is {', '.join(names) or 'of unknown architecture'}; a reward model is a sequence classifier "
            "(...ForSequenceClassification) with one label (`reward.model`)."
        )
    if settings.num_labels != 1:
        raise BadInput(
            f"{path}: has {settings.num_labels} labels; a reward model has one, whose logit is the reward "
            "(`reward.model`)."
        )
    return settings


def _check_head(files: Found, settings: ModelConfig) -> None:
    """The weights of the head, told by the headers: a model saved without them would get random ones."""
    import torch
    from transformers import AutoModelForSequenceClassification

    path = files.folder
    try:
        with torch.device("meta"):  # takes no memory
            model = AutoModelForSequenceClassification.from_config(settings)
    except ValueError as error:
        raise BadInput(f"{path / 'config.json'}: not the config of a known sequence classifier ({error}).") from error
    head = [name for name in model.state_dict() if not name.startswith(f"{model.base_model_prefix}.")]
    held = set(weights.tensors(path)) | adapters.replaced(files.adapter)
    if missing := sorted(set(head) - held):
        raise BadInput(
            f"{files.adapter or path}: its weights lack its head ({', '.join(missing[:3])}), so its rewards would be "
            "random (`reward.model`). Save the whole sequence classifier, not its body; to train a head: `pco reward "
            "train`."
        )


def _check_pooling(files: Found, settings: ModelConfig, limit: int, config: ModelReward) -> None:
    reason = _why_not_pooled(files, settings, limit, config)
    if reason is not None:
        raise BadInput(
            f"{config.model}: vLLM cannot score with it: {reason}. Or set `backend: transformers` (`reward.model`)."
        )


def _why_not_pooled(files: Found, settings: ModelConfig, limit: int, config: ModelReward) -> str | None:
    if files.adapter is not None:
        return "it is an adapter, which is merged in memory, and vLLM reads whole models from disk"
    return pooling.why_not(files.folder, settings, limit, config)


def _checked_tokenizer(files: Found, config: ModelReward) -> Tokenizer:
    path = files.tokenizer
    tokenizer = load_tokenizer(path)
    if config.system is not None and not tokenizer.chat_template:
        raise BadInput(f"{path}: its tokenizer has no chat template, and only a template can hold `reward.system`.")
    rendered(tokenizer, "a prompt", "a completion", config)
    return tokenizer


def reads(config: ModelReward, prompt: Prompt, completion: str) -> tuple[Tokenizer, Tokens]:
    """The reward model's tokenizer, and the tokens that it reads of a prompt and a completion.

    Raises BadInput.
    """
    tokenizer = _checked_tokenizer(found(config), config)
    return tokenizer, rendered(tokenizer, prompt, completion, config)


def is_dated(config: ModelReward) -> bool:
    """Whether its chat template writes today's date and is told no other.

    Raises BadInput.
    """
    if config.template_date is not None:
        return False
    tokenizer = load_tokenizer(found(config).tokenizer)
    messages = prompts.as_messages("a prompt", config.system)
    return bool(tokenizer.chat_template) and writes_date(tokenizer, [messages])


def scorer(config: ModelReward) -> Scorer:
    """Loads the model, on a GPU if there is one.

    Raises BadInput as `check` does, and when the weights are not those of such a model.
    """
    loaded = load(config)
    return lambda candidates: _score(loaded, candidates)


def load(config: ModelReward) -> _Loaded:
    """The model with its tokenizer, on the backend of the config; raises as `scorer` does."""
    files = found(config)
    settings, tokenizer = _checked_settings(files), _checked_tokenizer(files, config)
    pad, limit = settings.get_text_config().pad_token_id, longest_text(settings, tokenizer, config)
    if config.backend == "vllm":
        _check_pooling(files, settings, limit, config)
    if _is_pooled(files, settings, limit, config):
        return _Loaded(None, pad, tokenizer, limit, config, pooling.logits(files.folder, settings, limit, config))
    return _Loaded(_network(files, config), pad, tokenizer, limit, config)


def _is_pooled(files: Found, settings: ModelConfig, limit: int, config: ModelReward) -> bool:
    """Whether vLLM scores. On a GPU `auto` does not use it: the policy's engine may still hold memory."""
    import torch

    if config.backend == "auto":
        return not torch.cuda.is_available() and _why_not_pooled(files, settings, limit, config) is None
    return config.backend == "vllm"


def _network(files: Found, config: ModelReward) -> Classifier:
    import torch

    dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
    if files.adapter is None:
        model = _whole(files.folder, dtype)
    else:
        model = adapters.merged(files.folder, files.adapter, task="SEQ_CLS", dtype=dtype)
    classifier: Classifier = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return classifier


def _whole(path: Path, dtype: Any) -> Any:
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, loading_info = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadInput(f"{path}: could not be loaded as a reward model ({error}).") from error
    missing = sorted(loading_info["missing_keys"])
    if missing:
        raise BadInput(f"{path}: its weights lack {', '.join(missing[:3])}: not a trained reward model.")
    return model


def longest_text(settings: ModelConfig, tokenizer: Tokenizer, config: ModelReward) -> int:
    """The longest text in tokens that the tokenizer, the positions and the config allow."""
    positions = getattr(settings.get_text_config(), "max_position_embeddings", None)
    return int(min(limit for limit in (tokenizer.model_max_length, positions, config.max_tokens) if limit is not None))


def _score(loaded: _Loaded, candidates: Candidates) -> list[Score]:
    texts = [rendered(loaded.tokenizer, _asked(row), row["completion"], loaded.config) for row in candidates]
    readable = [i for i, text in enumerate(texts) if len(text) <= loaded.limit]
    scores = [Score(math.nan, why_none=TOO_LONG)] * len(texts)
    for i, value in zip(readable, _values(loaded, [texts[i] for i in readable]), strict=True):
        scores[i] = Score(value)
    return scores


def _asked(row: Candidate) -> Prompt:
    return row.get("messages") or row["source_prompt"]


def _values(loaded: _Loaded, texts: list[Tokens]) -> list[float]:
    if loaded.pooled is not None:
        return loaded.pooled(texts)
    values = [math.nan] * len(texts)
    for batch in batches([len(text) for text in texts], loaded.config.max_tokens_per_batch):
        for i, value in zip(batch, logits(loaded, [texts[i] for i in batch]), strict=True):
            values[i] = value
    return values


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of texts of similar length, the longest first; a batch has at most `budget` tokens with padding.

    A text that is longer than the budget has a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        count = max(1, budget // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]


def logits(loaded: _Loaded, texts: list[Tokens]) -> list[float]:
    """The reward of each text.

    A model whose config has no padding token (many Llamas) reads its reward at the last token of one text and refuses
    two texts. Then a token that no text of the batch holds is used, so that each text is read at its last token.
    """
    assert loaded.model is not None
    settings = loaded.model.config.get_text_config()
    if loaded.pad is None:
        used = set(chain.from_iterable(texts))
        unused = next(token for token in range(len(used) + 1) if token not in used)
        if len(texts) > 1 and unused >= settings.vocab_size:  # no token is left; single texts need no padding
            return [logits(loaded, [text])[0] for text in texts]
        settings.pad_token_id = unused if len(texts) > 1 else None
    return _forward(loaded.model, texts, settings.pad_token_id or 0)


def _forward(model: Classifier, texts: list[Tokens], pad: int) -> list[float]:
    import torch

    width = max(map(len, texts))
    ids = torch.tensor([text + [pad] * (width - len(text)) for text in texts], device=model.device)
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask).logits
    return [float(value) for value in logits.float().squeeze(-1).tolist()]


def rendered(tokenizer: Tokenizer, prompt: Prompt, completion: str, config: ModelReward) -> Tokens:
    """Prompt and completion as the tokens that the reward model reads, in training as in scoring.

    A chat template writes its own special tokens, so none are added to it; without one, prompt and completion are
    joined as plain text with the special tokens that the tokenizer puts around any text. A text that does not end in a
    special token (white space after it aside) gets the end-of-text token.

    Raises BadInput for a conversation without a chat template, and where the template refuses it.
    """
    if tokenizer.chat_template:
        messages = prompts.as_messages(prompt, config.system)
        answered: list[Message] = [*messages, {"role": "assistant", "content": completion}]
        tokens = _chat(tokenizer, answered, config.template_date)
    elif not isinstance(prompt, str):
        raise BadInput(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template, so it cannot read a prompt of "
            f"{len(prompt)} messages (`reward.model`). Give the reward model's tokenizer its template, or import the "
            "prompts with `pco data import --turns single`."
        )
    else:
        tokens = list(tokenizer(prompt + completion, truncation=False, verbose=False)["input_ids"])
    while tokenizer.bos_token_id is not None and tokens[:2] == [tokenizer.bos_token_id] * 2:
        tokens = tokens[1:]
    if config.append_eos and tokenizer.eos_token_id is not None and not _is_ended(tokenizer, tokens):
        tokens = [*tokens, tokenizer.eos_token_id]
    return tokens


def _chat(tokenizer: Tokenizer, messages: list[Message], today: str | None) -> Tokens:
    text = dialogue(tokenizer, messages, system="reward.system", today=today)
    return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])


def _is_ended(tokenizer: Tokenizer, tokens: Tokens) -> bool:
    """Whether the last token that is not white space is a special one, such as the end of a turn."""
    last = next((token for token in reversed(tokens) if tokenizer.decode([token]).strip()), None)
    if last is None:
        return False
    added = tokenizer.added_tokens_decoder
    return last in tokenizer.all_special_ids or (last in added and added[last].special)
