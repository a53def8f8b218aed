"""Recognition ids of made-up answers, and truths about them."""

import numpy as np

from serving.answers.decision import Decision
from serving.answers.recognition_id import RecognitionIds, Recognized
from serving.feedback.truth import Truth

KEY = b"a key of 32 characters, or so it is"


def issue(ids: RecognitionIds, *, of_field: bool = False, audited: bool = False, model: str = "digits") -> str:
    """Issues the id of the digits 7, 1 (rejected) and 4, or of the field 714, as read by version 20261121."""
    accept, reject = Decision.ACCEPT, Decision.REJECT_LOW_CONFIDENCE
    decisions = [accept] if of_field else [accept, reject, accept]
    confidences = np.linspace(0.9, 0.5, len(decisions)).tolist()
    marked = [audited and decision is accept for decision in decisions]
    return ids.issue(Recognized(model, "20261121", of_field, bytes([7, 1, 4]), bytes(decisions), marked, confidences))


def keyed(recognition_id: str, index: int, value: str, source: str = "keying") -> Truth:
    """Returns the truth about the image at `index`, or about a field at index 0."""
    return Truth(recognition_id, source, {index: value})
