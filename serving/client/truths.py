"""Builds the requests of ReportTruth, from answers or from their stored ids."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from ..pb.digits.v1 import digit_service_pb2 as pb
from .answers import Field, Recognition

# An answer or its id with the true value; or an id, the index of the digit in its call, and the true digit.
Truth: TypeAlias = (
    tuple[Recognition | Field | str, str | int | np.integer[Any]] | tuple[str, int, str | int | np.integer[Any]]
)

NO_DIGIT = "x"
"""True value of an image that does not show one whole digit; in the value of a field, it stands for such an image."""

_SOURCES = {name.removeprefix("TRUTH_SOURCE_").lower(): name for name, number in pb.TruthSource.items() if number}
_EXPECTED = "expected (answer, value), (recognition_id, value) or (recognition_id, index, value)"
_INDEX_LIMIT = 1 << 32  # digits.v1 carries the index as uint32


def truth_request(truths: Iterable[Truth], source: str) -> pb.ReportTruthRequest:
    """Builds the request for truths, grouped by id.

    Raises:
        TypeError: an item does not have one of the three forms of `Truth`.
        ValueError: the source is unknown, or an index is out of range.
    """
    if source not in _SOURCES:
        raise ValueError(f"source is {source!r}, expected one of {', '.join(_SOURCES)}")
    if isinstance(truths, (str, bytes)) or not isinstance(truths, Iterable):
        raise TypeError(f"truths has type {type(truths).__name__}, expected a list of truths; of each {_EXPECTED}")
    by_id: dict[str, pb.Truth] = {}
    for number, item in enumerate(truths):
        recognition_id, index, value = _parts(item, f"truths[{number}]")
        truth = pb.Truth(recognition_id=recognition_id, source=_SOURCES[source])
        by_id.setdefault(recognition_id, truth).values[index] = value
    return pb.ReportTruthRequest(truths=by_id.values())


def _parts(item: object, name: str) -> tuple[str, int, str]:
    """Returns the id, the index and the value of one truth. Raises TypeError or ValueError."""
    if not isinstance(item, (tuple, list)) or len(item) not in (2, 3):
        count = f" and {len(item)} elements" if isinstance(item, (tuple, list)) else ""
        raise TypeError(f"{name} has type {type(item).__name__}{count}, {_EXPECTED}")
    answer, value = item[0], item[-1]
    if isinstance(answer, (Recognition, Field)) and len(item) == 2:
        recognition_id, index = answer.recognition_id, answer.place
    elif isinstance(answer, str):
        recognition_id, index = answer, item[1] if len(item) == 3 else 0
    else:
        raise TypeError(f"{name} starts with type {type(answer).__name__}, {_EXPECTED}")
    if not _is_integer(index):
        raise TypeError(f"{name} has an index of type {type(index).__name__}, expected an int, from 0")
    if not 0 <= index < _INDEX_LIMIT:
        raise ValueError(f"{name} has the index {index}, expected the index of an image in its call, from 0")
    if not (isinstance(value, str) or _is_integer(value)):
        raise TypeError(
            f"{name} has a value of type {type(value).__name__}, expected a digit, or a str of digits for a field; in both, "
            f"NO_DIGIT, {NO_DIGIT!r}, stands for an image of no digit"
        )
    return recognition_id, int(index), str(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
