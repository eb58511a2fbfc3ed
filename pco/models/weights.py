"""The tensors of a model folder, read from the headers of its safetensors files; no weights are loaded."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

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
        by_name |= _header(path)
    return by_name


def _weight_files(model: Path) -> list[Path]:
    """The files that the index names. The same weights may lie beside them under other names (`consolidated`)."""
    try:
        index = json.loads((model / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return [model / name for name in sorted(set(index["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there is no index, or it is damaged
        return sorted(model.glob("*.safetensors"))


def _header(path: Path) -> dict[str, Tensor]:
    """The header: its length in 8 bytes, then JSON. Offsets count from its end (the safetensors format)."""
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
