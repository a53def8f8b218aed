import numpy as np
import pytest

from serving.answers.decision import Decision
from serving.answers.recognition_id import NONCE_BYTES, RecognitionIds, Recognized
from serving.answers.single_digit_ids import SingleDigitIds
from tests.support.truths import KEY

ACCEPT, LOW, NO_DIGIT = Decision.ACCEPT, Decision.REJECT_LOW_CONFIDENCE, Decision.REJECT_NO_DIGIT


@pytest.mark.parametrize("keys", [[], [KEY]], ids=["unsigned", "signed"])
@pytest.mark.parametrize("model", ["d", "di", "dig", "digits"])  # an id's last characters depend on its length
def test_ids_issued_at_once_are_those_issued_one_by_one(keys: list[bytes], model: str) -> None:
    digits, decisions = np.array([7, 0, 9, 3], np.uint8), np.array([ACCEPT, LOW, NO_DIGIT, ACCEPT], np.uint8)
    audited = np.array([True, False, False, False])
    confidences = np.array([0.987654, 0.1, 1.0, 0.50000765], np.float32)  # 0.50000765 is 32,767.999 steps of 1/65,535
    ids = RecognitionIds(keys)
    array = SingleDigitIds(ids, model, "20261121")
    nonces, characters = array.issue(digits, decisions, audited, confidences)
    assert len({nonces[place : place + NONCE_BYTES] for place in range(0, len(nonces), NONCE_BYTES)}) == 4
    for index in range(4):
        answer = Recognized(
            *(model, "20261121", False, digits[index].tobytes(), decisions[index].tobytes()),
            audited=[audited[index]],
            confidences=[confidences[index].item()],
            nonce=nonces[index * NONCE_BYTES : (index + 1) * NONCE_BYTES],
        )
        assert characters[index].tobytes().decode() == ids.issue(answer)
        assert ids.parse(ids.issue(answer)).nonce == answer.nonce
    assert characters.shape == (4, array.length)
