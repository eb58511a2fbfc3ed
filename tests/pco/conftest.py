"""What tests of stages share."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def stage_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes stage processes run some code instead of a stage."""
    interpreter = sys.executable

    def become(code: str) -> None:
        script = tmp_path / "python"
        imports = "import os, signal, subprocess, sys, time\nfrom pathlib import Path\n"
        script.write_text(f"#!{interpreter}\n{imports}sys.executable = {interpreter!r}\n{code}")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return become
