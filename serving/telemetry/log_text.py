"""Text of callers, files and libraries in the log: what no terminal obeys, and no line longer than people read."""

import re

_MESSAGE_CHARACTERS = 8_000
_TRACEBACK_CHARACTERS = 32_000

# Control characters, line separators, marks of writing direction, invisible characters, halves of surrogate pairs.
_UNPRINTABLE = re.compile(r"[^\n\t -~]")


def clean(text: str, *, one_line: bool) -> str:
    r"""Escapes all characters that are not printable, as \x1b and \u202e, and shortens long text.

    Args:
        text: the text.
        one_line: False keeps line breaks and tabs, where they are escaped later, as in JSON.
    """
    return _escape(_shorten(text, _MESSAGE_CHARACTERS), one_line=one_line)


def clean_traceback(text: str, indent: str) -> str:
    """Cleans a traceback. Each line after the first is indented: the text of an exception may look like lines of a log."""
    return _escape(_shorten(text, _TRACEBACK_CHARACTERS), one_line=False).replace("\n", "\n" + indent)


def _shorten(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]} ...({len(text) - 2 * half} characters)... {text[-half:]}"


def _escape(text: str, *, one_line: bool) -> str:
    if text.isprintable():
        return text
    if one_line:
        text = text.replace("\n", r"\n").replace("\t", r"\t")
    return _UNPRINTABLE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode()
