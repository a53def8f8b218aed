"""The parser of a command, whose help ends in a manual with examples, and the type of its text arguments."""

import argparse


def new_parser(command: str, description: str, manual: str) -> argparse.ArgumentParser:
    """Returns a parser without flags.

    Args:
        command: name of the command, as in `digits recognize`.
        description: first lines of the help.
        manual: last lines of the help, printed as they are.
    """
    return argparse.ArgumentParser(
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
