"""The columns of a source by the names that shapes know: `--map` and `--ignore`."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from data.errors import BadInput

# Several columns may be one annotator each.
VOTES = ("preference", "good", "label", "kto_tag")
_NOTHING = object()


def read_map(words: Collection[str], known: Collection[str]) -> dict[str, str]:
    """`column=name` words as a dict.

    A column may be a path into nested values (`data.prompt`, `turns.0`), or a constant in double quotes. Raises
    BadInput for what is no such word, names no known name, or names a column or name twice.
    """
    names: dict[str, str] = {}
    for word in words:
        column, separator, name = (part.strip() for part in word.rpartition("="))
        if not separator or not column:
            raise BadInput(f"--map {word}: expected column=name, such as --map question=prompt.")
        if name not in known:
            raise BadInput(f"--map {word}: no shape has `{name}`. Names are: {', '.join(sorted(known))}.")
        if column in names or (name in names.values() and name not in VOTES):
            raise BadInput(f"--map {word}: the column or the name is there twice. Give each once.")
        if column.startswith('"') and not isinstance(_constant(column), str):
            raise BadInput(
                f"--map {word}: expected a constant as one text in double quotes, such as '\"Go on.\"=prompt'."
            )
        names[column] = name
    return names


def _constant(column: str) -> Any:
    try:
        return json.loads(column) if column.startswith('"') else None
    except ValueError:
        return None


def refuse_absent(
    names: Mapping[str, str], ignored: Collection[str], rows: Sequence[Mapping[str, Any]], *, where: str
) -> None:
    """Raises BadInput when --map or --ignore names a column or a path that none of these rows has."""
    columns = dict.fromkeys(chain.from_iterable(rows))
    for option, column in [("--map", column) for column in names] + [("--ignore", column) for column in ignored]:
        there = column in columns or (option == "--map" and any(_value(row, column) is not _NOTHING for row in rows))
        if not there:
            raise BadInput(f"{where}: {option} names `{column}`, but the columns are {', '.join(columns)}.")


def _top(path: str) -> str:
    return path.split(".", 1)[0]


def renamed(raw: Mapping[str, Any], names: Mapping[str, str], ignored: Collection[str] = ()) -> dict[str, Any]:
    """A row with its columns mapped; a column of its own by the same name gives way, and so do the ignored ones."""
    taken = {*names.values(), *ignored, *(column if column in raw else _top(column) for column in names)}
    row = {column: value for column, value in raw.items() if column not in taken}
    votes: dict[str, list[Any]] = {}
    for column, name in names.items():
        value = _value(raw, column)
        if value is not _NOTHING:
            votes.setdefault(name, []).append(value)
    several = [name for name in votes if list(names.values()).count(name) > 1]
    return row | {name: values if name in several else values[0] for name, values in votes.items()}


def renamed_columns(columns: Iterable[str], names: Mapping[str, str], ignored: Collection[str] = ()) -> dict[str, None]:
    """The columns of a source by their new names, those that `renamed` gives a whole row."""
    raw = dict.fromkeys(columns)
    taken = {*ignored, *(column if column in raw else _top(column) for column in names)}
    return {column: None for column in raw if column not in taken} | dict.fromkeys(names.values())


def _value(raw: Mapping[str, Any], column: str) -> Any:
    if column in raw:
        return raw[column]
    constant = _constant(column)
    if constant is not None:
        return constant
    value: Any = raw
    for step in column.split("."):
        value = _inside(value, step)
    return value


def _inside(value: Any, step: str) -> Any:
    """What is under a key of an object, at a place of a list, or under a key of each object of a list."""
    match value:
        case dict() if step in value:
            return value[step]
        case list() if step.isdecimal() and int(step) < len(value):
            return value[int(step)]
        case list() if (
            not step.isdecimal() and value and any(isinstance(item, dict) and step in item for item in value)
        ):
            return [item.get(step) if isinstance(item, dict) else None for item in value]
    return _NOTHING
