"""The id of an answer: all that is needed to count its truth later, on any replica, and proof that it was given here."""

import base64
import binascii
import hashlib
import hmac
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.credentials import CredentialsError, read
from serving.decision import Decision
from serving.errors import InvalidRequest
from serving.lexicon import LONGEST

LEAST_KEY_BYTES = 16

_FORMAT = 1
_HEADER = struct.Struct("<BBBB8sI")  # format, of a field, bytes of the model's name and of its version, nonce, digits
_TAG_BYTES = 16
_AUDITED = 0x80  # beside the decision, in one byte
_DECISIONS = [decision for decision in Decision if decision]


@dataclass(frozen=True, eq=False)
class Recognized:
    """An answer, as its id holds it.

    Attributes:
        model: its name.
        version: that answered, a decimal integer.
        of_field: whether the digits are one field, with one decision and one confidence.
        digits: (n,) integers, as they were read.
        decisions: (n,) uint8, or (1,) of a field: a Decision each, never UNSPECIFIED.
        audited: likewise, bool, whether the answer was chosen to be audited.
        confidences: likewise, floats; read from an id, to a 65,535th.
        nonce: 8 bytes that no other answer has.
    """

    model: str
    version: str
    of_field: bool
    digits: NDArray[np.integer]
    decisions: NDArray[np.uint8]
    audited: NDArray[np.bool_]
    confidences: NDArray[np.floating]
    nonce: bytes = field(default_factory=lambda: os.urandom(8))


class RecognitionIds:
    """Issues ids and reads them."""

    def __init__(self, keys: Sequence[bytes] = ()):
        """Signs with the first key, and takes what any of them has signed; without keys, takes any id."""
        self._keys = keys

    @classmethod
    def from_file(cls, path: Path) -> "RecognitionIds":
        """Takes the keys from a file, one a line, of 16 bytes or more. Raises CredentialsError."""
        keys = [key for line in read(path).splitlines() if (key := line.strip())]
        if not keys or min(map(len, keys)) < LEAST_KEY_BYTES:
            raise CredentialsError(f"{path} should hold keys, one a line, of {LEAST_KEY_BYTES} characters or more")
        return cls(keys)

    @property
    def signed(self) -> bool:
        """Whether ids prove that they were issued here."""
        return bool(self._keys)

    def issue(self, answer: Recognized) -> str:
        """The id of an answer."""
        name, number = answer.model.encode(), answer.version.encode()
        payload = b"".join(
            (
                _HEADER.pack(_FORMAT, answer.of_field, len(name), len(number), answer.nonce, len(answer.digits)),
                name + number,
                answer.digits.astype(np.uint8).tobytes(),
                (answer.decisions | np.where(answer.audited, np.uint8(_AUDITED), np.uint8(0))).tobytes(),
                np.round(answer.confidences * 65535).astype("<u2").tobytes(),
            )
        )
        tag = _tag(self._keys[0], payload) if self._keys else b""
        return base64.urlsafe_b64encode(payload + tag).decode().rstrip("=")

    def read(self, text: str) -> Recognized:
        """What an id holds. Raises InvalidRequest when it is none, or was not issued with a key that is known here."""
        try:
            content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            form, of_field, name_length, number_length, nonce, count = _HEADER.unpack_from(content)
            decided = 1 if of_field else count
            lengths = (name_length, number_length, count, decided, 2 * decided)
            size = _HEADER.size + sum(lengths)
            payload, tag = content[:size], content[size:]
            if form != _FORMAT or of_field > 1 or not count or len(payload) != size or len(tag) not in (0, _TAG_BYTES):
                raise ValueError
            name, number, digits, marked, levels = _split(payload[_HEADER.size :], *lengths)
            model, version, digits_read = name.decode(), number.decode(), np.frombuffer(digits, np.uint8)
            marks = np.frombuffer(marked, np.uint8)
            decisions, audited = marks & ~np.uint8(_AUDITED), marks & _AUDITED > 0
            known = np.isin(decisions, _DECISIONS) & ~(audited & (decisions != Decision.ACCEPT))
            if digits_read.max() > 9 or not known.all() or (of_field and count > LONGEST):
                raise ValueError
        except (binascii.Error, struct.error, ValueError):
            raise InvalidRequest(f"{text[:40]!r} is no recognition id") from None
        if self._keys and not any(hmac.compare_digest(_tag(key, payload), tag) for key in self._keys):
            raise InvalidRequest(f"recognition id {text[:40]!r} was not issued here: its signature is wrong")
        confidences = (np.frombuffer(levels, "<u2") / 65535).astype(np.float32)
        return Recognized(model, version, bool(of_field), digits_read, decisions, audited, confidences, nonce)


def _tag(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, hashlib.sha256)[:_TAG_BYTES]


def _split(content: bytes, *lengths: int) -> list[bytes]:
    parts, start = [], 0
    for length in lengths:
        parts.append(content[start : start + length])
        start += length
    return parts
