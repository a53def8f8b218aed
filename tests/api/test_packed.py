import numpy as np
import pytest

from serving.api.packed import pack_floats, pack_small
from serving.pb.digits.v1 import digit_service_pb2 as pb


@pytest.mark.parametrize("count", [1, 12, 13, 127, 128, 10_000])  # lengths of one, two and three bytes
def test_packed_fields_read_as_protobuf_would_have_written_them(count: int) -> None:
    random = np.random.default_rng(count)
    digits, probabilities = random.integers(0, 10, count, np.uint8), random.random((count, 10), np.float32)
    expected = pb.RecognizeBatchResponse(
        digits=digits.tolist(), probabilities=probabilities.ravel().tolist(), whole=probabilities[:, 3].tolist()
    )
    encoded = (
        pack_small(pb.RecognizeBatchResponse.DIGITS_FIELD_NUMBER, digits)
        + pack_floats(pb.RecognizeBatchResponse.PROBABILITIES_FIELD_NUMBER, probabilities)
        + pack_floats(pb.RecognizeBatchResponse.WHOLE_FIELD_NUMBER, probabilities[:, 3])
    )
    assert encoded == expected.SerializeToString()


def test_a_packed_field_with_a_large_number_has_a_longer_tag() -> None:
    assert pack_small(16, np.array([1], np.uint8)) == b"\x82\x01\x01\x01"
