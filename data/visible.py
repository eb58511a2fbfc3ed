"""Text of models and users as it is shown: what a terminal or a page would act on, or hide, is marked."""

import unicodedata

_CONTROL_PICTURES = 0x2400
_DELETE, _DELETE_PICTURE = 0x7F, "\u2421"
_BIDI_OVERRIDES = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_JOINERS = {"\N{ZERO WIDTH JOINER}", "\N{ZERO WIDTH NON-JOINER}"}  # emoji and several scripts are written with them
_INVISIBLE = {"Cf", "Zl", "Zp"}  # format characters (zero width, soft hyphen, tags), line and paragraph separators


def visible(text: str) -> str:
    """Text with its control characters and invisible ones marked; line breaks, tabs and joiners stay."""
    return "".join(_visible(character) for character in text.replace("\r\n", "\n"))


def _visible(character: str) -> str:
    code, category = ord(character), unicodedata.category(character)
    if character in "\n\t" or character in _JOINERS:
        return character
    if code < ord(" "):
        return chr(_CONTROL_PICTURES + code)
    if code == _DELETE:
        return _DELETE_PICTURE
    # C1 controls, lone surrogates, and characters that turn the reading direction of what follows them.
    if category in {"Cc", "Cs"} or code in _BIDI_OVERRIDES:
        return "\N{REPLACEMENT CHARACTER}"
    return f"<U+{code:04X}>" if category in _INVISIBLE else character
