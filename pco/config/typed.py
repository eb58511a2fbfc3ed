"""Values read by the type of their field: where a text belongs, a value is the text that was written.

YAML takes `012` for the number 10, `off` for false, and ends a value at ` #`; a name, a path or a revision may be any
of these. So the field decides, and YAML only where the field is no text.
"""

import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Types = list[Any]  # the alternatives that a field allows

_TEXT, _NULL, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
_NULLS = ("null", "Null", "NULL", "~")


class _NoRepeatedKeys(yaml.SafeLoader):
    """YAML lets a later key silently replace an earlier one; in a config that is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{name}` stands twice in one section", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def document(text: str, allowed: Types) -> Any:
    """A YAML document whose plain scalars are texts where only a text fits; raises yaml.YAMLError."""
    loader = _NoRepeatedKeys(text)
    try:
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(_as_written(node, allowed))
    finally:
        loader.dispose()


def value(text: str, allowed: Types) -> Any:
    """The value of `key=value`: the text itself where the field takes nothing but a text, else YAML.

    Where it takes a list or a section as well, a value that begins with `[` or `{` is one. Quotes around a whole text
    are YAML's and are removed. Nothing at all is null, and so is `null` where a field may be null. Raises
    yaml.YAMLError.
    """
    is_container = text.lstrip()[:1] in ("[", "{") and any(map(_is_container, allowed))
    if not is_text(allowed) or is_container:
        return document(text, allowed)
    if not text.strip() or (text.strip() in _NULLS and types.NoneType in allowed):
        return None
    quoted = _quoted(text)
    return text if quoted is None else quoted


def _quoted(text: str) -> str | None:
    """What stands in the quotes, if they are around all of it."""
    bare = text.strip()
    if bare[0] not in "\"'":
        return None
    try:
        node = yaml.compose(bare, yaml.SafeLoader)
    except yaml.YAMLError:  # quotes that are part of the text
        return None
    if not isinstance(node, yaml.ScalarNode) or node.end_mark.index != len(bare):
        return None
    return str(node.value)


def _as_written(node: yaml.Node, allowed: Types) -> yaml.Node:
    if isinstance(node, yaml.ScalarNode):
        is_other = node.style is None and node.tag not in (_TEXT, _NULL)
        return yaml.ScalarNode(_TEXT, node.value, node.start_mark) if is_other and is_text(allowed) else node
    if isinstance(node, yaml.SequenceNode):
        node.value[:] = [_as_written(item, items(allowed)) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        inner = of_kind(allowed, _kind(node))
        node.value[:] = [
            (key, _as_written(item, allowed if key.tag == _MERGE else below(inner, str(key.value))))
            for key, item in node.value
        ]
    return node


def _kind(node: yaml.MappingNode) -> str | None:
    return next((str(item.value) for key, item in node.value if key.value == "kind"), None)


def alternatives(annotation: Any) -> Types:
    """The types that an annotation allows, each by itself."""
    origin = _origin(annotation)
    if origin is typing.Annotated:
        return alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [option for inner in typing.get_args(annotation) for option in alternatives(inner)]
    return [annotation]


def fields(allowed: Types, key: str) -> Iterator[FieldInfo]:
    """The fields of that name in the sections among the types."""
    for option in allowed:
        if _is_section(option) and key in option.model_fields:
            yield option.model_fields[key]


def below(allowed: Types, key: str) -> Types:
    """The types under a key: of a section's field, or of the values of a mapping with names of the user's own."""
    values = [typing.get_args(option)[1] for option in allowed if _origin(option) is dict]
    annotations = [*(field.annotation for field in fields(allowed, key)), *values]
    return [option for annotation in annotations for option in alternatives(annotation)]


def under(allowed: Types, dotted: str) -> Types:
    """The types under a key such as `train.loss.tau`, of whatever kind the sections on the way are."""
    for key in dotted.split("."):
        allowed = below(allowed, key)
    return allowed


def items(allowed: Types) -> Types:
    """The types of the items of a list."""
    lists = [typing.get_args(option)[0] for option in allowed if _origin(option) is list]
    return [option for annotation in lists for option in alternatives(annotation)]


def of_kind(allowed: Types, kind: str | None) -> Types:
    """The section of that kind, where there is a choice by kind; all types if none is of it."""
    chosen = [option for option in allowed if is_choice(option) and option.model_fields["kind"].default == kind]
    return chosen or allowed


def is_choice(option: Any) -> bool:
    """Whether a type is a section that says which one it is."""
    return _is_section(option) and "kind" in option.model_fields


def _origin(option: Any) -> Any:
    """Untyped, since checkers think that it can only be a part of `typing`."""
    return typing.get_origin(option)


def _is_section(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)


def _is_container(option: Any) -> bool:
    return _is_section(option) or _origin(option) in (list, dict)


def is_text(allowed: Types) -> bool:
    """Whether a scalar can be nothing but a text here, or null."""
    scalars = [option for option in allowed if not _is_container(option) and option is not types.NoneType]
    return bool(scalars) and all(_takes_text(option) for option in scalars)


def _takes_text(option: Any) -> bool:
    is_named = _origin(option) is Literal
    return option is str or (is_named and all(isinstance(name, str) for name in typing.get_args(option)))
