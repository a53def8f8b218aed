"""The parser of a command, whose help ends in a manual with examples."""

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
