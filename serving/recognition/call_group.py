"""Calls of one image each that are answered by the run: decided, captured and encoded together, with NumPy."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serving.answers.decision import Threshold
from serving.answers.recognition_id import NONCE_BYTES, Recognized
from serving.answers.single_digit_ids import SingleDigitIds
from serving.contract import IMAGE_BYTES
from serving.feedback.capture import Capture
from serving.feedback.capture_records import is_captured
from serving.inference.classifier import CONFIDENCE, DIGIT, SHOWS, WHOLE
from serving.inference.entry import SingleImage
from serving.recognition.policy import Policy
from serving.recognition.reading import ReadOptions
from serving.repository.catalog import Loaded

Rows: TypeAlias = NDArray[np.float32]
"""(n, columns), one row a call; classifier.py names the columns."""


class Verdicts(NamedTuple):
    """The decisions on n digits, each the answer to a call of its own.

    Attributes:
        decisions: (n,) uint8, a Decision each.
        audited: (n,) bool, True for accepted answers that a person should check.
        recognition_ids: (n, characters) uint8, in ASCII.
        captured: True once the image is on disk. The images of answers with True were rejected or marked for audit.
    """

    decisions: NDArray[np.uint8]
    audited: NDArray[np.bool_]
    recognition_ids: NDArray[np.uint8]
    captured: bool = False

    def take(self, places: Sequence[int]) -> "Verdicts":
        """Picks the verdicts at these places."""
        return Verdicts(self.decisions[places], self.audited[places], self.recognition_ids[places], self.captured)


_UNDECIDED = Verdicts(np.empty(0, np.uint8), np.empty(0, np.bool_), np.empty((0, 0), np.uint8))

Encode: TypeAlias = Callable[[Rows, Verdicts], list[bytes]]
"""Encodes the answers to n calls. Where their form does not decide, the verdicts are empty."""


class Form(Protocol):
    """The kind of answer that calls ask for. Hashable; calls whose forms are equal can be answered together."""

    @property
    def decides(self) -> bool:
        """True if the answer has a decision."""

    @property
    def audits(self) -> bool:
        """True if accepted answers may be marked for audit."""

    def encoder(self, loaded: Loaded, threshold: Threshold | None, id_length: int) -> Encode:
        """Prepares what all answers of a version by one threshold share.

        Args:
            loaded: the version.
            threshold: the threshold that is applied; None when none is certified.
            id_length: characters of a recognition id.
        """


class SingleRequest(NamedTuple):
    """A request to read one image that can be answered by the run.

    Attributes:
        pixels: 784 bytes, 28 rows of 28 pixels, 0 paper, 255 ink.
        options: the options.
        form: the kind of answer.
        tail: encoded fields of the answer that belong to this request alone, such as its id.
    """

    pixels: bytes
    options: ReadOptions
    form: Form
    tail: bytes = b""


class CallGroup:
    """Calls of one method that one version answers in one form and by one threshold."""

    def __init__(self, loaded: Loaded, threshold: Threshold | None, form: Form, policy: Policy):
        """Prepares the parts of the answers that all calls share."""
        self._loaded = loaded
        self._threshold = threshold
        self._form = form
        self._policy = policy
        self._ids = SingleDigitIds(policy.ids, loaded.name, loaded.version)
        self._encode = form.encoder(loaded, threshold, self._ids.length)
        self._captures: set[asyncio.Task[None]] = set()  # the event loop itself keeps no task alive

    def answer(self, images: Sequence[SingleImage], rows: Rows, ended: float) -> None:
        """Answers n calls of one run; each row is that of one image. Calls whose image is captured are answered later."""
        outcomes = images[0].outcomes
        try:
            self._trace(images, ended)
            self._copy_to_shadow(images, rows)
            if not self._form.decides:
                outcomes.succeed(images, self._encode(rows, _UNDECIDED))
                return
            verdicts, nonces = self._decide(rows)
            capture = self._policy.capture
            if capture:
                selected = is_captured(verdicts.decisions, verdicts.audited)
                for place in selected.nonzero()[0].tolist():
                    nonce = nonces[place * NONCE_BYTES : (place + 1) * NONCE_BYTES]
                    self._capture(capture, images[place], rows[place : place + 1], verdicts.take([place]), nonce)
                others = (~selected).nonzero()[0].tolist()
                images, rows, verdicts = [images[place] for place in others], rows[others], verdicts.take(others)
            outcomes.succeed(images, self._encode(rows, verdicts))
        except Exception:
            outcomes.fail_internally(images)

    def leave(self, image: SingleImage) -> None:
        """Takes an image whose caller has gone out of the queue."""
        self._loaded.batcher.leave(image)

    def _trace(self, images: Sequence[SingleImage], ended: float) -> None:
        for image in images:
            if image.call.span is not None:
                named = {"model": self._loaded.name, "version": self._loaded.version}
                image.call.span.answered(image.arrived, image.started, ended, **named, images=1)

    def _copy_to_shadow(self, images: Sequence[SingleImage], rows: Rows) -> None:
        if self._loaded.shadow:
            pixels = b"".join([image.pixels for image in images])
            self._loaded.shadow.compare_decided(pixels, rows[:, [DIGIT, SHOWS]].astype(np.uint8))

    def _decide(self, rows: Rows) -> tuple[Verdicts, bytes]:
        """Decides on each row; returns the verdicts, and the nonces of their ids."""
        digits, shows, confidences = rows[:, DIGIT].astype(np.uint8), rows[:, SHOWS].astype(np.uint8), rows[:, CONFIDENCE]
        decisions, audited = self._policy.decide_each(
            self._loaded, self._threshold, confidences, shows, audit=self._form.audits
        )
        nonces, characters = self._ids.issue(digits, decisions, audited, confidences)
        return Verdicts(decisions, audited, characters), nonces

    def _capture(self, capture: Capture, image: SingleImage, row: Rows, verdict: Verdicts, nonce: bytes) -> None:
        """Answers one call once its image is stored, or could not be stored in time."""
        image.read = True
        task = asyncio.create_task(self._answer_captured(capture, image, row, verdict, nonce))
        self._captures.add(task)
        task.add_done_callback(self._captures.discard)

    async def _answer_captured(
        self, capture: Capture, image: SingleImage, row: Rows, verdict: Verdicts, nonce: bytes
    ) -> None:
        try:
            answer = Recognized(
                model=self._loaded.name,
                version=self._loaded.version,
                of_field=False,
                digits=bytes([int(row[0, DIGIT])]),
                decisions=verdict.decisions.tobytes(),
                audited=verdict.audited.tolist(),
                confidences=row[:, CONFIDENCE].tolist(),
                nonce=nonce,
            )
            pixels = np.frombuffer(image.pixels, np.uint8).reshape(1, IMAGE_BYTES)
            captured = await capture.keep(answer, pixels, row[:, WHOLE], image.deadline)
            image.outcomes.succeed([image], self._encode(row, verdict._replace(captured=captured)))
        except Exception:
            image.outcomes.fail_internally([image])
