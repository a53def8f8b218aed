"""Bounds on what a request names: models, versions, keys, ids, lexicons and parameters."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from serving.errors import InvalidRequest

LONGEST_TEXT = 255
"""Characters of a text in a request, at most. The id of an answer has one byte for the length of its model's name."""

MOST_PARAMETERS = 64
"""Parameters of a request or a tensor, at most."""


def require_short_texts(message: Message) -> None:
    """Refuses a message with a text of more than 255 characters in one of its own fields, or with more than 64 parameters.

    Raises:
        InvalidRequest: a text is too long, or there are too many parameters.
    """
    for name in _text_fields(type(message)):
        length = len(getattr(message, name))
        if length > LONGEST_TEXT:
            raise InvalidRequest(f"{name} has {length} characters, expected {LONGEST_TEXT} at most")
    if "parameters" in message.DESCRIPTOR.fields_by_name:
        require_few_parameters(message)


def require_few_parameters(message: Any) -> None:
    """Refuses a message or tensor with more than 64 `parameters`. Raises InvalidRequest."""
    count = len(message.parameters)
    if count > MOST_PARAMETERS:
        raise InvalidRequest(f"there are {count} parameters, expected {MOST_PARAMETERS} at most")


_text_fields_of: dict[type[Message], tuple[str, ...]] = {}


def _text_fields(kind: type[Message]) -> tuple[str, ...]:
    """Returns the names of the fields that hold one text each."""
    if kind not in _text_fields_of:
        texts = [field.name for field in kind.DESCRIPTOR.fields if field.type == FieldDescriptor.TYPE_STRING]
        empty = kind()
        _text_fields_of[kind] = tuple(name for name in texts if isinstance(getattr(empty, name), str))
    return _text_fields_of[kind]
