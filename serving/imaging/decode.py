"""Decoder of crops: PNG or JPEG files of one digit on paper, to grey levels."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from serving.imaging.headers import CropError, Header, parse_header

cv2.setNumThreads(1)  # crops are small, and several threads frame them
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the error of a broken file goes to its caller

_UPRIGHT = {  # transposition, then mirroring, that undo each Exif orientation
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}
_SHRUNK = {  # JPEG: decoding at a fraction of the size, in grey or in colour
    2: (cv2.IMREAD_REDUCED_GRAYSCALE_2, cv2.IMREAD_REDUCED_COLOR_2),
    4: (cv2.IMREAD_REDUCED_GRAYSCALE_4, cv2.IMREAD_REDUCED_COLOR_4),
    8: (cv2.IMREAD_REDUCED_GRAYSCALE_8, cv2.IMREAD_REDUCED_COLOR_8),
}
_BETTER = 1.5  # a channel must part ink from paper this much better than the brightness does
_COLOURLESS = 8  # of 255; the channels of a grey picture differ by less, also after JPEG has rounded its colours
_SURROUNDINGS = (15, 15)  # pixels; wider than a stroke in a picture of 80 pixels
_DARKEST = 32  # of 255; in less light, noise would part as well as ink

Pixels = NDArray[np.uint8]


def decode(content: bytes, longest: int | None = None) -> Pixels:
    """Decodes a PNG or JPEG of any colour mode to grey levels, turned upright.

    Transparent pixels become paper: white under dark ink, black under light ink. Values of more than 8 bits are scaled to 8
    by the number of bits that the brightest one has. Of a coloured picture, the channel that parts ink from paper best is
    taken where the brightness parts them badly. Of several pictures in a file, the first is taken.

    Args:
        content: content of the file.
        longest: longer side to aim at, in pixels; a picture of over 1.5 times that is scaled down by a whole number. None
            keeps the size.

    Returns:
        (height, width) uint8, 0 black to 255 white.

    Raises:
        CropError: the file is neither PNG nor JPEG, is broken, or is too large or too costly to decode.
    """
    header = parse_header(content)
    factor = max(1, round(max(header.width, header.height) / longest)) if longest else 1
    pixels = _to_8_bits(_decode_pixels(header, factor))
    if longest:
        pixels = _shrink(pixels, max(1, round(max(pixels.shape[:2]) / longest)))
    grey = _to_grey(pixels)
    if header.orientation != 1:
        transpose, mirror = _UPRIGHT[header.orientation]
        grey = cv2.transpose(grey) if transpose else grey
        grey = cv2.flip(grey, mirror) if mirror is not None else grey
    return grey


def _decode_pixels(header: Header, factor: int) -> NDArray[np.uint8 | np.uint16]:
    """Returns (height, width) or (height, width, 3 or 4), BGR or BGRA. Pictures of `factor` 2 or more may be smaller."""
    flags = cv2.IMREAD_UNCHANGED
    if header.channels and factor >= 2 and header.pixels[0] == 0xFF:
        part = next(size for size in (8, 4, 2) if factor >= size)
        flags = _SHRUNK[part][header.channels > 1] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels: NDArray[np.uint8 | np.uint16] | None = cv2.imdecode(np.frombuffer(header.pixels, np.uint8), flags)
    except cv2.error as error:
        raise CropError(f"the file is broken: {error.err}") from None
    if pixels is None:
        raise CropError("the file is broken: its pixels can't be decoded")
    if header.transparent_grey is not None and pixels.ndim == 2:
        visible = np.where(pixels == header.transparent_grey, 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
        pixels = np.dstack([pixels, pixels, pixels, visible])
    return pixels


def _to_8_bits(pixels: NDArray[np.uint8 | np.uint16]) -> NDArray[np.uint8]:
    """Drops the lowest bits of 16; cameras store 10 or 12 bits in 16, so the brightest pixel tells how many there are."""
    unused = max(int(pixels.max()).bit_length() - 8, 0) if pixels.dtype == np.uint16 else 0
    return (pixels >> unused if unused else pixels).astype(np.uint8, copy=False)


def _shrink(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Scales down by a whole number, which is several times as fast as by a fraction. Odd rows at the end are left out."""
    if factor == 1:
        return pixels
    height, width = (max(1, side // factor) for side in pixels.shape[:2])
    whole = pixels[: height * factor, : width * factor]
    shrunk: NDArray[np.uint8] = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    return shrunk


def _to_grey(pixels: NDArray[np.uint8]) -> Pixels:
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 4:
        pixels = _put_on_paper(pixels)
    channels: Sequence[Pixels] = cv2.split(pixels)
    blue, green, red = channels
    if cv2.norm(blue, green, cv2.NORM_INF) < _COLOURLESS and cv2.norm(red, green, cv2.NORM_INF) < _COLOURLESS:
        return green
    grey: Pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    partings = [_parting(channel) for channel in channels]
    best = max(partings)
    return channels[partings.index(best)] if best > _BETTER * _parting(grey) else grey


def _parting(channel: Pixels) -> float:
    """Measures how far details stand out from their surroundings, relative to the light: strokes do, slow light does not."""
    level = cv2.blur(channel, _SURROUNDINGS)
    return float(cv2.norm(channel, level, cv2.NORM_L2)) / max(float(cv2.mean(level)[0]), _DARKEST)


def _put_on_paper(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Puts (height, width, 4) BGRA on white or black, whichever differs more from what is visible."""
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(colours)
    share = alpha / np.float32(255)
    visible = float((colours * share).sum() / max(3 * float(share.sum()), 1e-9))  # mean of three channels; 0 if none is
    paper = 0 if visible > 127 else 255  # the further of the two
    on_paper: NDArray[np.uint8] = np.round(paper + (colours - np.float32(paper)) * share).astype(np.uint8)
    return on_paper
