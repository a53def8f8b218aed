"""DOC."""

import json
import math
from bisect import bisect_right
from collections.abc import Sequence
from operator import le
from typing import Any

from prometheus_client.utils import floatToGoString

from serving.answers.decision import Threshold
from serving.telemetry.histograms import CENTRE, INK

REFUSALS = ("unreadable", "contract", "self_check")
"""Why a file is refused, in a word, for the metrics."""


class ModelError(Exception):
    """The file can't be served: it is no model, or breaks the contract, or the provider is not there.

    Attributes:
        reason: one of REFUSALS.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def share(text: str) -> float:
    """A number from 0 to 1, or ModelError."""
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise broken(f"its test_accuracy is {text!r}, expected a share from 0 to 1")
    return share


def broken(how: str) -> ModelError:
    """Builds the error for a file that breaks the contract."""
    return ModelError("contract", f"breaks the model contract: {how}")


def thresholds(text: str) -> tuple[Threshold, ...]:
    """Those that a model's metadata state, the one for the largest error rate first.

    Args:
        text: {error rate: {"threshold": confidence, ...}, ...} as JSON.

    Raises:
        ValueError: it is not.
    """
    return _thresholds(json.loads(text))


def field_thresholds(text: str) -> dict[int, tuple[Threshold, ...]]:
    """Likewise for fields, by their length.

    Args:
        text: {length: {error rate: {"threshold": confidence, ...}, ...}, ...} as JSON.

    Raises:
        ValueError: it is not.
    """
    stated = json.loads(text)
    if not isinstance(stated, dict):
        raise ValueError(f"not lengths with their thresholds: {text}")
    return {int(length): _thresholds(found) for length, found in stated.items()}


def _thresholds(stated: Any) -> tuple[Threshold, ...]:
    try:
        found = [Threshold(float(rate), float(entry["threshold"])) for rate, entry in stated.items()]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not error rates with their thresholds: {stated}") from error
    if not all(0 < one.target_error_rate < 1 and 0 <= one.confidence <= 1 for one in found):
        raise ValueError(f"not shares from 0 to 1: {stated}")
    return tuple(sorted(found, key=lambda one: -one.target_error_rate))


_EDGES = {"ink": INK, "row": CENTRE, "column": CENTRE}


def reference(text: str) -> dict[str, dict[str, float]]:
    """What a version's metadata say of the images held out from its training.

    Args:
        text: {"digit": the share of each digit in what was read, "ink", "row" and "column": percentiles of these, ascending
            from the least to the most}, as JSON.

    Returns:
        By feature, the share of the images in each bin; a bin goes by its digit, or its upper edge.

    Raises:
        ValueError: it is not.
    """
    stated = json.loads(text)
    try:
        digits = [float(share) for share in stated["digit"]]
        percentiles = {feature: [float(value) for value in stated[feature]] for feature in _EDGES}
    except (KeyError, TypeError) as error:
        raise ValueError(f"not what four features are like: {text[:200]}") from error
    ascending = all(len(values) > 1 and all(map(le, values, values[1:])) for values in percentiles.values())
    if len(digits) != 10 or min(digits) < 0 or not math.isclose(sum(digits), 1, abs_tol=1e-3) or not ascending:
        raise ValueError(f"not ten shares and ascending percentiles: {text[:200]}")
    shares = {"digit": {str(digit): share for digit, share in enumerate(digits)}}
    for feature, edges in _EDGES.items():
        below = [0.0, *(_below(edge, percentiles[feature]) for edge in edges), 1.0]
        names = [floatToGoString(edge) for edge in (*edges, math.inf)]
        shares[feature] = {name: high - low for name, low, high in zip(names, below, below[1:], strict=False)}
    return shares


def _below(edge: float, percentiles: Sequence[float]) -> float:
    """The share of what lies at or below `edge`, between two percentiles in proportion."""
    above = bisect_right(percentiles, edge)
    if above in (0, len(percentiles)):
        return 1.0 if above else 0.0
    low, high = percentiles[above - 1 : above + 1]
    return (above - 1 + (edge - low) / (high - low)) / (len(percentiles) - 1)
