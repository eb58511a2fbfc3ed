"""Models by name: from a local folder or a hub id to a folder that holds a whole model."""

import json
from pathlib import Path

from data import files
from data.errors import BadInput
from pco.models import weights

_ADAPTER = "adapter_config.json"
_SINGLE = "model.safetensors"
_MODEL_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


def find_model(name: str, revision: str | None, *, key: str) -> Path:
    """The folder of a model; a hub id is fetched (or found in the hub's cache). `key` is the setting that names it.

    Raises BadInput when it is neither, when it is an adapter, or when its weights are missing or cut short.
    """
    folder = Path(name)
    if not files.exists(folder):
        folder = _download(name, revision, key)
    if files.exists(folder / _ADAPTER):
        raise BadInput(_adapter(folder, name, key))
    if not files.exists(folder / "config.json"):
        raise BadInput(f"{name}: has no config.json, so it is not a Hugging Face model folder (`{key}`).")
    weight_files = sorted(folder.glob("*.safetensors"))
    if not weight_files:
        raise BadInput(f"{name}: has no *.safetensors weights. Save it with `save_pretrained` (`{key}`).")
    for path in weight_files:
        _check_whole(path)
    _check_index(folder)
    return folder


def _adapter(folder: Path, name: str, key: str) -> str:
    """Loaders differ in what they make of one: some take the base model alone, even where a config.json lies beside."""
    try:
        base = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):  # it is refused all the same
        base = "its base model"
    kind = "SequenceClassification" if key.startswith("reward") else "CausalLM"
    merged = f"{folder.name}-merged"
    return (
        f"{name}: holds an adapter of {base} ({_ADAPTER}), not a whole model (`{key}`). Merge it and name the result:\n"
        f"  from peft import AutoPeftModelFor{kind}; from transformers import AutoTokenizer\n"
        f"  AutoPeftModelFor{kind}.from_pretrained({name!r}).merge_and_unload().save_pretrained({merged!r})\n"
        f"  AutoTokenizer.from_pretrained({name!r}).save_pretrained({merged!r})"
    )


def _check_index(folder: Path) -> None:
    """Every file and tensor that the index names is there."""
    path = folder / weights.INDEX
    if not files.exists(path):
        return
    try:
        named = {
            str(name): str(file) for name, file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: no index of weights ({error!r}). Copy or download it again.") from error
    if missing := sorted(file for file in set(named.values()) if not files.exists(folder / file)):
        raise BadInput(
            f"{folder}: {len(missing)} of {len(set(named.values()))} files of its weights are missing: "
            f"{', '.join(missing[:3])} (named in {path.name}). Copy or download them."
        )
    if files.exists(folder / _SINGLE) and _SINGLE not in named.values():
        raise BadInput(
            f"{folder}: holds both {_SINGLE} and weights that {path.name} names, and engine and trainer would each "
            "take others. Remove the ones that are not meant."
        )
    if lost := sorted(set(named) - set(weights.tensors(folder))):
        raise BadInput(
            f"{folder}: {path.name} names {len(lost)} tensors that its files do not hold, such as {lost[0]}. Save the "
            "model anew, or download it again."
        )


def _check_whole(path: Path) -> None:
    """Raise BadInput for a file that was cut short. Its header gives its length, so no weights are read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise BadInput(f"{path}: not whole safetensors ({error}). Copy or download it again.") from error


def _download(name: str, revision: str | None, key: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    hint = f"Name an existing folder or a hub id as `{key}`"
    hint += "; `pco model` writes the quickstart's model." if key == "policy.model" else "."
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_MODEL_FILES))
    except HFValidationError:
        raise BadInput(f"{name}: no such folder, and not a hub id either. {hint}") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"{name}: no such folder, and the hub did not give it ({reason}). {hint}") from error
