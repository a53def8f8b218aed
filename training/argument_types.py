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


def probability(text: str) -> float:
    """Parses a probability that is neither 0 nor 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, such as 0.001, not {text}")
    return value


def positive(text: str) -> float:
    """Parses a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return number


def share(text: str) -> float:
    """Parses a share above 0, up to 1."""
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be a share above 0, at most 1, not {text}")
    return value


def model_name(text: str) -> str:
    """Validates a model name, which names a directory that the server scans: no path separators, no hidden names."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(
            f"must be letters, digits, '.', '_' and '-', starting with a letter or a digit; got {text!r}"
        )
    return text
