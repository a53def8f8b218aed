"""Parses the properties that a model file carries: its contract, accuracy, certified thresholds and drift reference."""

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import le
from typing import Any, Self

from prometheus_client.utils import floatToGoString

from serving import contract
from serving.answers.decision import Threshold
from serving.telemetry.histograms import CENTRE, INK
from serving.telemetry.log_text import clean

REFUSALS = ("unreadable", "contract", "self_check", "crashed", "hung", "memory", "environment")
"""Reasons to refuse a model file, as the metric digits_model_refused labels them: faults of the file, and the last."""

ENVIRONMENT = "environment"
"""The reason for which a version is tried again: a cause outside the file, such as permissions, a disk or a GPU."""

_MOST_MESSAGE = 400  # characters of an error, which may quote the file

# The bundled models have 7 KB of metadata in 21 properties.
_MOST_PROPERTIES = 100
_MOST_METADATA = 1 << 16  # characters
_MOST_NAME = 64  # characters of a recipe or a precision, which become labels of metrics
_LONGEST_FIELD = 1000  # digits

# json raises RecursionError for deep nesting, and float OverflowError for a whole number of many digits.
_MALFORMED = (ValueError, OverflowError, RecursionError)

_EDGES = {"ink": INK, "row": CENTRE, "column": CENTRE}


