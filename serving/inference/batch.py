"""The slices of a run, and their way back: each entry gets its rows, and the calls of a group are answered together."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.contract import IMAGE_BYTES
from serving.errors import DeadlineExceeded, InferenceFailed, RequestError
from serving.inference.classifier import CONFIDENCE, DIGIT, ONE_DIGIT, SHOWS
from serving.inference.entry import Entry, Group, Request, SingleImage
from serving.telemetry.logs import log_event
from serving.telemetry.version_metrics import VersionMetrics

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Slice:
    """The images `start` to `end` of an entry, which go into one run."""

    entry: Entry
    start: int
    end: int


def join(batch: Sequence[Slice]) -> NDArray[np.uint8]:
    """Joins the images of a run: (n, 28, 28) uint8."""
    pixels = b"".join(
        [
            part.entry.pixels
            if part.end - part.start == part.entry.count
            else part.entry.pixels[part.start * IMAGE_BYTES : part.end * IMAGE_BYTES]
            for part in batch
        ]
    )
    return np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)


def distribute(batch: Sequence[Slice], rows: NDArray[np.float32], now: float, metrics: VersionMetrics) -> None:
    """Gives each entry of a run its rows, in order; ends and counts the entries that are complete.

    An entry fails if its rows have NaN or infinity, or if its deadline is past `now`, the end of the run.

    Args:
        batch: the slices of the run.
        rows: (n, columns) float32, one row an image of the run.
        now: the end of the run, on the clock of time.monotonic.
        metrics: counts the entries.
    """
    finite = bool(np.isfinite(rows).all())
    if not finite:
        _report_broken(rows)
    groups: dict[Group, tuple[list[SingleImage], list[int]]] = {}
    answered: list[Entry] = []
    end = 0
    for part in batch:
        entry = part.entry
        start, end = end, end + part.end - part.start
        if entry.done:
            continue
        if not finite and not np.isfinite(rows[start:end]).all():
            fail(entry, InferenceFailed("the model returned NaN or infinity for an image in this request"), metrics)
            continue
        if isinstance(entry, Request) and not entry.store(part.start, part.end, rows[start:end]):
            continue
        if entry.deadline <= now:
            fail(entry, DeadlineExceeded("the deadline passed while the model ran"), metrics)
            continue
        answered.append(entry)
        if isinstance(entry, Request):
            entry.resolve(now)
        elif isinstance(entry, SingleImage):
            if entry.group not in groups:
                groups[entry.group] = ([], [])
            images, places = groups[entry.group]
            images.append(entry)
            places.append(start)
    for group, (images, places) in groups.items():
        group.answer(images, rows if len(places) == len(rows) else rows[places], now)
    metrics.count_answered(answered, now)


def count_predictions(images: NDArray[np.uint8], rows: NDArray[np.float32], metrics: VersionMetrics) -> None:
    """Counts the predictions of a run that mean something: of one digit, by a finite confidence.

    Args:
        images: (n, 784) uint8.
        rows: (n, columns) float32, one row an image.
        metrics: counts them.
    """
    digits, shows, confidences = rows[:, DIGIT], rows[:, SHOWS], rows[:, CONFIDENCE]
    readable = (shows == ONE_DIGIT) & np.isfinite(confidences)
    if not readable.all():
        images, digits, confidences = images[readable], digits[readable], confidences[readable]
    metrics.count_predictions(images, digits, confidences)


def fail(entry: Entry, error: RequestError, metrics: VersionMetrics) -> None:
    """Ends an entry with an error and counts it, unless the entry has ended already."""
    if not entry.done:
        entry.fail(error)
        metrics.failed_seconds.observe(time.monotonic() - entry.arrived)


def fail_all(entries: Iterable[Entry], kind: type[RequestError], message: str, metrics: VersionMetrics) -> None:
    """Ends entries with an error of the same kind each, and counts them; leaves those that have ended already."""
    for entry in entries:
        fail(entry, kind(message), metrics)


def fail_run(batch: Sequence[Slice], metrics: VersionMetrics) -> None:
    """Ends the entries of a run, and logs the exception that is being handled."""
    message = f"a run with images of {len(batch)} requests failed"
    log_event(log, logging.ERROR, "run_failed", message, exc_info=True)
    reason = "the model failed on a run with images of this request"
    fail_all((part.entry for part in batch), InferenceFailed, reason, metrics)


def _report_broken(rows: NDArray[np.float32]) -> None:
    """Logs the number of images for which the model returned NaN or infinity."""
    broken = int((~np.isfinite(rows)).any(axis=1).sum())
    message = f"the model returned NaN or infinity for {broken} of {len(rows)} images"
    log_event(log, logging.ERROR, "answers_unsound", message, images=broken)
