"""The parser of a command, whose help ends in a manual with examples, and the type of its text arguments."""

import argparse
import sys
from typing import IO


class Parser(argparse.ArgumentParser):
    """A parser whose help fails like other output; argparse ignores a full disk."""

    def print_help(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        """Prints the help to a file, or to stdout. Raises OSError."""
        print(self.format_help(), end="", file=file or sys.stdout)


def new_parser(command: str, description: str, manual: str) -> Parser:
    """Returns a parser without flags.

    Args:
        command: name of the command, as in `digits recognize`.
        description: first lines of the help.
        manual: last lines of the help, printed as they are.
    """
    return Parser(
        prog=f"digits {command}",
        description=description,
        epilog=manual,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def utf8_text(argument: str) -> str:
    """Returns an argument that a request can carry; argparse reports one that is not UTF-8."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"expected UTF-8 text, not {argument!r}") from None
    return argument
