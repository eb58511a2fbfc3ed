"""Models by name: from a local folder or a hub id to a folder that holds a whole model."""

import json
from dataclasses import dataclass
from pathlib import Path

from data import files
from data.errors import BadInput
from pco.models import adapters, weights
from pco.models.adapters import Task

_SINGLE = "model.safetensors"
_MODEL_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True)
class Found:
    """A model by its files: the folder of a whole one and, if an adapter of it was named, the adapter's folder."""

    folder: Path
    adapter: Path | None = None

    @property
    def tokenizer(self) -> Path:
        """The folder that its tokenizer is loaded from: an adapter may bring one of its own."""
        own = self.adapter is not None and files.exists(self.adapter / "tokenizer_config.json")
        return self.adapter if self.adapter is not None and own else self.folder


def find(name: str, revision: str | None, *, task: Task, key: str) -> Found:
    """A model, or an adapter and its base; hub ids are fetched (or found in the hub's cache). `key` is the setting.

    Raises BadInput when it is neither, when an adapter and its base do not fit for such a `task`, or when weights are
    missing or cut short.
    """
    folder = _folder(name, revision, key)
    if not adapters.is_adapter(folder):
        return Found(_whole(folder, name, key))
    if not files.exists(folder / adapters.WEIGHTS):
        raise BadInput(
            f"{name}: holds an adapter ({adapters.CONFIG}), but no {adapters.WEIGHTS} (`{key}`). Save it with "
            "`save_pretrained`, or copy what is missing."
        )
    if whole := sorted(path.name for path in folder.glob("*.safetensors") if path.name != adapters.WEIGHTS):
        raise BadInput(
            f"{name}: holds both an adapter ({adapters.WEIGHTS}) and other weights ({whole[0]}) (`{key}`). Remove the "
            f"ones that are not meant; with an adapter that is merged already, remove {adapters.CONFIG} too."
        )
    _check_whole(folder / adapters.WEIGHTS)
    found = Found(_base(folder, key), folder)
    adapters.check(found.folder, folder, task=task, key=key)
    return found


def _base(adapter: Path, key: str) -> Path:
    base = adapters.base_of(adapter, key)
    try:
        folder = _folder(base.name, base.revision, key)
        if adapters.is_adapter(folder):
            raise BadInput(f"{base.name}: is an adapter itself. Merge that one first, and name the result.")
        return _whole(folder, base.name, key)
    except BadInput as error:
        raise BadInput(
            f"{adapter}: its base cannot be used (`base_model_name_or_path` in its {adapters.CONFIG}; write the "
            f"absolute path of a folder there, or a hub id): {error}"
        ) from error


def find_model(name: str, revision: str | None, *, key: str) -> Path:
    """The folder of a whole model, as `find`, where an adapter cannot be taken.

    Raises BadInput for an adapter, too.
    """
    folder = _folder(name, revision, key)
    if adapters.is_adapter(folder):
        raise BadInput(_adapter(folder, name, key))
    return _whole(folder, name, key)


def needs_hub(name: str) -> bool:
    """Whether a model, or the base of an adapter, is a hub id."""
    folder = Path(name)
    if not folder.is_dir():
        return True
    if not adapters.is_adapter(folder):
        return False
    try:
        return not Path(adapters.base_of(folder, "model").name).is_dir()
    except BadInput:  # told where the model is looked for
        return False


def _folder(name: str, revision: str | None, key: str) -> Path:
    folder = Path(name)
    return folder if files.exists(folder) else _download(name, revision, key)


def _whole(folder: Path, name: str, key: str) -> Path:
    """The folder, if it holds a whole model."""
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
    base, merged = adapters.base_of(folder, key).name, f"{folder.name}-merged"
    return (
        f"{name}: holds an adapter of {base} ({adapters.CONFIG}), not a whole model (`{key}`). Merge it and name the "
        "result:\n"
        "  from peft import AutoPeftModelForCausalLM; from transformers import AutoTokenizer\n"
        f"  AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload().save_pretrained({merged!r})\n"
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
