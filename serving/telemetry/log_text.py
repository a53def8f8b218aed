"""Text of callers, files and libraries in logs and errors: what no terminal obeys, and no line longer than people read."""

import re

_MESSAGE_CHARACTERS = 8_000
_TRACEBACK_CHARACTERS = 32_000
_MARK_CHARACTERS = 40  # of the mark in the place of what is cut out, at most

# Control characters, line separators, marks of writing direction, invisible characters, halves of surrogate pairs.
_UNPRINTABLE = re.compile(r"[^\n\t -~]")


def clean(text: str, *, one_line: bool, most: int = _MESSAGE_CHARACTERS) -> str:
    r"""Escapes all characters that are not printable, as \x1b and \u202e, and shortens long text.

    Args:
        text: the text.
        one_line: False keeps line breaks and tabs, where they are escaped later, as in JSON.
        most: characters of the result, at most. Clean text stays as it is.
    """
    half = most // 2
    # No more is escaped than may stay, and it is cut afterwards: a character may become ten.
    kept = _escape(text[:half], one_line=one_line) + _escape(text[max(half, len(text) - half) :], one_line=one_line)
    left_out = max(len(text) - 2 * half, 0)
    if not left_out and len(kept) <= most:
        return kept
    room = (most - _MARK_CHARACTERS) // 2
    return f"{kept[:room]} ...({left_out + len(kept) - 2 * room} characters)... {kept[-room:]}"


def clean_traceback(text: str, indent: str) -> str:
    """Cleans a traceback. Each line after the first is indented: the text of an exception may look like lines of a log."""
    return clean(text, one_line=False, most=_TRACEBACK_CHARACTERS).replace("\n", "\n" + indent)


def _escape(text: str, *, one_line: bool) -> str:
    if text.isprintable():
        return text
    if one_line:
        text = text.replace("\n", r"\n").replace("\t", r"\t")
    return _UNPRINTABLE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return character if character.isprintable() else character.encode("unicode_escape").decode()
