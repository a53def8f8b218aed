"""Reads the wire format of protobuf without building messages. Source: protobuf.dev, "Encoding"."""

import functools
import time
from typing import TypeAlias, TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from serving.api.side_thread import LONG_BYTES
from serving.errors import InvalidRequest

MOST_FIELDS = 100_000
"""Fields of a long message, at most. A parser takes 4 ms for them, and some megabytes."""

VARINT, FIXED_64, LENGTH_DELIMITED, GROUP, END_OF_GROUP, FIXED_32 = range(6)

_LONGEST_VARINT = 10  # bytes

# Bytes of packed numbers that count as one field: the parser takes about as long for both.
_PACKED_BYTES = 8

Parsed = TypeVar("Parsed", bound=Message)

# The interpreter changes to a waiting thread only every 5 ms, and the event loop would wait so several times for each call.
_FIELDS_IN_A_ROW = 1000
_PAUSE_SECONDS = 0.00005

# Fields of an outline, and bytes of each. They bound what its parser gets to twice LONG_BYTES.
_OUTLINED_FIELDS = 256
_OUTLINED_BYTES = 1024

_GROUPS = {GROUP: 1, END_OF_GROUP: -1}  # the numbers of fields in an unknown group have other meanings

_Parts: TypeAlias = "dict[int, Descriptor | None]"
"""By field number: the kind of a nested message, or None for numbers that may be packed. Other fields have no entry."""


class TooManyFields(InvalidRequest):
    """A message has so many fields that building it would hold the interpreter."""


def parse_message(kind: type[Parsed], encoded: bytes) -> Parsed:
    """Builds a message, after its fields were counted if it is long.

    Raises:
        TooManyFields: building it would hold the interpreter for long.
        DecodeError: the bytes are not such a message.
    """
    if len(encoded) > LONG_BYTES:
        require_few_fields(encoded, cast(Descriptor, kind.DESCRIPTOR))
    return kind.FromString(encoded)


def require_few_fields(encoded: bytes, kind: Descriptor) -> None:
    """Counts the fields of a message, nested ones included: two bytes of an empty field become 100 bytes in memory.

    Call it outside the event loop: it pauses now and then. What follows a malformed part is not counted, as a parser stops
    there, too.

    Raises:
        TooManyFields: there are more than MOST_FIELDS. Packed numbers count by their bytes.
    """
    left, place = MOST_FIELDS, 0
    messages = [(len(encoded), kind)]  # the end and the kind of each message around the place
    try:
        while messages:
            end, descriptor = messages[-1]
            parts, groups = _parts(descriptor), 0
            while place < end:
                tag, place = read_varint(encoded, place)
                start, place = skip(encoded, place, tag & 7)
                left -= 1
                groups += _GROUPS.get(tag & 7, 0)
                is_part = tag & 7 == LENGTH_DELIMITED and not groups and tag >> 3 in parts
                part = parts[tag >> 3] if is_part else None
                if is_part and part is None:
                    left -= (place - start) // _PACKED_BYTES
                if left < 0:
                    raise TooManyFields(f"the {kind.full_name} has over {MOST_FIELDS} fields, which is the limit")
                if not left % _FIELDS_IN_A_ROW:
                    time.sleep(_PAUSE_SECONDS)
                if part is not None and start < place <= end:
                    messages.append((place, part))
                    place = start
                    break
            else:
                messages.pop()
    except (IndexError, ValueError):
        return


def outline(encoded: bytes) -> bytes:
    """Returns the short fields of a message at its top level, such as its id, however long the message is.

    Raises:
        InvalidRequest: the message has more than 256 fields at its top level, or is malformed.
    """
    parts: list[bytes] = []
    place = 0
    try:
        for _ in range(_OUTLINED_FIELDS):
            if place >= len(encoded):
                break
            begin = place
            tag, place = read_varint(encoded, place)
            _, place = skip(encoded, place, tag & 7)
            if place - begin <= _OUTLINED_BYTES:
                parts.append(encoded[begin:place])
    except (IndexError, ValueError):
        raise InvalidRequest("the message is malformed") from None
    if place != len(encoded):
        raise InvalidRequest(f"the message has over {_OUTLINED_FIELDS} fields at its top level, or is malformed")
    return b"".join(parts)


def read_varint(encoded: bytes | memoryview, place: int) -> tuple[int, int]:
    """Returns a number and the place after it. Raises IndexError or ValueError where there is none."""
    number = encoded[place]
    if number < 128:
        return number, place + 1
    number &= 127
    for length in range(1, _LONGEST_VARINT):
        byte = encoded[place + length]
        number |= (byte & 127) << 7 * length
        if byte < 128:
            return number, place + length + 1
    raise ValueError("a number has over ten bytes")


def skip(encoded: bytes | memoryview, place: int, wire_type: int) -> tuple[int, int]:
    """Returns where the content of a field starts and ends, given the place after its tag.

    Raises:
        IndexError, ValueError: there is no such field.
    """
    if wire_type == LENGTH_DELIMITED:
        size, place = read_varint(encoded, place)
        return place, place + size
    if wire_type == VARINT:
        return place, read_varint(encoded, place)[1]
    if wire_type in (FIXED_32, FIXED_64):
        return place, place + (4 if wire_type == FIXED_32 else 8)
    if wire_type in (GROUP, END_OF_GROUP):  # the fields of a group count like those around it
        return place, place
    raise ValueError(f"there is no wire type {wire_type}")


@functools.cache
def _parts(descriptor: Descriptor) -> _Parts:
    others = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
    return {field.number: field.message_type for field in descriptor.fields if field.type not in others}
