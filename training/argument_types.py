"""Types of command-line arguments: each parses a text, or raises ArgumentTypeError with what is expected."""

import argparse
import math
import re
from collections.abc import Callable


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Returns an argparse type for a whole number from `least` to `most`."""

    def number(text: str) -> int:
        if not (text.removeprefix("-").isdecimal() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most:,}, not {text}")
        return int(text)

    return number


def _number(expected: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """Returns an argparse type for a number that fits what is expected. NaN fits nothing."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not fits(value):
            raise argparse.ArgumentTypeError(f"must be {expected}, not {text}")
        return value

    return number


probability = _number("a number between 0 and 1, such as 0.001", lambda value: 0 < value < 1)
positive = _number("a number above 0", lambda value: 0 < value < math.inf)
share = _number("a share above 0, at most 1", lambda value: 0 < value <= 1)


def model_name(text: str) -> str:
    """Validates a model name, which names a directory that the server scans: no path separators, no hidden names."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(
            f"must be letters, digits, '.', '_' and '-', starting with a letter or a digit; got {text!r}"
        )
    return text
