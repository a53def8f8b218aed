"""Image files on disk, framed here as the server frames crops."""

from pathlib import Path

from serving.client.image_files import ImageError, light_ink, parse_raw, read_file
from serving.client.requests import SIDE
from serving.imaging.decode import LONGEST, CropError, Framed, decode, frame_grey


def read_framed(path: Path) -> Framed:
    """Reads one digit from a PNG, a JPEG, or a file of 784 raw bytes, and frames an image that is not 28x28 pixels.

    Returns:
        The image, and False where its framing doubts that it shows one whole digit. An image of 28x28 pixels is not framed,
        and never doubted.

    Raises:
        ImageError: the file can't be read, is not an image of the accepted kinds, or shows no ink.
    """
    content = read_file(path)
    pixels = parse_raw(content)
    if pixels is None:
        try:
            pixels = decode(content, LONGEST)
        except CropError as error:
            raise ImageError(str(error)) from error
    if pixels.shape == (SIDE, SIDE):
        return Framed(light_ink(pixels), whole=True)
    framed = frame_grey(pixels)
    if not framed.image.any():
        raise ImageError("no ink is seen on it")
    return framed
