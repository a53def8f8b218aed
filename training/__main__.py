"""Command line of the training package: `digits-train`, or `python -m training`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.parser import new_parser

BACKENDS = ("tensorflow", "jax", "torch")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0 success, 1 failure, 2 wrong usage, 3 for `compare` when NEW is worse, 130 interrupted.
    """
    options = new_parser().parse_args(arguments)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend not in BACKENDS:
        print(f"digits-train: KERAS_BACKEND must be one of {', '.join(BACKENDS)}, not {backend!r}", file=sys.stderr)
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # must be set before TensorFlow is loaded, which logs a page of notes
    try:
        with _stderr_silenced():
            from training import commands  # loads Keras, which takes seconds: --help and usage errors should not wait

        return commands.run_command(options)
    except ModuleNotFoundError as error:
        remedy = "run `make install`" if backend == "tensorflow" else f"install the Keras backend {backend}"
        print(f"digits-train: {error}; to train, {remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        trains = options.action in ("run", "catalogue", "study")
        advice = "; run the same command again to resume after the last complete epoch" if trains else ""
        print(f"digits-train: interrupted{advice}", file=sys.stderr)
        return 130


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Discards standard error: TensorFlow writes there while it is loaded, at every log level."""
    with Path(os.devnull).open("wb") as null, os.fdopen(os.dup(2), "wb") as stderr:
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr.fileno(), 2)


if __name__ == "__main__":
    sys.exit(main())
