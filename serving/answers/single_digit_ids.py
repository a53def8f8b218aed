"""Recognition ids of answers with one digit each, of one model version, issued at once."""

import base64
import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.answers.byte_template import ByteTemplate
from serving.answers.recognition_id import AUDITED, HEADER, NONCE_BYTES, TAG_BYTES, RecognitionIds, pack_head, sign

_NONCE_PLACE = HEADER.size - 4 - NONCE_BYTES  # four bytes with the number of digits follow the nonce


class IssuedIds(NamedTuple):
    """The ids of n answers.

    Attributes:
        nonces: n times 8 random bytes.
        characters: (n, length) uint8, the ids in ASCII.
    """

    nonces: bytes
    characters: NDArray[np.uint8]


class SingleDigitIds:
    """Issues ids like `RecognitionIds.issue`, for many answers at once.

    Attributes:
        length: characters of an id.
    """

    def __init__(self, ids: RecognitionIds, model: str, version: str):
        """Takes the signing key of `ids`, and the name and the version of the model that answers."""
        self._key = ids.signing_key
        head = pack_head(model, version, count=1)
        digit = len(head)
        self._payload_bytes = digit + 4
        content_bytes = self._payload_bytes + (TAG_BYTES if self._key else 0)
        self.length = -(-content_bytes * 4 // 3)
        # Base64 writes four characters for three bytes: an id is filled up with zeros, whose characters are cut off again.
        fields = {
            "nonce": (_NONCE_PLACE, f"V{NONCE_BYTES}"),
            "digit": (digit, "u1"),
            "decision": (digit + 1, "u1"),
            "level": (digit + 2, "<u2"),
        }
        if self._key:
            fields["tag"] = (self._payload_bytes, f"V{TAG_BYTES}")
        self._template = ByteTemplate(head.ljust(-(-content_bytes // 3) * 3, b"\0"), fields)

    def issue(
        self,
        digits: NDArray[np.uint8],
        decisions: NDArray[np.uint8],
        audited: NDArray[np.bool_],
        confidences: NDArray[np.float32],
    ) -> IssuedIds:
        """Issues the ids of n answers; each argument has shape (n,)."""
        count = len(digits)
        nonces = os.urandom(NONCE_BYTES * count)
        contents = self._template.copies(count)
        contents["nonce"] = np.frombuffer(nonces, f"V{NONCE_BYTES}")
        contents["digit"] = digits
        contents["decision"] = decisions | AUDITED * audited.view(np.uint8)
        contents["level"] = np.minimum(np.rint(confidences * np.float64(65535)), 65535)
        if self._key:
            payloads = [content[: self._payload_bytes] for content in self._template.split(contents)]
            tags = b"".join([sign(self._key, payload) for payload in payloads])
            contents["tag"] = np.frombuffer(tags, f"V{TAG_BYTES}")
        text = np.frombuffer(base64.urlsafe_b64encode(contents.data), np.uint8)
        return IssuedIds(nonces, text.reshape(count, -1)[:, : self.length])
