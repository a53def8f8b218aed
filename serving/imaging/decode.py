"""Picture files, PNG or JPEG, to grey levels, and a crop, one digit on paper, to the image that the models read."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from serving.imaging.framing import frame
from serving.imaging.ink import find_ink

MAX_PIXELS = 1 << 21  # of a crop; how many there are is known before any of them is decoded
LONGEST = 80  # pixels that the longer side is scaled down to: a digit shows no more, and more takes longer

_ORIENTATION = 0x0112  # of Exif
_UPRIGHT = {  # by orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class CropError(Exception):
    """The file is no crop that can be read; the message says why."""


def decode(content: bytes, longest: int | None = None) -> NDArray[np.uint8]:
    """Grey levels of a PNG or JPEG, upright, whatever its colours; what is transparent is paper, dark under light ink.

    Args:
        content: the file.
        longest: the longer side of what is wanted, pixels; a larger picture is scaled down to it.

    Returns:
        (height, width) uint8.

    Raises:
        CropError: it is neither, broken, has more pixels than MAX_PIXELS, or holds several pictures.
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
            return _grey(image, longest)
    except UnidentifiedImageError:
        raise CropError(f"neither a PNG nor a JPEG, but {len(content)} bytes of something else") from None
    except Image.DecompressionBombError:
        raise CropError(f"the image has more than {MAX_PIXELS:,} pixels") from None
    except CropError:
        raise
    except Exception as error:  # a broken file can make Pillow raise anything
        raise CropError(f"the file is broken: {error}") from error


def _grey(image: Image.Image, longest: int | None) -> NDArray[np.uint8]:
    if longest:
        image.draft("L", (longest, longest))  # a JPEG is decoded at a half, a quarter or an eighth of its size
    turned = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))  # ImageOps.exif_transpose trips over what else is in there
    upright = image.transpose(turned) if turned is not None else image
    if upright.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    seen = upright.convert("LA" if upright.has_transparency_data else "L")
    factor = max(seen.size) / longest if longest else 1
    if factor > 1:
        width, height = (max(1, round(side / factor)) for side in seen.size)
        seen = seen.resize((width, height), Image.Resampling.BOX)
    if seen.mode == "L":
        return np.asarray(seen)
    grey, ink = np.moveaxis(np.asarray(seen, np.float64), 2, 0)
    paper = 0 if np.average(grey, weights=ink + 1e-9) > 127 else 255
    laid_on_paper: NDArray[np.uint8] = np.round(paper + (grey - paper) * ink / 255).astype(np.uint8)
    return laid_on_paper


def frame_crop(content: bytes) -> NDArray[np.uint8]:
    """The digit of a PNG or JPEG as MNIST frames it, (28, 28) uint8; all 0 where no ink is seen. Raises CropError."""
    return frame(find_ink(decode(content, LONGEST)))
