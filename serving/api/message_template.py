"""An encoded message that is filled in for many answers at once."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from serving.answers.byte_template import ByteTemplate

Sample: TypeAlias = NDArray[Any] | np.generic


class MessageTemplate:
    """The encoding of a message whose answers differ only in fields of fixed length.

    A parser merges encoded messages that follow each other, and takes the fields of a message in any order. So the template
    is the encoding of what all answers share, followed by the encoding of each varying field, which ends with its value.
    Proto3 leaves out a field with the value 0, False or "". The template writes it; a parser reads both alike.
    Source: protobuf.dev, "Encoding", sections "Last One Wins" and "Field Order".
    """

    def __init__(self, shared: Message, varying: Mapping[str, tuple[Message, Sample]]):
        """Takes the parts of the message.

        Args:
            shared: a message with the fields that are the same in all answers.
            varying: for each field that varies, by a name of the caller's choice: a message that has only this field, with a
                sample value other than zero, and the bytes of that value as an array.

        Raises:
            ValueError: the encoding of a varying field does not end with the bytes of its sample.
        """
        content = shared.SerializeToString()
        fields: dict[str, tuple[int, Any]] = {}
        for name, (message, sample) in varying.items():
            content += message.SerializeToString()
            value = np.asarray(sample)
            if not content.endswith(value.tobytes()):
                raise ValueError(f"the encoding of {name} does not end with its value")
            fields[name] = (len(content) - value.nbytes, (value.dtype, value.shape))
        self._template = ByteTemplate(content, fields)

    def fill(self, count: int, values: Mapping[str, Any]) -> list[bytes]:
        """Encodes `count` messages.

        Args:
            count: number of messages.
            values: for each varying field, by its name: (count, ...) values, or one value for all.
        """
        copies = self._template.copies(count)
        for name, value in values.items():
            copies[name] = value
        return self._template.split(copies)
