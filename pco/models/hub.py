"""Models by name: from a local folder or a hub id to a folder that holds a whole model."""

from pathlib import Path

from data import files
from data.errors import BadInput

_MODEL_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


def find_model(name: str, revision: str | None, *, key: str) -> Path:
    """The folder of a model; a hub id is fetched (or found in the hub's cache). `key` is the setting that names it.

    Raises BadInput when it is neither, or when its weights are missing or cut short.
    """
    folder = Path(name)
    if not files.exists(folder):
        folder = _download(name, revision, key)
    if not files.exists(folder / "config.json"):
        raise BadInput(f"{name}: has no config.json, so it is not a Hugging Face model folder (`{key}`).")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise BadInput(f"{name}: has no *.safetensors weights. Save it with `save_pretrained` (`{key}`).")
    for path in weights:
        _check_whole(path)
    return folder


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
