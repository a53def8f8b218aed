"""The program `digits`: finds the command and runs it."""

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from serving.cli.manual import Parser

COMMANDS = {
    "serve": "answer gRPC calls until SIGTERM",
    "check": "test a configuration and its models without serving",
    "recognize": "send image files, one digit each, and print the answers",
    "field": "send the image files of one field, such as a postcode",
    "truth": "report the true value of an answer",
    "frame": "show an image file as the network sees it",
    "loadtest": "measure throughput and latency of a running service",
}
"""A line of help by command. Each command is a module of this package, named like it."""

_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells give it: 128 and the number of SIGINT."""

_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
"""Errors of a file that stdout writes to. Errors of other files have a file name."""

_MANUAL = f"""\
commands:
{chr(10).join(f"  {command:<12} {summary}" for command, summary in COMMANDS.items())}

examples:
  digits serve
  digits recognize serving/samples/7.png
  digits field serving/samples/field/*.jpg
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the command and its arguments; None takes those of the process.

    Returns:
        The exit status: 0 for success, 1 for failure, 2 for wrong usage, 130 after Ctrl-C. Some commands add their own.
    """
    from serving.telemetry.multiprocess_metrics import count_alone

    _escape_unprintable()
    metrics_directory = count_alone()
    parser = Parser(
        prog="digits",
        description="Reads handwritten digits for postal sorting.",
        epilog=_MANUAL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version, commit, Python and ONNX Runtime")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below; COMMAND --help explains it")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="arguments of the command")
    try:
        try:
            options = parser.parse_args(arguments)
            return _run(options.command, options.arguments, metrics_directory)
        finally:  # --help and --version, too, end with SystemExit before their text is written
            if sys.stdout:
                sys.stdout.flush()
    except KeyboardInterrupt:
        print("digits: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # as in `digits frame photo.jpg | head`
        _discard_output()
        return 1
    except OSError as error:
        if error.errno not in _WRITE_ERRORS or error.filename is not None:
            raise
        _discard_output()
        print(f"digits: can't write the output: {error.strerror}", file=sys.stderr)
        return 1


def _escape_unprintable() -> None:
    """Makes the output escape characters that its encoding lacks, such as those of file names that are not UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":  # stderr escapes them by default
        sys.stdout.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Discards the text that could not be written; else Python complains when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(command: str, arguments: list[str], metrics_directory: str) -> int:
    module = import_module(f"serving.cli.{command}")  # only this one, see the package
    more = (metrics_directory,) if command == "serve" else ()
    return int(module.run(arguments, *more))


class _Version(argparse.Action):
    """Prints the versions and ends the program; they are looked up only then, since Git takes a moment."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(_versions())
        parser.exit()


def _versions() -> str:
    import platform

    from serving.build_info import commit, onnxruntime_version, version

    python = platform.python_version()
    return f"digits {version()}, commit {commit()}, Python {python}, onnxruntime {onnxruntime_version()}"
