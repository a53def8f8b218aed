"""The image files of a command and the flags that go with them."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.cli.framed_files import parse_framed
from serving.cli.manual import utf8_text
from serving.client.image_files import ImageError, parse_raw, read_file

_NO_CROP = "784 raw bytes are an image, and can't be sent as a crop"


@dataclass(frozen=True, eq=False)
class ImageFile:
    """One image file of a command.

    Attributes:
        path: the file, as the command line names it.
        content: PNG, JPEG or 784 raw bytes. The service frames and judges a PNG or JPEG that is sent as it is, a crop.
        framed: (28, 28) uint8, 0 paper, 255 ink, to be sent instead of the file; None for a crop.
    """

    path: Path
    content: bytes
    framed: NDArray[np.uint8] | None

    @property
    def size(self) -> int:
        """Bytes that a request carries."""
        return len(self.content) if self.framed is None else self.framed.nbytes


def add_flags(parser: argparse.ArgumentParser, *, files: str) -> None:
    """Adds image files and the options of a request to a command; `files` is the help text of the files."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=files)
    parser.add_argument(
        "--crops",
        action="store_true",
        help="send files of 28x28 pixels as they are, too; the service frames them (default: they are framed already)",
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
    parser.add_argument(
        "--priority",
        choices=("live", "batch"),
        default="live",
        help="batch where nobody waits for the answers: the service reads live images first (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")


def read(command: str, files: Sequence[Path], *, crops: bool) -> Iterator[ImageFile]:
    """Reads image files one at a time, and reports each file that can't be read on stderr.

    Args:
        command: name of the command, which starts each error message.
        files: PNG, JPEG or 784 raw bytes each.
        crops: take each file for a crop, also one of 28x28 pixels.

    Yields:
        The files that can be read.
    """
    for path in files:
        try:
            yield _read_file(path, crops=crops)
        except ImageError as error:
            print(f"digits {command}: {path}: {error}", file=sys.stderr)


def pack(files: Sequence[ImageFile]) -> NDArray[np.uint8] | list[bytes]:
    """Returns what the client sends for the files of one call.

    Returns:
        (n, 28, 28) uint8 where all files are framed, else the content of each file.

    Raises:
        ImageError: a file of raw bytes, which can't be a crop, is beside crops.
    """
    framed = [file.framed for file in files if file.framed is not None]
    if len(framed) == len(files):
        return np.stack(framed)
    for file in files:
        if parse_raw(file.content) is not None:
            raise ImageError(f"{file.path}: {_NO_CROP}, as the other files are")
    return [file.content for file in files]


def _read_file(path: Path, *, crops: bool) -> ImageFile:
    """Reads one file. Raises ImageError, also for an empty file, which a request can't carry."""
    content = read_file(path)
    if not content:
        raise ImageError("neither a PNG nor a JPEG, but 0 bytes of something else")
    if not crops:
        return ImageFile(path, content, parse_framed(content))
    if parse_raw(content) is not None:
        raise ImageError(_NO_CROP)
    return ImageFile(path, content, None)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 <= rate < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, not {text}")
    return rate
