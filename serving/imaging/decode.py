"""Decoder of crops: PNG or JPEG files of one digit on paper, to grey levels and to the image that the models read."""

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from serving.imaging.framing import frame
from serving.imaging.ink import find_ink

MAX_PIXELS = 1 << 21  # of a crop; checked against the file's header, before any pixel is decoded
LONGEST = 80  # pixels of the longer side after scaling down; more pixels add no detail of a digit, and take longer

_ORIENTATION = 0x0112  # Exif tag
_UPRIGHT = {  # transposition that undoes each Exif orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Framed(NamedTuple):
    """A crop as the models read it.

    Attributes:
        image: (28, 28) uint8, 0 paper to 255 ink, framed as MNIST; all 0 if no ink is found.
        whole: False where the crop does not certainly show one whole digit.
    """

    image: NDArray[np.uint8]
    whole: bool


class CropError(Exception):
    """The file is not a crop that can be decoded; the message has the reason."""


def decode(content: bytes, longest: int | None = None) -> NDArray[np.uint8]:
    """Decodes a PNG or JPEG of any colour mode to grey levels, turned upright.

    Transparent pixels become paper: white under dark ink, black under light ink.

    Args:
        content: content of the file.
        longest: longer side of the result at most, in pixels; a larger image is scaled down. None keeps the size.

    Returns:
        (height, width) uint8, 0 black to 255 white.

    Raises:
        CropError: the file is neither PNG nor JPEG, is broken, has over MAX_PIXELS pixels, or contains several images.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise CropError(
                    f"the image is {image.width}x{image.height}, more than {MAX_PIXELS:,} pixels: cut the digit out, or "
                    "scale it down"
                )
            if getattr(image, "n_frames", 1) > 1:
                raise CropError("the file holds several images")
            return _to_grey(image, longest)
    except UnidentifiedImageError:
        raise CropError(f"neither a PNG nor a JPEG, but {len(content)} bytes of something else") from None
    except Image.DecompressionBombError:
        raise CropError(f"the image has more than {MAX_PIXELS:,} pixels") from None
    except CropError:
        raise
    except Exception as error:  # Pillow raises errors of any type for a broken file
        raise CropError(f"the file is broken: {error}") from error


def _to_grey(image: Image.Image, longest: int | None) -> NDArray[np.uint8]:
    if longest:
        image.draft("L", (longest, longest))  # decodes a JPEG at a half, a quarter or an eighth of its size
    turned = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))  # ImageOps.exif_transpose fails on invalid other tags
    upright = image.transpose(turned) if turned is not None else image
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow's conversion to 8 bits would clip
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    flat = upright.convert("LA" if upright.has_transparency_data else "L")
    factor = max(flat.size) / longest if longest else 1
    if factor > 1:
        width, height = (max(1, round(side / factor)) for side in flat.size)
        flat = flat.resize((width, height), Image.Resampling.BOX)
    if flat.mode == "L":
        return np.asarray(flat)
    grey, alpha = np.moveaxis(np.asarray(flat, np.float64), 2, 0)
    paper = 0 if np.average(grey, weights=alpha + 1e-9) > 127 else 255
    on_paper: NDArray[np.uint8] = np.round(paper + (grey - paper) * alpha / 255).astype(np.uint8)
    return on_paper


def frame_crop(content: bytes) -> Framed:
    """Converts a crop to the image that the models read.

    Args:
        content: content of a PNG or JPEG file.

    Raises:
        CropError: the file can't be decoded.
    """
    image = frame(find_ink(decode(content, LONGEST)))
    return Framed(image, whole=bool(image.any()))
