"""Requests and answers of the recognizer."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.answers.decision import Threshold
from serving.repository.catalog import Loaded


class Images(NamedTuple):
    """The images of one request: either `pixels` or `crops`.

    Attributes:
        pixels: n images of 784 bytes, 28 rows of 28 pixels each, 0 paper, 255 ink.
        crops: n PNG or JPEG files, one digit each.
    """

    pixels: bytes = b""
    crops: Sequence[bytes] = ()


class ReadOptions(NamedTuple):
    """The options of one request.

    Attributes:
        model: name of the model; "" for the default model.
        version: version of the model; "" for the version that its routing picks.
        key: requests with the same key get the same version while the routing stays; "" for a random pick.
        target_error_rate: share of wrong answers to tolerate among those accepted; 0 for the server's own target.
        timeout_seconds: time limit of this request; 0 when only its call has a deadline.
        partial: a crop that can't be decoded is rejected, and the others are answered; otherwise the request fails.
        audit: accepted answers may be marked for audit; False where the caller could not see the mark.
        lexicon: name of the lexicon that a field is looked up in; "" for none.
        batch: True for priority batch, which gets what live requests leave; False for live.
    """

    model: str = ""
    version: str = ""
    key: str = ""
    target_error_rate: float = 0.0
    timeout_seconds: float = 0.0
    partial: bool = False
    audit: bool = True
    lexicon: str = ""
    batch: bool = False


class Reading(NamedTuple):
    """The model's output for n images.

    Attributes:
        logits: (n, 10) float32.
        probabilities: (n, 10) float32, calibrated.
        digits: (n,) uint8, the most probable digit of each image.
        confidences: (n,) float32, the probability of that digit.
        whole: (n,) float32, the probability that the image shows one whole digit. 1 where the model has contract 1; 0 where
            the framer of crops is not sure.
        shows: (n,) uint8, what each image shows: BLANK, NOT_ONE_DIGIT or ONE_DIGIT of classifier.py.
        pixels: the images as the network saw them, 784 bytes each.
        errors: reasons that crops can't be decoded, by their index. The images of these crops are blank.
        loaded: the model version that answered.
    """

    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    digits: NDArray[np.uint8]
    confidences: NDArray[np.float32]
    whole: NDArray[np.float32]
    shows: NDArray[np.uint8]
    pixels: bytes
    errors: Mapping[int, str]
    loaded: Loaded


class Verdict(NamedTuple):
    """The decisions on n digits, or the one decision on a field.

    Attributes:
        decisions: (n,) uint8, a Decision each; n is 1 for a field.
        audited: (n,) bool, True for accepted answers that a person should check.
        threshold: the threshold that was applied; None when none is certified.
        recognition_id: identifies the answer when truth is reported.
        captured: True only once the rejected and audited images are on disk. False does not mean that they were dropped.
    """

    decisions: NDArray[np.uint8]
    audited: NDArray[np.bool_]
    threshold: Threshold | None
    recognition_id: str
    captured: bool


class DigitAnswers(NamedTuple):
    """The answer to n single digits."""

    reading: Reading
    verdict: Verdict


class FieldAnswer(NamedTuple):
    """The answer to a field of n digits.

    Attributes:
        reading: the output of the model.
        value: the digits, as text.
        confidence: probability that all digits are right.
        candidates: (n, 3) the most probable digits of each image, the most probable first.
        probabilities: (n, 3) their probabilities.
        verdict: the decision on the field.
    """

    reading: Reading
    value: str
    confidence: float
    candidates: NDArray[np.intp]
    probabilities: NDArray[np.float64]
    verdict: Verdict
