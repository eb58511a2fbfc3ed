"""What this project uses of a Hugging Face tokenizer, config and model, as types."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from data.rows import Message

if TYPE_CHECKING:
    import torch


class AddedToken(Protocol):
    """A token that was added to a vocabulary."""

    special: bool


class Tokenizer(Protocol):
    """Text to token ids and back; without a chat template `chat_template` is None."""

    name_or_path: str
    chat_template: str | dict[str, str] | None  # several by their names
    model_max_length: int
    bos_token: str | None
    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    pad_token_id: int | None
    all_special_ids: Sequence[int]
    added_tokens_decoder: Mapping[int, AddedToken]

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, truncation: bool = False, verbose: bool = True
    ) -> Mapping[Literal["input_ids"], list[int]]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...

    def apply_chat_template(
        self,
        conversation: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        tokenize: Literal[False],
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **of_template: Callable[[str], str],
    ) -> str: ...

    def save_pretrained(self, save_directory: Path) -> object: ...


class TextConfig(Protocol):
    """The config of a language model, or of the language part of a larger one."""

    pad_token_id: int | None
    vocab_size: int


class ModelConfig(Protocol):
    """The config of a model folder. The sizes are those of the families that vLLM scores with."""

    architectures: Sequence[str] | None
    num_labels: int
    dtype: object  # a torch.dtype, or None where the config names none
    pad_token_id: int | None
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    def get_text_config(self) -> TextConfig: ...


class Model(Protocol):
    """A loaded model."""

    config: ModelConfig
    base_model_prefix: str

    @property
    def device(self) -> "torch.device": ...

    def modules(self) -> "Iterable[torch.nn.Module]": ...


class ClassifierOutput(Protocol):
    """What a classifier returns: one logit a label."""

    logits: "torch.Tensor"


class Classifier(Model, Protocol):
    """A sequence classification model, such as a reward model."""

    def __call__(self, *, input_ids: "torch.Tensor", attention_mask: "torch.Tensor") -> ClassifierOutput: ...
