"""`digits frame`: shows an image file as the network sees it."""

import sys
from pathlib import Path

from serving.cli.manual import new_parser

_SHADES = " .:-=+*#%@"  # from paper to full ink, in a terminal

_DOUBTED = "may not show one whole digit: the service rejects such a crop as no digit"

_MANUAL = """\
The service frames crops in the same way: it finds the ink, scales it to 20x20
pixels, and moves its centre of mass to the middle of 28x28.

examples:
  digits frame serving/samples/photo.jpg
  digits frame serving/samples/photo.jpg --out framed.png

exit status:
  0  shown
  1  the file can't be read, or shows no ink
  2  wrong usage
"""


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    parser = new_parser("frame", "Shows how the digit of an image file is framed, as the network sees it.", _MANUAL)
    parser.add_argument("file", type=Path, metavar="FILE", help="image of one digit, as `digits recognize` takes it")
    parser.add_argument("--out", type=Path, metavar="PNG", help="also write the framed image: 28x28, 0 paper, 255 ink")
    options = parser.parse_args(arguments)

    from PIL import Image

    from serving.cli.framed_files import read_framed
    from serving.client.image_files import ImageError

    try:
        image, whole = read_framed(options.file)
        if not image.any():  # 28x28 pixels are taken as they are
            raise ImageError("no ink is seen on it")
        if options.out:
            Image.fromarray(image).save(options.out, "PNG")
    except ImageError as error:
        print(f"digits frame: {options.file}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"digits frame: {options.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    if not whole:
        print(f"digits frame: {options.file}: {_DOUBTED}", file=sys.stderr)
    for row in image:
        print("".join(_SHADES[level * len(_SHADES) // 256] * 2 for level in row.tolist()).rstrip())
    return 0
