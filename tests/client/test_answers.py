import pytest

from serving.client import Decision, Recognition, answers
from serving.pb.digits.v1 import digit_service_pb2 as pb


def test_a_decision_of_a_newer_server_is_unspecified() -> None:
    # Protobuf hands on an unknown number of an enum: field 5 of RecognizeResponse, and its columns in a batch.
    one = pb.RecognizeResponse.FromString(b"\x28\x63")
    assert (one.decision, answers.recognition(one).decision) == (99, Decision.UNSPECIFIED)
    batch = pb.RecognizeBatchResponse(digits=[7], confidences=[1.0], probabilities=[0.1] * 10)
    batch.MergeFromString(b"\x2a\x01\x63")
    assert [recognition.decision for recognition in answers.recognitions(batch)] == [Decision.UNSPECIFIED]
    field = pb.ReadFieldResponse.FromString(b"\x28\x63")
    assert answers.field(field).decision is Decision.UNSPECIFIED


def test_an_older_server_takes_every_image_for_a_digit() -> None:
    assert answers.recognition(pb.RecognizeResponse(digit=7)).whole == 1
    batch = pb.RecognizeBatchResponse(
        digits=[7, 1], confidences=[1.0] * 2, probabilities=[0.1] * 20, decisions=[pb.DECISION_ACCEPT] * 2
    )
    assert [one.whole for one in answers.recognitions(batch)] == [1, 1]
    field = answers.field(pb.ReadFieldResponse(digits=[pb.DigitCandidates(digits=[7, 1, 4])]))
    assert (field.whole, field.no_digits) == ((1,), ())


def test_an_image_of_no_digit_in_a_batch_is_captured_and_a_blank_one_is_not() -> None:
    batch = pb.RecognizeBatchResponse(
        digits=[7] * 3,
        confidences=[1.0] * 3,
        probabilities=[0.1] * 30,
        decisions=[pb.DECISION_ACCEPT, pb.DECISION_REJECT_NO_DIGIT, pb.DECISION_REJECT_INVALID_IMAGE],
        captured=True,
        whole=[0.9, 0.25, 0.0],
    )
    found: list[Recognition] = answers.recognitions(batch)
    assert [one.captured for one in found] == [False, True, False]
    assert [one.whole for one in found] == pytest.approx([0.9, 0.25, 0])
