"""Encodes fields of a message from arrays or encoded content, without a Python object for each value."""

import numpy as np
from numpy.typing import NDArray

_LENGTH_DELIMITED = 2  # the wire type of a packed field


def pack_floats(field: int, values: NDArray[np.float32]) -> bytes:
    """Encodes a repeated float.

    The encoding is a message that has only this field; a parser merges encoded messages that follow each other.
    Source: protobuf.dev, "Encoding", sections "Packed Repeated Fields" and "Last One Wins".

    Args:
        field: number of the field.
        values: (...) float32, in row-major order.
    """
    return pack_message(field, values.astype("<f4", copy=False).tobytes())


def pack_small(field: int, values: NDArray[np.uint8]) -> bytes:
    """Encodes a repeated integer or enum; like `pack_floats`.

    Args:
        field: number of the field.
        values: (n,) uint8, from 0 to 127, which take one byte each.
    """
    return pack_message(field, values.tobytes())


def pack_message(field: int, content: bytes) -> bytes:
    """Encodes a field whose content is encoded already: a message, or packed values; like `pack_floats`."""
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Encodes a number by seven bits a byte, the lowest first; the highest bit of a byte says that another follows."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
