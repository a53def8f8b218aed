"""The command line of the training half: `digits-train`, or `python -m training`."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 it could not be done, 2 it was asked for wrongly, 3 worse."""
    options = _parser().parse_args(arguments)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend not in BACKENDS:
        print(f"digits-train: KERAS_BACKEND must be one of {', '.join(BACKENDS)}, not {backend!r}", file=sys.stderr)
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is loaded, or it greets with a page of notes
    try:
        with _silence():
            from training import commands  # loads Keras, which takes seconds: --help and mistakes should not wait for it

        return commands.carry_out(options)
    except ModuleNotFoundError as error:
        wanted = "`pip install postal-digits[training]`" if backend == "tensorflow" else f"KERAS_BACKEND={backend} installed"
        print(f"digits-train: {error}; training needs {wanted}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        trains = options.action in ("run", "catalogue", "study")
        goes_on = "; the same command goes on after the last whole epoch" if trains else ""
        print(f"digits-train: interrupted{goes_on}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="digits-train", description="Trains digit readers on MNIST and exports them to verified ONNX files."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("DIGITS_DATA") or None,
        help="an mnist.npz as Keras ships it (default: $DIGITS_DATA, else Keras' cache, else a download)",
    )

    writers = argparse.ArgumentParser(add_help=False)
    writers.add_argument(
        "--writers",
        type=Path,
        default=os.environ.get("DIGITS_WRITERS") or None,
        help="an npz file whose `train` numbers the writer of each training image: then images are held out by writer "
        "(default: $DIGITS_WRITERS, else at random)",
    )

    captured = argparse.ArgumentParser(add_help=False)
    captured.add_argument(
        "--captured",
        metavar="URL",
        help="the database of `digits serve --capture`, as SQLAlchemy names it: of the images in it whose truth is known, "
        "`run` learns from those of four answers in five as well, and `compare` judges by the others as well",
    )

    drawn = argparse.ArgumentParser(add_help=False)
    drawn.add_argument("--seed", type=_number(0, 2**31), default=0, help="of every random choice (default: %(default)s)")
    drawn.add_argument(
        "--epochs", type=_number(1, 10_000), help="passes over the training images (default: the recipe's own)"
    )

    actions.add_parser("list", help="the recipes: parameters, epochs, what is claimed and expected of them, source")

    run = actions.add_parser(
        "run",
        parents=[data, writers, drawn, captured],
        help="train a recipe, export and verify it, leave a new model version",
    )
    run.add_argument("recipe", help="a name from `digits-train list`")
    run.add_argument(
        "--models",
        type=Path,
        default=Path("models"),
        help="model repository; the version goes to MODELS/NAME/VERSION (default: %(default)s)",
    )
    run.add_argument(
        "--name", type=_name, default="digits", help="the model's name in the repository (default: %(default)s)"
    )
    run.add_argument("--tensorboard", type=Path, metavar="DIRECTORY", help="write TensorBoard's logs there")

    catalogue = actions.add_parser(
        "catalogue", parents=[data, writers], help="run every recipe with several seeds, and write one table"
    )
    catalogue.add_argument("--seeds", type=_number(1, 10_000), default=3, help="runs of each recipe (default: %(default)s)")
    catalogue.add_argument("--recipes", nargs="+", metavar="RECIPE", help="only these")
    catalogue.add_argument(
        "--models",
        type=Path,
        default=Path("catalogue"),
        help="model repository, a model for each recipe; what is there already is not made again (default: %(default)s)",
    )

    verify = actions.add_parser(
        "verify", parents=[data], help="judge a version's ONNX file on the test images, and against its Keras network"
    )
    verify.add_argument("version", type=Path, help="a version's directory, with model.onnx and model.keras")

    compare = actions.add_parser(
        "compare",
        parents=[data, captured],
        help="say whether a version reads better than another, on the test images and on captured ones",
        description="Says whether version NEW reads better or worse than OLD, by the 95 % interval of the difference of "
        "their accuracies on the same images. The exit status is 3 when NEW is shown to be worse on any set of images.",
    )
    compare.add_argument("old", type=Path, metavar="OLD", help="a version's directory, with model.onnx")
    compare.add_argument("new", type=Path, metavar="NEW", help="another one")

    export = actions.add_parser(
        "export",
        parents=[data, writers],
        help="export a version's network again, judge and certify it anew, leave it as a new version beside the first",
    )
    export.add_argument("version", type=Path, help="a version's directory, as `digits-train run` leaves it")

    quantize = actions.add_parser(
        "quantize",
        parents=[data, writers],
        help="turn a version into 8-bit integers, judge and certify it anew, leave it as a new version beside the first",
    )
    quantize.add_argument("version", type=Path, help="a version's directory, as `digits-train run` leaves it")

    report = actions.add_parser(
        "report",
        parents=[data],
        help="measure a version's robustness and a second source, write them to its run.json and MODEL_CARD.md, and a page, "
        "report.html",
    )
    report.add_argument("version", type=Path, help="a version's directory, as `digits-train run` leaves it")

    study = actions.add_parser(
        "study",
        parents=[data, writers, drawn],
        help="look into a plot, question or claim of the seed notebooks; without a name, list them",
    )
    study.add_argument("study", metavar="NAME", nargs="?", help="a name from the list, or `all`")
    study.add_argument(
        "--out",
        type=Path,
        default=Path("studies"),
        help="directory for pictures, tables, and trained networks, which other studies use too (default: %(default)s)",
    )
    study.add_argument(
        "--recipes", nargs="+", default=(), metavar="RECIPE", help="only these (default: the study's own choice)"
    )
    study.add_argument(
        "--models",
        type=Path,
        help="directory with versions, as `run` and `catalogue` leave them: networks that are there are not trained again",
    )
    brought = study.add_argument_group("what `detection` needs: Darknet's own files, for example those of YOLOv3")
    brought.add_argument("--photo", type=Path, help="an image file to look for things in")
    brought.add_argument("--weights", type=Path, help="a detector's .weights")
    brought.add_argument("--names", type=Path, help="names of its classes, one a line")
    brought.add_argument("--cfg", type=Path, help="its .cfg (default: the layers of YOLOv3)")
    return parser


def _number(least: int, most: int) -> Callable[[str], int]:
    """Reads a whole number from `least` to `most`."""

    def number(text: str) -> int:
        if not (text.removeprefix("-").isdecimal() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most:,}, not {text}")
        return int(text)

    return number


@contextmanager
def _silence() -> Iterator[None]:
    """Drops what is written to standard error: TensorFlow greets there as it is loaded, whatever its log level."""
    with Path(os.devnull).open("wb") as nowhere, os.fdopen(os.dup(2), "wb") as terminal:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal.fileno(), 2)


def _name(text: str) -> str:
    """Reads the name of a model: one that is a directory's, and that a server sees."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(
            f"must be letters, digits, '.', '_' and '-', beginning with one of the first two: {text!r}"
        )
    return text


if __name__ == "__main__":
    sys.exit(main())
