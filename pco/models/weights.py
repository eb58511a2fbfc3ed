"""The tensors of a model folder, read from the headers of its safetensors files; no weights are loaded."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import BadInput

INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 100 * 2**20  # as the format allows


@dataclass(frozen=True)
class Tensor:
    """Where a tensor's bytes lie, and its shape."""

    path: Path
    shape: list[int]
    begin: int  # in the file
    end: int


def parameters(model: Path) -> int:
    """The number of parameters in a model folder."""
    return sum(math.prod(tensor.shape) for tensor in tensors(model).values())


def tensors(model: Path) -> dict[str, Tensor]:
    """The tensors of a model folder by name, from the headers alone."""
    by_name: dict[str, Tensor] = {}
    for path in _weight_files(model):
        by_name |= header(path)
    return by_name


# What most families call the table of their tokens' embeddings, after the name of the part that holds it.
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")


def embedding_rows(model: Path) -> int | None:
    """How many tokens the weights hold an embedding of; None where no tensor has a name known for it."""
    for name, tensor in sorted(tensors(model).items()):
        if name.endswith(tuple(f"{known}.weight" for known in _EMBEDDINGS)) and len(tensor.shape) == 2:
            return tensor.shape[0]
    return None


def check_not_quantised(model: Path, key: str) -> None:
    """Raise BadInput where a model that is to be trained has quantised weights, by its config."""
    try:
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        settings = {**config, **config.get("text_config", {})}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"{model / 'config.json'}: not a model's config ({error!r}).") from error
    quantised = settings.get("quantization_config") or settings.get("compression_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise BadInput(
            f"{model / 'config.json'}: its weights are quantised ({method}), and those cannot be trained (`{key}`). "
            "Name the model that they were made from; a LoRA of it (`train.lora`) saves memory."
        )


def check_embedding(model: Path, tokenizer: Any, key: str) -> None:
    """Raise BadInput where the tokenizer may write a token that the weights have no embedding of.

    A special token that plays no part (a placeholder for pictures, say) is none that text has.
    """
    if (rows := embedding_rows(model)) is None:
        return
    roles = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    idle = set(tokenizer.all_special_ids) - roles
    idle |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special} - roles
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    if lost := sorted(set(beyond) - idle):
        raise BadInput(no_embedding(model, rows, f"{beyond[lost[0]]!r} ({lost[0]})", key))


def no_embedding(model: Path, rows: int, token: str, key: str) -> str:
    """What to say of a token beyond the embeddings."""
    return (
        f"{model}: its tokenizer has the token {token}, but its weights hold embeddings of {rows} tokens alone "
        f"(`{key}`). After tokens are added call `model.resize_token_embeddings(len(tokenizer))`, train what is new, "
        "and save model and tokenizer; or take the tokenizer that the weights came with."
    )


def _weight_files(model: Path) -> list[Path]:
    """The files that the index names. The same weights may lie beside them under other names (`consolidated`)."""
    try:
        index = json.loads((model / INDEX).read_text(encoding="utf-8"))
        return [model / name for name in sorted(set(index["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there is no index, or it is damaged
        return sorted(model.glob("*.safetensors"))


def header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, {} where it is damaged.

    Its header is a length in 8 bytes, then JSON; offsets count from its end (the safetensors format).
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, _LONGEST_HEADER)))
        header.pop("__metadata__", None)
        by_name = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            by_name[name] = Tensor(path, entry["shape"], 8 + size + begin, 8 + size + end)
        return by_name
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # damaged: the stage itself reports it in more detail


def save(model: Any, folder: Path) -> None:
    """Write a model of transformers into a folder; raises OSError where the system refuses it."""
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # its name for what the system refused, such as a full disk
        raise OSError(0, str(error)) from error


_BLOCK = re.compile(r"\.(\d+)\.")


def block_of(name: str) -> int | None:
    """Which of a model's blocks, counted from 0, a parameter of this name is in; None for one outside of them."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else None
