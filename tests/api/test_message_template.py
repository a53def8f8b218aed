import numpy as np
import pytest

from serving.api.message_template import MessageTemplate
from serving.pb.digits.v1 import digit_service_pb2 as pb


def test_messages_are_filled_in_with_values_of_their_own() -> None:
    response = pb.RecognizeResponse
    template = MessageTemplate(
        response(model_version="7", threshold=0.5),
        {
            "digit": (response(digit=1), np.uint8(1)),
            "probabilities": (response(probabilities=[1.0] * 10), np.ones(10, np.float32)),
            "audit": (response(audit=True), np.uint8(1)),
        },
    )
    probabilities = np.random.default_rng(1).random((2, 10), np.float32)
    first, second = template.fill(2, {"digit": [9, 0], "probabilities": probabilities, "audit": False})
    for digit, encoded, row in ((9, first, probabilities[0]), (0, second, probabilities[1])):
        expected = response(digit=digit, probabilities=row.tolist(), model_version="7", threshold=0.5)
        assert response.FromString(encoded) == expected


def test_a_sample_that_is_not_the_end_of_its_encoding_is_refused() -> None:
    with pytest.raises(ValueError, match="the encoding of digit does not end with its value"):
        MessageTemplate(pb.RecognizeResponse(), {"digit": (pb.RecognizeResponse(digit=300), np.uint16(300))})
