"""Long messages: their fields are counted before they are built, and typed pixels are read without building them."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from google.protobuf.message import Message

from serving.api import digits, typed_pixels
from serving.api.infer_messages import parse_infer
from serving.api.packed import pack_message
from serving.api.side_thread import LONG_BYTES
from serving.api.typed_pixels import cut_pixels, decode_pixels
from serving.api.wire import MOST_FIELDS, TooManyFields, outline, parse_message, read_varint
from serving.call import Call
from serving.errors import InvalidRequest
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as oip
from serving.process.server import Server

MANY = MOST_FIELDS + 1
TRUTH = f"/{digits.NAME}/ReportTruth"

BOMBS: dict[str, tuple[type[Message], bytes]] = {
    "empty truths": (pb.ReportTruthRequest, b"\x0a\x00" * MANY),
    "values of one truth": (pb.ReportTruthRequest, pack_message(1, b"\x1a\x00" * MANY)),
    "empty crops": (pb.RecognizeBatchRequest, b"\x22\x00" * MANY),
    "repeated texts": (pb.RecognizeRequest, b"\x12\x00" * MANY),
    "unknown fields": (pb.RecognizeRequest, b"\x78\x01" * MANY),
    "groups": (pb.RecognizeRequest, b"\x7b\x7c" * MANY),
    "empty inputs": (oip.ModelInferRequest, b"\x2a\x00" * MANY),
    "empty outputs": (oip.ModelInferRequest, b"\x32\x00" * MANY),
    "parameters": (oip.ModelInferRequest, b"\x22\x00" * MANY),
    "a long shape": (oip.ModelInferRequest, oip.ModelInferRequest(inputs=[{"shape": [1] * 8 * MANY}]).SerializeToString()),
    "floats": (
        oip.ModelInferRequest,
        oip.ModelInferRequest(inputs=[{"contents": {"fp32_contents": [1.0] * 2 * MANY}}]).SerializeToString(),
    ),
    "fields after a group of another meaning": (oip.ModelInferRequest, b"\x7b\x2a\x01\xff\x7c" + b"\x2a\x00" * MANY),
    "tensors of one field": (oip.ModelInferRequest, b"\x2a\x02\x0a\x00" * MANY),
    "fields before a fault": (pb.ReportTruthRequest, b"\x0a\x00" * MANY + b"\xff"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_message_of_many_fields_is_not_built(name: str) -> None:
    kind, encoded = BOMBS[name]
    with pytest.raises(TooManyFields, match=r"has over 100000 fields, which is the limit"):
        parse_message(kind, encoded)


def test_a_long_message_of_few_fields_is_built() -> None:
    batch = pb.RecognizeBatchRequest(crops=[b"a" * 20] * 10_000)
    assert len(batch.SerializeToString()) > LONG_BYTES
    assert parse_message(pb.RecognizeBatchRequest, batch.SerializeToString()) == batch


@pytest.mark.parametrize("tail", [b"\xff" * 20, b"\x0a", b"\x0a\xff", b"\x09", b"\x0f", b"\x0a\x05abc"])
def test_a_malformed_long_message_is_left_to_the_parser(tail: bytes) -> None:
    encoded = pb.RecognizeBatchRequest(images=bytes(LONG_BYTES)).SerializeToString() + tail
    with pytest.raises(Exception, match=r"[Pp]ars|decod"):
        parse_message(pb.RecognizeBatchRequest, encoded)


def typed(pixels: list[int], **contents: object) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(id="a", model_name="digits")
    tensor = request.inputs.add(name="images", datatype="UINT8", shape=[len(pixels) // 784, 28, 28])
    tensor.parameters["p"].bool_param = True
    tensor.contents.uint_contents.extend(pixels)
    request.outputs.add(name="logits")
    return request


def test_typed_pixels_of_a_long_message_are_those_of_a_short_one() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, 784 * 2000)
    encoded = typed(pixels.tolist()).SerializeToString()
    assert cut_pixels(encoded).pixels is not None
    request = parse_infer(encoded)
    assert request.images.pixels == pixels.astype(np.uint8).tobytes()
    assert (request.id, request.outputs, request.raw) == ("a", ["logits"], False)


@pytest.mark.parametrize("value", [256, 300, 16_384, 1 << 31])
def test_a_typed_value_over_255_is_refused(value: int) -> None:
    with pytest.raises(InvalidRequest, match=r"images holds a value over 255, expected UINT8: 0 to 255"):
        parse_infer(typed([*[7] * (784 * 200 - 1), value]).SerializeToString())


@pytest.mark.parametrize(
    ("packed", "pixels"), [(b"", b""), (b"\x80\x00\x81\x01", b"\x00\x81"), (b"\x7f\xff\x01", b"\x7f\xff")]
)
def test_varints_of_one_or_two_bytes_are_pixels(packed: bytes, pixels: bytes) -> None:
    assert decode_pixels(packed) == pixels


@pytest.mark.parametrize("packed", [b"\x80", b"\x80\x80\x00", b"\x01\xff\x02"])
def test_other_varints_are_no_pixels(packed: bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode_pixels(packed)


def test_typed_pixels_in_two_parts_are_not_cut_out_but_counted() -> None:
    encoded = typed([1] * 784_000).SerializeToString()
    twice = encoded + oip.ModelInferRequest(inputs=[{"name": "second"}]).SerializeToString()
    assert cut_pixels(twice) == (twice, None)
    with pytest.raises(TooManyFields):
        parse_infer(encoded + encoded)


@pytest.mark.parametrize("field", [b"\x22\x00", b"\x2a\x00", b"\x78\x01"])
def test_the_search_for_typed_pixels_ends_after_a_thousand_fields(field: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = list[int]()

    def noted(encoded: bytes | memoryview, place: int) -> tuple[int, int]:
        fields.append(place)
        return read_varint(encoded, place)

    monkeypatch.setattr(typed_pixels, "read_varint", noted)
    encoded = typed([1] * 784).SerializeToString() + field * 5000
    assert cut_pixels(encoded) == (encoded, None)
    assert len(fields) <= 1000


def test_long_typed_contents_of_two_kinds_are_refused() -> None:
    request = typed([1] * 784_000)
    request.inputs[0].contents.fp32_contents.append(1.0)
    with pytest.raises(InvalidRequest, match=r"its contents are fp32_contents"):
        parse_infer(request.SerializeToString())


def crops(contents: bytes, count: int) -> bytes:
    tensor = oip.ModelInferRequest.InferInputTensor(name="crops", datatype="BYTES", shape=[count])
    return oip.ModelInferRequest(inputs=[tensor], raw_input_contents=[contents]).SerializeToString()


@pytest.mark.parametrize(("count", "most", "limit"), [(MANY, 1 << 20, MOST_FIELDS), (11, 10, 10)])
def test_raw_crops_above_the_limit_are_refused_before_they_are_cut(count: int, most: int, limit: int) -> None:
    unreadable = b"\xff" * 4 * count  # each element is longer than what follows; who cuts the first one says so
    with pytest.raises(InvalidRequest, match=rf"crops holds {count} images, this server takes {limit} a call"):
        parse_infer(crops(unreadable, count), most)


def test_raw_crops_up_to_the_limit_are_cut() -> None:
    assert parse_infer(crops(b"\x02\x00\x00\x00ab" * 10, 10), 10).images.crops == [b"ab"] * 10


@pytest.mark.parametrize(("length", "aside"), [(16_000, False), (17_000, True)])
async def test_a_report_of_over_16_kib_is_parsed_off_the_loop(server: Server, length: int, aside: bool) -> None:
    threads: list[threading.Thread] = []
    method = server.dispatcher.methods[TRUTH]

    def parse(encoded: bytes) -> object:
        threads.append(threading.current_thread())
        return method.parse(encoded)

    report = pb.ReportTruthRequest(truths=[pb.Truth(recognition_id="A" * length, source=pb.TRUTH_SOURCE_KEYING)])
    with pytest.raises(InvalidRequest, match="there are 0 truths"):
        await server.dispatcher.answer(replace(method, parse=parse), report.SerializeToString(), Call())
    assert [thread is not threading.current_thread() for thread in threads] == [aside]


async def test_truths_without_values_are_counted_first(server: Server) -> None:
    with pytest.raises(InvalidRequest, match="there are 60000 truths, expected 1 to 10000"):
        await server.dispatcher.answer(server.dispatcher.methods[TRUTH], b"\x0a\x00" * 60_000, Call())


def test_an_outline_has_the_id_of_a_long_request_and_none_of_its_images() -> None:
    digit = pb.RecognizeStreamRequest(id=7, request=pb.RecognizeRequest(crop=bytes(LONG_BYTES)), timeout_ms=300)
    assert outline(digit.SerializeToString()) == pb.RecognizeStreamRequest(id=7, timeout_ms=300).SerializeToString()
    infer = typed([1] * 784_000)
    assert oip.ModelInferRequest.FromString(outline(infer.SerializeToString())).id == "a"


@pytest.mark.parametrize("encoded", [b"\x22\x00" * 257, b"\xff" * 20, b"\x0a", b"\x0a\x05abc", b"\x08\x01\x0f"])
def test_a_message_of_many_fields_or_a_malformed_one_has_no_outline(encoded: bytes) -> None:
    with pytest.raises(InvalidRequest):
        outline(encoded)
