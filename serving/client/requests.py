"""Checks images and crops, and builds the requests. Errors state what came, what is expected, and how to convert."""

from collections.abc import Iterable
from os import PathLike
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..pb.digits.v1 import digit_service_pb2 as pb

SIDE = 28  # pixels of an image

_SIGNATURES = (b"\x89PNG", b"\xff\xd8")

Crop: TypeAlias = bytes | bytearray | memoryview
Image: TypeAlias = NDArray[np.uint8] | Crop
Images: TypeAlias = NDArray[np.uint8] | Iterable[Crop]

_ONE = "expected one image, a (28, 28) uint8 array, or one crop, the bytes of a PNG or JPEG file"
EMPTY_CROP = f"image is an empty crop, {_ONE}"
_MANY = "expected an (n, 28, 28) uint8 array, or a list of crops, each the bytes of a PNG or JPEG file"


def image_request(
    image: Image, model: str, key: str, target_error_rate: float, priority: pb.Priority
) -> pb.RecognizeRequest:
    """Builds the request for one image.

    Returns:
        The request. An empty crop leaves it without an image, because digits.v1 can't send an empty crop here.

    Raises:
        TypeError: `image` is neither an array nor bytes-like.
        ValueError: the array has another shape, dtype or range.
    """
    request = pb.RecognizeRequest(model=model, key=key, target_error_rate=target_error_rate, priority=priority)
    if isinstance(image, np.ndarray) and not _is_file(image):
        request.image = _checked(image, one=True).tobytes()
    else:
        request.crop = _crop(image, "image", _ONE)
    return request


def put_images(images: Images, request: pb.RecognizeBatchRequest | pb.ReadFieldRequest) -> None:
    """Puts n images or n crops into a request.

    Raises:
        TypeError: `images` is neither an array nor an iterable of bytes-like crops.
        ValueError: the array has another shape, dtype or range, or there are no images.
    """
    if isinstance(images, np.ndarray) and not _is_file(images):
        request.images = _checked(images, one=False).tobytes()
        return
    if isinstance(images, (str, bytes, bytearray, memoryview, np.ndarray)) or not isinstance(images, Iterable):
        hint = (
            ""
            if isinstance(images, str) or not isinstance(images, Crop | np.ndarray)
            else "; put one crop in a list: [crop]"
        )
        raise TypeError(f"images has type {type(images).__name__}, {_MANY}{hint}")
    crops = [_crop(crop, f"images[{index}]", _MANY) for index, crop in enumerate(images)]
    if not crops:
        raise ValueError(f"images is empty, {_MANY}, n at least 1")
    request.crops.extend(crops)


def is_empty(request: pb.RecognizeRequest) -> bool:
    """Returns True if the request was built from an empty crop."""
    return not request.crop and not request.image


def _is_file(array: NDArray[np.generic]) -> bool:
    """Returns True for a flat array that holds the bytes of an image file, as np.fromfile and OpenCV return them."""
    if array.ndim != 1 or array.dtype != np.uint8:
        return False
    return len(array) != SIDE * SIDE or array[:4].tobytes().startswith(_SIGNATURES)


def _crop(crop: object, name: str, expected: str) -> bytes:
    """Returns the bytes of anything that has the buffer protocol, such as bytearray, memoryview and mmap."""
    if isinstance(crop, np.ndarray):
        if _is_file(crop):
            return crop.tobytes()
        raise TypeError(f"{name} is an array in a list, {expected}; join arrays with np.stack(images)")
    try:
        if isinstance(crop, np.generic):  # a single number has the buffer protocol, too
            raise TypeError
        return crop if isinstance(crop, bytes) else bytes(memoryview(crop))  # type: ignore[arg-type]
    except TypeError:
        is_path = isinstance(crop, (str, PathLike))
        hint = "; read the file first: Path(path).read_bytes()" if is_path else ""
        raise TypeError(f"{name} has type {type(crop).__name__}, {expected}{hint}") from None


def _checked(images: NDArray[np.uint8], *, one: bool) -> NDArray[np.uint8]:
    expected = "(28, 28)" if one else "(n, 28, 28), n at least 1,"
    axes = 2 if one else 3
    if images.dtype == np.uint8 and images.ndim == axes and images.shape[-2:] == (SIDE, SIDE) and len(images):
        _refuse_scaled(images)
        return images
    hint = _shape_hint(images.shape, one=one) or _dtype_hint(images)
    raise ValueError(f"images have shape {images.shape} and dtype {images.dtype}, expected {expected} and uint8: {hint}")


def _refuse_scaled(images: NDArray[np.uint8]) -> None:
    """Refuses images whose values are all 0 or 1. An image of zeros alone is blank paper, and may be sent.

    Raises:
        ValueError: an image was scaled.
    """
    darkest = images.max(axis=(-2, -1))
    if (scaled := np.flatnonzero(darkest == 1)).size:
        which = "image" if images.ndim == 2 else f"images[{scaled[0]}]"
        raise ValueError(f"the values of {which} are all 0 or 1, expected 0 (paper) to 255 (ink): multiply them by 255")


def _shape_hint(shape: tuple[int, ...], *, one: bool) -> str:
    """Explains how to convert an array of this shape; "" if the shape is right."""
    axes = 2 if one else 3
    if shape and shape[-1] == SIDE * SIDE:
        return f"the pixels are flat, convert with images.reshape({'28, 28' if one else '-1, 28, 28'})"
    if len(shape) == axes + 1 and shape[axes - 2 : axes] == (SIDE, SIDE) and shape[-1] in (1, 2, 3, 4):
        return "the last axis holds colours, convert the images to one channel of grey"
    if one and len(shape) == 3 and shape[1:] == (SIDE, SIDE):
        return "this is a batch, call recognize_batch"
    if not one and shape == (SIDE, SIDE):
        return "this is one image, call recognize or pass image[np.newaxis]"
    if len(shape) != axes or shape[-2:] != (SIDE, SIDE):
        return "send an image of another size as a crop, the bytes of a PNG or JPEG file"
    return "" if shape[0] else "there are no images"


def _dtype_hint(images: NDArray[np.generic]) -> str:
    """Explains how to convert an array of the right shape and another dtype, judged by the range of its values."""
    if images.dtype == np.bool_:
        return "convert with images.astype(np.uint8) * 255"
    if images.dtype.kind not in "iuf":
        return "the dtype is not a number"
    least, most = images.min().item(), images.max().item()
    if not (least >= 0 and most <= 255):  # also true for NaN
        return f"the values range from {least:g} to {most:g}, outside 0 (paper) to 255 (ink); undo the normalization"
    if images.dtype.kind == "f" and most <= 1:
        return "the values range from 0 to 1, convert with np.round(images * 255).astype(np.uint8)"
    return "convert with np.round(images).astype(np.uint8)"
