"""LoRA adapters as peft writes them: checked against the whole model that they change, and merged into it."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data import files
from data.errors import BadInput
from pco.models import weights
from pco.models.rendering import load_tokenizer

if TYPE_CHECKING:
    from peft import PeftConfig

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
Task = Literal["CAUSAL_LM", "SEQ_CLS"]  # peft's names of what a model does

_PREFIX = "base_model.model."  # peft's, before the name of each of the base's tensors


@dataclass(frozen=True)
class Base:
    """The whole model that an adapter says it changes: a folder's absolute path or a hub id."""

    name: str
    revision: str | None


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, whatever lies beside it."""
    return files.exists(folder / CONFIG)


def base_of(folder: Path, key: str) -> Base:
    """What an adapter's config says of its base. `key` is the setting that names the adapter.

    Raises BadInput for a config that cannot be read, another kind of adapter than LoRA, or no base that is clear.
    """
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: could not be read as JSON ({error}). Copy or download the adapter again.") from error
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        kind = raw.get("peft_type") if isinstance(raw, dict) else None
        raise BadInput(f"{path}: is an adapter of type {kind!r}; only LoRA is merged into its base (`{key}`).")
    name = raw.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise BadInput(f"{path}: does not name its base model. Write its hub id or path as `base_model_name_or_path`.")
    if not Path(name).is_absolute() and files.exists(Path(name)):
        raise BadInput(
            f"{path}: `base_model_name_or_path` is {name!r}, which may be a hub id or the folder {Path(name).resolve()}"
            ". Write the folder's absolute path, or start pco in another folder."
        )
    return Base(name, raw.get("revision"))


def check(base: Path, adapter: Path, *, task: Task, key: str) -> None:
    """Refuse an adapter that does not fit its base, by configs and headers alone. `key` names the adapter.

    Raises BadInput.
    """
    config = _config(adapter)
    if config.task_type not in {None, task}:
        raise BadInput(f"{adapter / CONFIG}: is an adapter for {config.task_type}; `{key}` needs one for {task}.")
    held = {name: tuple(tensor.shape) for name, tensor in weights.header(adapter / WEIGHTS).items()}
    expected, embeddings, is_tied = _expected(base, config, adapter, task)
    _check_embeddings(held, embeddings, adapter=adapter, base=base, is_tied=is_tied)
    # peft saves whole embeddings with an adapter, where it was told to or believes them changed.
    known = expected | embeddings
    if unknown := sorted(name for name, shape in held.items() if known.get(name) != shape):
        name = unknown[0]
        there = f"{known[name]} in its base" if name in known else "nothing of that name in its base"
        raise BadInput(
            f"{adapter}: does not fit its base {base}: {len(unknown)} of its tensors, such as {name}, of shape "
            f"{held[name]}, for {there}. Name the model that it was trained on in {CONFIG} (`{key}`)."
        )
    if lost := sorted(set(expected) - set(held)):
        raise BadInput(
            f"{adapter / WEIGHTS}: lacks {len(lost)} tensors that its config asks for, such as {lost[0]}. Save the "
            f"adapter anew, or copy it again (`{key}`)."
        )


def replaced(adapter: Path | None) -> set[str]:
    """The names of the base's tensors that an adapter has whole; none where there is no adapter."""
    held = {} if adapter is None else weights.header(adapter / WEIGHTS)
    return {name.removeprefix(_PREFIX) for name in held}


def _config(adapter: Path) -> "PeftConfig":
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(adapter))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{adapter / CONFIG}: peft does not read it ({error}). Save the adapter anew.") from error


Shapes = dict[str, tuple[int, ...]]


def _expected(base: Path, config: "PeftConfig", adapter: Path, task: Task) -> tuple[Shapes, Shapes, bool]:
    """The tensors that such an adapter of this base has, the base's embeddings, and whether its head is tied to them.

    The model is made without memory for its weights.
    """
    import torch
    from peft import get_peft_model, get_peft_model_state_dict
    from transformers import AutoConfig

    auto, options = _loader(task)
    # The first values may be computed from the base's weights, which are not there.
    config.init_lora_weights = False
    try:
        settings = AutoConfig.from_pretrained(base, trust_remote_code=False, **options)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = auto.from_config(settings)
            layers = {"input": model.get_input_embeddings(), "output": model.get_output_embeddings()}
            embeddings = {
                f"{_PREFIX}{name}.weight": tuple(module.weight.shape)
                for name, module in model.named_modules()
                if any(module is layer for layer in layers.values())
            }
            state = get_peft_model_state_dict(get_peft_model(model, config), save_embedding_layers=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise BadInput(f"{adapter}: peft cannot apply it to its base {base} ({error}).") from error
    is_tied = layers["output"] is not None and bool(settings.get_text_config().tie_word_embeddings)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}, embeddings, is_tied


def _check_embeddings(held: Shapes, embeddings: Shapes, *, adapter: Path, base: Path, is_tied: bool) -> None:
    for embedding, shape in embeddings.items():
        if embedding in held and held[embedding] != shape:
            raise BadInput(
                f"{adapter}: holds {embedding.removeprefix(_PREFIX)} of {held[embedding][0]} tokens, and its base "
                f"{base} has {shape[0]}: the base was resized before the training. Resize it in the same way "
                f"(`resize_token_embeddings({held[embedding][0]})`), merge the adapter, and name the result."
            )
        module = embedding.removesuffix("weight")
        if is_tied and (changed := sorted(name for name in held if name.startswith(module))):
            raise BadInput(
                f"{adapter}: changes the embeddings ({changed[0]}), to which its base {base} ties its head. Merged, "
                "both would change alike, which is not the model that was trained. Untie the base "
                "(`tie_word_embeddings: false`, with a head of its own), merge the adapter, and name the result."
            )


def _loader(task: Task) -> tuple[Any, dict[str, int]]:
    """The class of transformers that loads such a model, and what it is told beside the model's own config."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if task == "CAUSAL_LM":
        return AutoModelForCausalLM, {}
    return AutoModelForSequenceClassification, {"num_labels": 1}  # which the base of a reward model need not say


def merged(base: Path, adapter: Path, *, task: Task, dtype: Any = "auto") -> Any:
    """The whole model, as transformers loads it, with the adapter's changes in its weights; on the CPU.

    Raises BadInput where the two cannot be loaded, or weights would not be finite.
    """
    from peft import PeftModel
    from transformers.utils import logging

    auto, options = _loader(task)
    logging.disable_progress_bar()
    try:
        model = auto.from_pretrained(base, dtype=dtype, trust_remote_code=False, **options)
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise BadInput(f"{adapter}: could not be merged into {base} ({error}).") from error


def write(base: Path, adapter: Path, tokenizer: Path, folder: Path) -> None:
    """Merge a policy's adapter into a model folder that appears whole or not at all, with the tokenizer of another."""
    model = merged(base, adapter, task="CAUSAL_LM")
    with files.atomic_folder(folder) as temporary:
        weights.save(model, temporary)
        load_tokenizer(tokenizer).save_pretrained(temporary)
