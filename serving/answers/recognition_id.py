"""The id of an answer: all that is needed to count its truth later, on any replica, and proof that it was given here."""

import base64
import binascii
import hashlib
import hmac
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.answers.decision import Decision
from serving.answers.lexicon import LONGEST
from serving.errors import InvalidRequest

_FORMAT = 1
_HEADER = struct.Struct("<BBBB8sI")  # format, of a field, bytes of the model's name and of its version, nonce, digits
_TAG_BYTES = 16
_AUDITED = 0x80  # beside the decision, in one byte
_DECISIONS = frozenset(int(decision) for decision in Decision if decision)


@dataclass(frozen=True, eq=False)
class Recognized:
    """An answer, as its id holds it.

    Attributes:
        model: its name.
        version: that answered, a decimal integer.
        of_field: whether the digits are one field, with one decision and one confidence.
        digits: n of them, as they were read.
        decisions: n, or 1 of a field: a Decision each, never UNSPECIFIED.
        audited: likewise, whether the answer was chosen to be audited.
        confidences: likewise; read from an id, to a 65,535th.
        nonce: 8 bytes that no other answer has.
    """

    model: str
    version: str
    of_field: bool
    digits: bytes
    decisions: bytes
    audited: Sequence[bool]
    confidences: Sequence[float]
    nonce: bytes = field(default_factory=lambda: os.urandom(8))


class RecognitionIds:
    """Issues ids and reads them."""

    def __init__(self, keys: Sequence[bytes] = ()):
        """Signs with the first key, and takes what any of them has signed; without keys, takes any id."""
        self._keys = keys

    @property
    def signed(self) -> bool:
        """Whether ids prove that they were issued here."""
        return bool(self._keys)

    def issue(self, answer: Recognized) -> str:
        """The id of an answer."""
        name, number = answer.model.encode(), answer.version.encode()
        levels = [min(round(share * 65535), 65535) for share in answer.confidences]
        marked = zip(answer.decisions, answer.audited, strict=True)
        payload = b"".join(
            (
                _HEADER.pack(_FORMAT, answer.of_field, len(name), len(number), answer.nonce, len(answer.digits)),
                name + number,
                answer.digits,
                bytes([decision | _AUDITED if audited else decision for decision, audited in marked]),
                struct.pack(f"<{len(levels)}H", *levels),
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
            decisions = bytes([mark & ~_AUDITED for mark in marked])
            audited = [mark & _AUDITED > 0 for mark in marked]
            for decision, of_audit in zip(decisions, audited, strict=True):
                if decision not in _DECISIONS or (of_audit and decision != Decision.ACCEPT):
                    raise ValueError
            if max(digits) > 9 or (of_field and count > LONGEST):
                raise ValueError
            confidences = [level / 65535 for level in struct.unpack(f"<{decided}H", levels)]
            named = (name.decode(), number.decode(), bool(of_field))
            answer = Recognized(*named, digits, decisions, audited, confidences, nonce)
        except (binascii.Error, struct.error, ValueError):
            raise InvalidRequest(f"{text[:40]!r} is no recognition id") from None
        if self._keys and not any(hmac.compare_digest(_tag(key, payload), tag) for key in self._keys):
            raise InvalidRequest(f"recognition id {text[:40]!r} was not issued here: its signature is wrong")
        return answer


def _tag(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, hashlib.sha256)[:_TAG_BYTES]


def _split(content: bytes, *lengths: int) -> list[bytes]:
    parts, start = [], 0
    for length in lengths:
        parts.append(content[start : start + length])
        start += length
    return parts
