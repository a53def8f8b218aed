"""A piece of bytes that is copied many times at once, each copy with values of its own."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import DTypeLike, NDArray


class ByteTemplate:
    """Bytes with named fields at fixed places.

    Attributes:
        size: length in bytes.
    """

    def __init__(self, content: bytes, fields: Mapping[str, tuple[int, DTypeLike]]):
        """Takes the bytes that all copies share.

        Args:
            content: the bytes.
            fields: the place of each field, from 0, and its type, by its name.
        """
        self.size = len(content)
        self._content = content
        self._layout = np.dtype(
            {
                "names": list(fields),
                "formats": [np.dtype(kind) for _, kind in fields.values()],
                "offsets": [place for place, _ in fields.values()],
                "itemsize": self.size,
            }
        )
        self._whole = np.dtype(f"V{self.size}")

    def copies(self, count: int) -> NDArray[np.void]:
        """Makes copies, (count,), whose fields a caller sets by their names."""
        return np.frombuffer(bytearray(self._content * count), self._layout)

    def split(self, copies: NDArray[np.void]) -> list[bytes]:
        """Returns the bytes of each copy."""
        split: list[bytes] = copies.view(self._whole).tolist()
        return split