class ModelError(Exception):
    """A file that can't be served: not a model, against the contract, dangerous, or without its execution provider.

    The message is one line of bounded length, whatever the file says of itself.

    Attributes:
        reason: one of REFUSALS.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(clean(message, one_line=True, most=_MOST_MESSAGE))
        self.reason = reason


@dataclass(frozen=True)
class ModelMetadata:
    """Properties of a model version, as its training wrote them into the ONNX file.

    Attributes:
        contract: version of the model contract that the file follows, "1" or "2".
        whole_threshold: least `whole` of an image that is answered as a digit, 0 to 1. 0 in version 1, which has no `whole`.
        recipe: name of the training recipe.
        test_accuracy: share of the MNIST test images recognized correctly, 0 to 1.
        precision: arithmetic of the network, "fp32" or "int8"; "" when the file states none.
        thresholds: certified for single digits, the largest target error rate first; empty when none is certified.
        field_thresholds: certified for fields, by the number of digits.
        drift_reference: share of the held-out training images in each bin, by feature and bin; empty when none is stated.
    """

    contract: str
    whole_threshold: float
    recipe: str
    test_accuracy: float
    precision: str
    thresholds: tuple[Threshold, ...]
    field_thresholds: Mapping[int, tuple[Threshold, ...]]
    drift_reference: Mapping[str, Mapping[str, float]]

    @classmethod
    def parse(cls, properties: Mapping[str, str]) -> Self:
        """Parses the custom metadata of an ONNX file.

        Raises:
            ModelError: a property is missing, or is not as the contract states it.
        """
        size = sum(len(name) + len(text) for name, text in properties.items())
        if len(properties) > _MOST_PROPERTIES or size > _MOST_METADATA:
            raise breach(
                f"its metadata are {len(properties)} properties of {size} characters, "
                f"expected at most {_MOST_PROPERTIES} of {_MOST_METADATA}"
            )
        missing = {"contract", "labels", "recipe", "test_accuracy"} - set(properties)
        if missing:
            raise breach(f"its metadata lack {', '.join(sorted(missing))}")
        labels = json.dumps(contract.LABELS)
        if properties["contract"] not in contract.OUTPUTS or properties["labels"] != labels:
            raise breach(
                f"version {properties['contract']!r} with labels {properties['labels']}, "
                f"where this server knows the versions {', '.join(contract.OUTPUTS)} with labels {labels}"
            )
        try:
            thresholds = parse_thresholds(properties.get("thresholds", "{}"))
            field_thresholds = parse_field_thresholds(properties.get("field_thresholds", "{}"))
        except _MALFORMED as error:
            raise breach(f"its thresholds are {error}") from error
        try:
            stated = properties.get("drift_reference")
            drift_reference = parse_drift_reference(stated) if stated is not None else {}
        except _MALFORMED as error:
            raise breach(f"its drift_reference is {error}") from error
        return cls(
            contract=properties["contract"],
            whole_threshold=_parse_whole_threshold(properties),
            recipe=_parse_name("recipe", properties["recipe"]),
            test_accuracy=_parse_share("test_accuracy", properties["test_accuracy"]),
            precision=_parse_name("precision", properties.get("precision", "")),
            thresholds=thresholds,
            field_thresholds=field_thresholds,
            drift_reference=drift_reference,
        )

    def missing_certificate(self, target_error_rate: float) -> str:
        """Explains that no threshold is certified for a target error rate; "" when one is."""
        if any(threshold.target_error_rate <= target_error_rate for threshold in self.thresholds):
            return ""
        return f"has no certified threshold for an error rate of {target_error_rate:g}: it accepts no digit"


def breach(reason: str) -> ModelError:
    """Builds the error for a file that breaks the contract."""
    return ModelError("contract", f"breaks the model contract: {reason}")


def parse_thresholds(text: str) -> tuple[Threshold, ...]:
    """Parses the certified thresholds of digits; returns the one for the largest error rate first.

    Args:
        text: {error rate: {"threshold": confidence, ...}, ...} as JSON.

    Raises:
        ValueError: the text has another form.
    """
    return _parse_thresholds(json.loads(text))


def parse_field_thresholds(text: str) -> dict[int, tuple[Threshold, ...]]:
    """Parses the certified thresholds of fields, by the number of digits.

    Args:
        text: {length: {error rate: {"threshold": confidence, ...}, ...}, ...} as JSON.

    Raises:
        ValueError: the text has another form.
    """
    stated = json.loads(text)
    if not isinstance(stated, dict):
        raise ValueError(f"not lengths with their thresholds: {text}")
    found = {int(length): _parse_thresholds(thresholds) for length, thresholds in stated.items()}
    if not all(1 <= length <= _LONGEST_FIELD for length in found):
        raise ValueError(f"not for lengths from 1 to {_LONGEST_FIELD}: {text}")
    return found


def parse_drift_reference(text: str) -> dict[str, dict[str, float]]:
    """Parses the drift reference: the distribution of four features over the held-out training images.

    Args:
        text: JSON with "digit", the share of each predicted digit, and "ink", "row" and "column", ascending percentiles
            from the least to the most.

    Returns:
        By feature, the share of the images in each bin. A bin is named by its digit, or by its upper edge.

    Raises:
        ValueError: the text has another form.
    """
    stated = json.loads(text)
    try:
        digits = [float(share) for share in stated["digit"]]
        percentiles = {feature: [float(value) for value in stated[feature]] for feature in _EDGES}
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a distribution of four features: {text[:200]}") from error
    ascending = all(len(values) > 1 and all(map(le, values, values[1:])) for values in percentiles.values())
    if len(digits) != 10 or min(digits) < 0 or not math.isclose(sum(digits), 1, abs_tol=1e-3) or not ascending:
        raise ValueError(f"not ten shares and ascending percentiles: {text[:200]}")
    shares = {"digit": {str(digit): share for digit, share in enumerate(digits)}}
    for feature, edges in _EDGES.items():
        below = [0.0, *(_share_below(edge, percentiles[feature]) for edge in edges), 1.0]
        names = [floatToGoString(edge) for edge in (*edges, math.inf)]
        shares[feature] = {name: high - low for name, low, high in zip(names, below, below[1:], strict=False)}
    return shares


def _parse_whole_threshold(properties: Mapping[str, str]) -> float:
    if "whole" not in contract.OUTPUTS[properties["contract"]]:
        return 0.0
    if "whole_threshold" not in properties:
        raise breach("its metadata lack whole_threshold, which version 2 requires")
    return _parse_share("whole_threshold", properties["whole_threshold"])


def _parse_name(name: str, text: str) -> str:
    if len(text) > _MOST_NAME or not text.isprintable():
        raise breach(f"its {name} is {text!r}, expected at most {_MOST_NAME} printable characters")
    return text


def _parse_share(name: str, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise breach(f"its {name} is {text!r}, expected a share from 0 to 1")
    return share


def _parse_thresholds(stated: Any) -> tuple[Threshold, ...]:
    try:
        found = [Threshold(float(rate), float(entry["threshold"])) for rate, entry in stated.items()]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not error rates with their thresholds: {stated}") from error
    if not all(0 < one.target_error_rate < 1 and 0 <= one.confidence <= 1 for one in found):
        raise ValueError(f"not shares from 0 to 1: {stated}")
    return tuple(sorted(found, key=lambda one: -one.target_error_rate))


def _share_below(edge: float, percentiles: Sequence[float]) -> float:
    """Returns the share of the values at or below `edge`, interpolated between two percentiles."""
    above = bisect_right(percentiles, edge)
    if above in (0, len(percentiles)):
        return 1.0 if above else 0.0
    low, high = percentiles[above - 1 : above + 1]
    return (above - 1 + (edge - low) / (high - low)) / (len(percentiles) - 1)
