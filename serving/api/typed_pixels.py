"""Pixels in typed contents of a long ModelInferRequest: read with NumPy, because protobuf holds the interpreter for them."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.api.packed import pack_message
from serving.api.wire import LENGTH_DELIMITED, read_varint, skip
from serving.errors import InvalidRequest
from serving.pb.inference import open_inference_pb2 as pb

_MOST_PARTS = 1000  # fields of a message that is cut: with more, it has no pixels in this form

_CHUNK_BYTES = 1 << 18  # decoded at once: NumPy holds the interpreter for some of the time

_INPUTS = pb.ModelInferRequest.INPUTS_FIELD_NUMBER
_CONTENTS = pb.ModelInferRequest.InferInputTensor.CONTENTS_FIELD_NUMBER
_VALUES = pb.InferTensorContents.UINT_CONTENTS_FIELD_NUMBER


class Cut(NamedTuple):
    """A request in two parts.

    Attributes:
        request: the encoded ModelInferRequest without its pixels.
        pixels: the packed content of `uint_contents`; None where the request has none that could be cut out.
    """

    request: bytes
    pixels: memoryview | None


def cut_pixels(encoded: bytes) -> Cut:
    """Cuts `uint_contents` out of a request with one input. A request of any other form stays whole."""
    try:
        before, tensor, after = _cut(memoryview(encoded), _INPUTS)
        tensor_before, contents, tensor_after = _cut(tensor, _CONTENTS)
        contents_before, pixels, contents_after = _cut(contents, _VALUES)
    except (IndexError, ValueError):
        return Cut(encoded, None)
    rest = pack_message(_CONTENTS, b"".join((contents_before, contents_after)))
    rest = pack_message(_INPUTS, b"".join((tensor_before, rest, tensor_after)))
    return Cut(b"".join((before, rest, after)), pixels)


def decode_pixels(packed: bytes | memoryview) -> bytes:
    """Decodes packed varints from 0 to 255 to one byte each.

    Raises:
        InvalidRequest: a value is over 255, or the last one is incomplete.
    """
    encoded, parts, start = np.frombuffer(packed, np.uint8), [], 0
    while start < len(encoded):
        end = min(start + _CHUNK_BYTES, len(encoded))
        if end < len(encoded) and encoded[end - 1] >= 128:
            end += 1
        parts.append(_decode(encoded[start:end]).tobytes())
        start = end
    return b"".join(parts)


def _decode(encoded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Decodes (n,) uint8 of varints: one byte below 128, or two, whose second holds the eighth bit."""
    continued = encoded >= 128
    second = np.append(False, continued[:-1])
    high = encoded[second]
    if continued[-1] or (continued & second).any() or (high > 1).any():
        raise InvalidRequest("images holds a value over 255, expected UINT8: 0 to 255")
    values: NDArray[np.uint8] = encoded[~second]
    values[values >= 128] = values[values >= 128] & 127 | high << 7
    return values


def _cut(encoded: memoryview, number: int) -> tuple[memoryview, memoryview, memoryview]:
    """Splits a message into what precedes its one field of a number, the content of the field, and what follows.

    Raises:
        IndexError, ValueError: the message is malformed, or does not have exactly one such field.
    """
    place, left = 0, _MOST_PARTS
    found: list[int] = []
    while place < len(encoded):
        left -= 1
        if left < 0:  # fifteen megabytes of small fields would take the thread for seconds
            raise ValueError("another form")
        tag_at = place
        tag, place = read_varint(encoded, place)
        start, place = skip(encoded, place, tag & 7)
        if tag >> 3 == number:
            if tag & 7 != LENGTH_DELIMITED or found:
                raise ValueError("another form")
            found = [tag_at, start, place]
    if not found or place != len(encoded):
        raise ValueError("another form")
    return encoded[: found[0]], encoded[found[1] : found[2]], encoded[found[2] :]
