"""The image files of a command and the flags that go with them."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.cli.framed_files import read_framed
from serving.cli.manual import utf8_text
from serving.client.image_files import ImageError, read_file

Image = NDArray[np.uint8] | bytes
"""One image to send: (28, 28) uint8, 0 paper, 255 ink; or a crop, the content of a PNG or JPEG file."""


DOUBTED = "may not show one whole digit: the service rejects such a crop as no digit"
"""Warning about a file whose framing has doubts. A framed image, 28x28 pixels, can't carry them to the service."""


def add_flags(parser: argparse.ArgumentParser, *, files: str) -> None:
    """Adds image files and the options of a request to a command; `files` is the help text of the files."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=files)
    parser.add_argument(
        "--crops",
        action="store_true",
        help="send the files as they are, PNG or JPEG; the service frames them (default: framed here)",
    )
    parser.add_argument(
        "--model", type=utf8_text, default="", help="name of the model (default: the service's default model)"
    )
    parser.add_argument(
        "--key",
        type=utf8_text,
        default="",
        help="calls with the same key get the same model version while a canary runs",
    )
    parser.add_argument(
        "--target-error-rate",
        type=_rate,
        default=0.0,
        metavar="RATE",
        help="highest share of wrong answers among the accepted ones, such as 0.005 (default: 0, the service's)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")


def read(command: str, files: Sequence[Path], *, crops: bool) -> Iterator[tuple[Path, Image]]:
    """Reads image files one at a time. Reports on stderr each file that can't be read, and each whose framing has doubts.

    Args:
        command: name of the command, which starts each error message.
        files: PNG, JPEG or 784 raw bytes each.
        crops: read the files as they are, without framing.

    Yields:
        Each file with its image, without the files that can't be read.
    """
    for file in files:
        try:
            if crops:
                yield file, _read_crop(file)
                continue
            framed = read_framed(file)
            if not framed.whole:
                print(f"digits {command}: {file}: {DOUBTED}; with --crops, it does so here", file=sys.stderr)
            yield file, framed.image
        except ImageError as error:
            print(f"digits {command}: {file}: {error}", file=sys.stderr)


def pack(images: Sequence[Image]) -> NDArray[np.uint8] | list[bytes]:
    """Puts images of one kind into the form that the client takes: (n, 28, 28) uint8, or n crops."""
    crops = [image for image in images if isinstance(image, bytes)]
    return crops or np.stack([np.asarray(image) for image in images])


def _read_crop(file: Path) -> bytes:
    """Reads a file as it is. Raises ImageError, also for an empty file, which no request can carry."""
    content = read_file(file)
    if not content:
        raise ImageError("neither a PNG nor a JPEG, but 0 bytes of something else")
    return content


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, not {text}")
    return rate
