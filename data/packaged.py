"""Files that come with pco: `package:PATH` names one wherever a config or a command takes a path."""

from pathlib import Path

from data.errors import BadInput

PREFIX = "package:"
_FOLDER = Path(__file__).parent


def absolute(path: str | Path) -> Path:
    """The path from the working directory or the home folder, or, of `package:PATH`, the file that comes with pco.

    Raises BadInput when no such file comes with pco.
    """
    text = str(path)
    if not text.startswith(PREFIX):
        return Path(text).expanduser().resolve()
    file = (_FOLDER / text.removeprefix(PREFIX)).resolve()
    if not file.is_file():
        raise BadInput(f"{text}: no such file comes with pco. These do: {', '.join(names())}.")
    return file


def names() -> list[str]:
    """All that there is, as `package:PATH`."""
    files = [*_FOLDER.glob("presets/*.yaml"), *_FOLDER.glob("quickstart/*.jsonl")]
    return sorted(PREFIX + file.relative_to(_FOLDER).as_posix() for file in files)
