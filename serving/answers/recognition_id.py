"""Recognition id: an answer, packed and signed, so that any replica can count its truth later without stored state."""

import base64
import binascii
import functools
import hashlib
import hmac
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.answers.decision import Decision
from serving.answers.lexicon import LONGEST
from serving.errors import InvalidRequest

HEADER = struct.Struct("<BBBB8sI")  # format, is a field, bytes of model name, bytes of version, nonce, number of digits
NONCE_BYTES = 8
TAG_BYTES = 16
AUDITED = 0x80  # flag in the byte of a decision
MOST_DIGITS = 1_000_000
"""Digits of one answer, at most, under any setting: an id stays valid where a later setting allows fewer."""

LONG_ID = 1 << 16
"""Characters of an id with about 12,000 digits."""

_FORMAT = 1
_LONGEST_NAME = 255  # bytes of the name of a model, and of its version: each length is one byte
_MOST_CHARACTERS = -(-(HEADER.size + 2 * _LONGEST_NAME + 4 * MOST_DIGITS + TAG_BYTES) // 3) * 4
_DECISIONS = frozenset(int(decision) for decision in Decision if decision)


@dataclass(eq=False, slots=True)
class Recognized:
    """Content of a recognition id.

    Attributes:
        model: name of the model.
        version: version that answered, a decimal integer.
        of_field: True if the n digits are one field, with one decision and one confidence.
        digits: n digits, one byte each, from 0 to 9.
        decisions: Decisions, one byte each, never UNSPECIFIED: n, or 1 for a field.
        audited: True for each decision that was chosen for audit: n, or 1 for a field.
        confidences: confidences, from 0 to 1: n, or 1 for a field. An id keeps them in steps of 1/65,535.
        nonce: 8 random bytes, which make the id unique.
    """

    model: str
    version: str
    of_field: bool
    digits: bytes
    decisions: bytes
    audited: Sequence[bool]
    confidences: Sequence[float]
    nonce: bytes = field(default_factory=functools.partial(os.urandom, NONCE_BYTES))


class RecognitionIds:
    """Issues recognition ids, and parses them."""

    def __init__(self, keys: Sequence[bytes] = ()):
        """Takes the signing keys.

        Args:
            keys: the first key signs, and every key verifies. Without keys, ids are unsigned, and any id is accepted.
        """
        self._keys = keys

    @property
    def signed(self) -> bool:
        """True if an id proves that this service has issued it."""
        return bool(self._keys)

    @property
    def signing_key(self) -> bytes | None:
        """The key that signs; None where ids are unsigned."""
        return self._keys[0] if self._keys else None

    def issue(self, answer: Recognized) -> str:
        """Packs an answer into its id: URL-safe base64 without padding."""
        levels = [min(round(share * 65535), 65535) for share in answer.confidences]
        marked = zip(answer.decisions, answer.audited, strict=True)
        payload = b"".join(
            (
                pack_head(answer.model, answer.version, len(answer.digits), of_field=answer.of_field, nonce=answer.nonce),
                answer.digits,
                bytes([decision | AUDITED if audited else decision for decision, audited in marked]),
                struct.pack(f"<{len(levels)}H", *levels),
            )
        )
        tag = sign(self._keys[0], payload) if self._keys else b""
        return base64.urlsafe_b64encode(payload + tag).decode().rstrip("=")

    def parse(self, text: str) -> Recognized:
        """Parses an id. It takes time by the digit: parse an id of over LONG_ID characters outside the event loop.

        Raises:
            InvalidRequest: the text is not a recognition id, or its signature matches none of the keys.
        """
        if len(text) > _MOST_CHARACTERS:
            raise InvalidRequest(
                f"a recognition id of {len(text)} characters was not issued here: they have {_MOST_CHARACTERS} at most"
            )
        try:
            content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            form, of_field, name_length, number_length, nonce, count = HEADER.unpack_from(content)
            decided = 1 if of_field else count
            lengths = (name_length, number_length, count, decided, 2 * decided)
            size = HEADER.size + sum(lengths)
            payload, tag = content[:size], content[size:]
            if form != _FORMAT or of_field > 1 or not count or len(payload) != size or len(tag) not in (0, TAG_BYTES):
                raise ValueError
            # The signature comes before all that takes longer the longer the id is.
            if self._keys and not any(hmac.compare_digest(sign(key, payload), tag) for key in self._keys):
                raise InvalidRequest(f"recognition id {text[:40]!r} was not issued here: its signature is wrong")
            name, number, digits, marked, levels = _split(payload[HEADER.size :], *lengths)
            decisions = bytes([mark & ~AUDITED for mark in marked])
            audited = [mark & AUDITED > 0 for mark in marked]
            for decision, is_audited in zip(decisions, audited, strict=True):
                if decision not in _DECISIONS or (is_audited and decision != Decision.ACCEPT):
                    raise ValueError
            if max(digits) > 9 or (of_field and count > LONGEST):
                raise ValueError
            confidences = [level / 65535 for level in struct.unpack(f"<{decided}H", levels)]
            named = (name.decode(), number.decode(), bool(of_field))
            answer = Recognized(*named, digits, decisions, audited, confidences, nonce)
        except (binascii.Error, struct.error, ValueError):
            raise InvalidRequest(f"{text[:40]!r} is not a recognition id, expected the id of an answer") from None
        return answer


def pack_head(model: str, version: str, count: int, *, of_field: bool = False, nonce: bytes = bytes(NONCE_BYTES)) -> bytes:
    """Packs what precedes the `count` digits in an id."""
    name, number = model.encode(), version.encode()
    return HEADER.pack(_FORMAT, of_field, len(name), len(number), nonce, count) + name + number


def sign(key: bytes, payload: bytes) -> bytes:
    """Returns the tag that follows the payload of an id."""
    return hmac.digest(key, payload, hashlib.sha256)[:TAG_BYTES]


def _split(content: bytes, *lengths: int) -> list[bytes]:
    parts, start = [], 0
    for length in lengths:
        parts.append(content[start : start + length])
        start += length
    return parts
