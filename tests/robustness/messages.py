"""Messages that are expensive to parse, that unpack to far more, that are no messages, or that carry long and odd values."""

import asyncio
import gzip
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

from google.protobuf.message import Message

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.inference import open_inference_pb2 as inference
from tests.robustness.attacker import DIGITS, INFER, call, calls, connected, outcome, streamed
from tests.robustness.case import GRPCIO, Attack, Case, flags
from tests.robustness.judge import MARK
from tests.robustness.target import Target
from tests.support.http2_client import grpc_message

_LARGEST = 15_600_000
"""Bytes of the largest messages, a little below the largest limit of a message."""

_SIZES = (4_000_000, _LARGEST)
_REFUSED = frozenset({"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"})
_INVALID = frozenset({"INVALID_ARGUMENT"})
_CHECK = "/grpc.health.v1.Health/Check"
_WATCH = "/grpc.health.v1.Health/Watch"
_REFLECTION = ("v1", "v1alpha")
_IMAGE = bytes(784)

REQUESTS: dict[str, type[Message]] = {
    f"{DIGITS}/Recognize": pb.RecognizeRequest,
    f"{DIGITS}/RecognizeBatch": pb.RecognizeBatchRequest,
    f"{DIGITS}/ReadField": pb.ReadFieldRequest,
    f"{DIGITS}/ReportTruth": pb.ReportTruthRequest,
    f"{INFER}/ModelInfer": inference.ModelInferRequest,
    f"{INFER}/ModelReady": inference.ModelReadyRequest,
    f"{INFER}/ModelMetadata": inference.ModelMetadataRequest,
    f"{INFER}/ModelStatistics": inference.ModelStatisticsRequest,
    f"{INFER}/RepositoryModelLoad": inference.RepositoryModelLoadRequest,
}
"""Requests of the methods with one request and one answer."""


def _elements(request: type[Message]) -> Iterator[bytes]:
    """Encodes an element of no bytes, for each repeated field whose elements have a length."""
    for field in request.DESCRIPTOR.fields:
        if field.is_repeated and field.type in (field.TYPE_MESSAGE, field.TYPE_BYTES, field.TYPE_STRING):
            yield bytes([field.number << 3 | 2, 0])  # these fields have numbers below 16, so one byte is enough


async def _empty_elements(target: Target, path: str, size: int) -> Counter[str]:
    """Sends messages full of elements of no bytes, which take two bytes on the wire and far more once parsed."""
    outcomes: Counter[str] = Counter()
    for element in _elements(REQUESTS[path]):
        outcomes[await call(target.port, path, element * (size // len(element)))] += 1
    return outcomes


async def _typed_values(target: Target) -> Counter[str]:
    """Sends one image whose tensor has fifteen million values."""
    request = inference.ModelInferRequest()
    tensor = request.inputs.add(name="images", datatype="UINT8", shape=[1, 28, 28])
    tensor.contents.uint_contents.extend([1] * (_LARGEST - 1000))
    return Counter([await call(target.port, f"{INFER}/ModelInfer", request.SerializeToString())])


async def _raw_crops(target: Target) -> Counter[str]:
    """Sends one raw tensor of two million crops: no field of the message, but an element of its contents each."""
    outcomes: Counter[str] = Counter()
    for element in (b"\x02\x00\x00\x00ab", bytes(4)):
        count = _LARGEST // len(element)
        request = inference.ModelInferRequest(raw_input_contents=[element * count])
        request.inputs.add(name="crops", datatype="BYTES", shape=[count])
        outcomes[await call(target.port, f"{INFER}/ModelInfer", request.SerializeToString())] += 1
    return outcomes


async def _many_at_once(target: Target) -> Counter[str]:
    """Sends four of the largest messages at a time."""
    outcomes: Counter[str] = Counter()
    for path in (f"{INFER}/ModelInfer", f"{DIGITS}/ReportTruth"):
        message = next(_elements(REQUESTS[path])) * (_LARGEST // 2)
        outcomes += Counter(await asyncio.gather(*[call(target.port, path, message) for _ in range(4)]))
    return outcomes


async def _elements_in_a_stream(target: Target) -> Counter[str]:
    """Sends four million bytes of empty elements as a message of a stream."""
    message = next(_elements(inference.ModelInferRequest)) * 2_000_000
    code, answers = await streamed(target.port, f"{INFER}/ModelStreamInfer", [message])
    error = inference.ModelStreamInferResponse.FromString(answers[5:]).error_message if answers else ""
    return Counter([code if not error or code != "OK" else "INVALID_ARGUMENT"])


async def _truths(target: Target) -> Counter[str]:
    """Reports as many truths as a message has room for, about answers that were never given, with long ids among them."""
    one = pb.Truth(recognition_id="A" * 60, source=pb.TRUTH_SOURCE_KEYING, values={0: "7"})
    many = pb.ReportTruthRequest(truths=[one] * 50_000)
    long = pb.ReportTruthRequest(truths=[pb.Truth(recognition_id="A" * 3_900_000, values={0: "7"})])
    wide = pb.ReportTruthRequest(truths=[pb.Truth(recognition_id="A" * 60, values=dict.fromkeys(range(300_000), "7"))])
    path = f"{DIGITS}/ReportTruth"
    return Counter([await call(target.port, path, message.SerializeToString()) for message in (many, long, wide)])


async def _packed(target: Target) -> Counter[str]:
    """Sends messages of a megabyte that unpack to a gigabyte, eight at once."""
    zeros = gzip.compress(bytes(1 << 26)) * 16  # gzip members follow each other
    message = struct.pack(">BI", 1, len(zeros)) + zeros
    outcomes: Counter[str] = Counter()
    for path in (f"{DIGITS}/Recognize", f"{INFER}/ModelInfer", _CHECK):
        async with connected(target.port) as client:
            responses = [client.send(path, message, grpc_encoding="gzip")[1] for _ in range(8)]
            outcomes += Counter([await outcome(response) for response in responses])
    return outcomes


def _with_text(text: str) -> Iterator[tuple[str, Message]]:
    """Yields requests that name something by `text`, with their paths."""
    tensor = inference.ModelInferRequest.InferInputTensor(name="images", datatype="UINT8", shape=[1, 28, 28])
    image = {"inputs": [tensor], "raw_input_contents": [_IMAGE]}
    for field in ("model", "key"):
        yield f"{DIGITS}/Recognize", pb.RecognizeRequest(image=_IMAGE, **{field: text})  # type: ignore[arg-type]
        yield f"{DIGITS}/RecognizeBatch", pb.RecognizeBatchRequest(images=_IMAGE, **{field: text})  # type: ignore[arg-type]
    yield f"{DIGITS}/ReadField", pb.ReadFieldRequest(images=_IMAGE * 5, lexicon=text)
    yield f"{DIGITS}/ReportTruth", pb.ReportTruthRequest(truths=[pb.Truth(recognition_id=text, values={0: "7"})])
    yield f"{DIGITS}/ReportTruth", pb.ReportTruthRequest(truths=[pb.Truth(recognition_id="A" * 60, values={0: text})])
    for field in ("id", "model_name", "model_version"):
        yield f"{INFER}/ModelInfer", inference.ModelInferRequest(**image, **{field: text})  # type: ignore[arg-type]
    other = inference.ModelInferRequest.InferInputTensor(name=text, datatype=text, shape=[1])
    yield f"{INFER}/ModelInfer", inference.ModelInferRequest(inputs=[other], raw_input_contents=[_IMAGE])
    wanted = inference.ModelInferRequest.InferRequestedOutputTensor(name=text)
    yield f"{INFER}/ModelInfer", inference.ModelInferRequest(**image, outputs=[wanted])  # type: ignore[arg-type]
    keyed = inference.ModelInferRequest(**image)  # type: ignore[arg-type]
    keyed.parameters[text].string_param = text
    yield f"{INFER}/ModelInfer", keyed
    for request in (inference.ModelReadyRequest, inference.ModelMetadataRequest, inference.ModelStatisticsRequest):
        yield f"{INFER}/{request.DESCRIPTOR.name.removesuffix('Request')}", request(name=text, version=text)
    yield f"{INFER}/RepositoryModelLoad", inference.RepositoryModelLoadRequest(model_name=text)
    yield f"{INFER}/RepositoryModelUnload", inference.RepositoryModelUnloadRequest(model_name=text)


async def _texts(target: Target, text: str) -> Counter[str]:
    """Sends a text in the place of every name, key, id and version, also in a stream. Refusals must be short."""
    outcomes: Counter[str] = Counter()
    async with connected(target.port) as client:
        for path, message in _with_text(text):
            response = client.send(path, grpc_message(message.SerializeToString()))[1]
            code = await outcome(response)
            size = len(response.headers.get("grpc-message", "")) + len(response.body)
            outcomes[code if size < 2000 else f"{code} with {size} bytes from {path}"] += 1
    inner = pb.RecognizeRequest(image=_IMAGE, model=text)
    path, message = f"{DIGITS}/RecognizeStream", pb.RecognizeStreamRequest(id=1, request=inner)
    code, body = await streamed(target.port, path, [message.SerializeToString()])
    outcomes[code if len(body) < 2000 else f"{code} with {len(body)} bytes from {path}"] += 1
    return outcomes


async def _paths(target: Target) -> Counter[str]:
    """Names methods that do not exist, by long and odd names, in calls and in headers that a service might log."""
    odd = ("/" + "a" * 8000, f"/x%0a{MARK}%1b[31m", "/" + "/" * 4000, "/digits.v1.DigitService/\u202e", "*")
    outcomes = Counter([await call(target.port, path, b"") for path in odd])
    user = {"user_agent": f"\x80{MARK}" * 20, "traceparent": "00-" + "f" * 5000, "grpc_timeout": "9" * 3000 + "S"}
    for name, text in user.items():
        outcomes[await call(target.port, f"{DIGITS}/Recognize", b"", **{name: text})] += 1
    return outcomes


async def _no_messages(target: Target, paths: Iterable[str], broken: Iterable[bytes]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for path in paths:
        outcomes += await calls(target.port, path, [*broken])
    return outcomes


_BROKEN = (b"\xff\xff\xff", b"\x0a\xff", b"\x0a\x02\xc3\x28", b"\x0b" * 20_000, b"\x7b" * 20_000)

_BROKEN_REFLECTION = (b"\xff\xff", b"\x22\x02\xc3\x28", b"\x2a\xff", b"\x0b" * 20_000)


async def _unknown_fields(target: Target) -> Counter[str]:
    """Sends a million fields that no message has, and numbers that no request may have."""
    numbers = (float("nan"), float("-inf"), -1.0, 1e308)
    messages = [b"\x78\x01" * 1_000_000]
    messages += [pb.RecognizeRequest(image=_IMAGE, target_error_rate=rate).SerializeToString() for rate in numbers]
    messages += [pb.RecognizeRequest(image=_IMAGE, crop=b"x").SerializeToString()]
    outcomes = await calls(target.port, f"{DIGITS}/Recognize", messages)
    shapes = ([-1, 28, 28], [2**62, 28, 28], [2**63 - 1, -28, 28], [0, 28, 28], [1] * 100_000)
    for shape in shapes:
        request = inference.ModelInferRequest(raw_input_contents=[_IMAGE])
        request.inputs.add(name="images", datatype="UINT8", shape=shape)
        outcomes[await call(target.port, f"{INFER}/ModelInfer", request.SerializeToString())] += 1
    return outcomes


async def _unload_nothing(target: Target) -> Counter[str]:
    """Unloads and loads a model without a name."""
    unload, load = f"{INFER}/RepositoryModelUnload", f"{INFER}/RepositoryModelLoad"
    return Counter([await call(target.port, path, b"") for path in (unload, load)])


def _of_elements(path: str, size: int) -> Case:
    name = f"{size // 1_000_000} MB of empty elements for {path.rpartition('/')[2]}"
    return Case(name, partial(_empty_elements, path=path, size=size), _REFUSED)


def _of_texts(text: str) -> Attack:
    return partial(_texts, text=text)


_WITH_ELEMENTS = [path for path, request in REQUESTS.items() if any(_elements(request))]
_TWO_WORKERS = flags(workers=2)
_LOGGED = flags("--log-level", "debug")
_REFUSED_OR_UNKNOWN = _REFUSED | {"NOT_FOUND", "OK"}

CASES = (
    *(_of_elements(path, size) for path in _WITH_ELEMENTS for size in _SIZES),
    Case("fifteen million values for one image", _typed_values, _REFUSED),
    Case("two million raw crops", _raw_crops, _REFUSED),
    Case("four large messages at once", _many_at_once, _REFUSED, fronts=("http2",)),
    Case("four large messages at once", _many_at_once, _REFUSED, fronts=("grpcio",), limits=GRPCIO),
    Case("a stream of empty elements", _elements_in_a_stream, _REFUSED),
    Case("many truths of answers never given", _truths, _REFUSED),
    Case("gzip that unpacks to a gigabyte", _packed, _REFUSED | {"UNIMPLEMENTED"}),
    Case("names of 1.1 million letters", _of_texts("a" * 1_100_000), _REFUSED | {"OK"}, flags=_TWO_WORKERS),
    Case("names of 300000 control characters", _of_texts("\x01" * 300_000), _REFUSED | {"OK"}, flags=_TWO_WORKERS),
    Case("names of 1000 letters", _of_texts("é" * 1000), _REFUSED | {"OK"}, flags=_TWO_WORKERS),
    Case(
        "names that break lines",
        _of_texts(f"a\n{MARK}\r{MARK}\x1b[31m\x85{MARK}\u2028{MARK}\u202e"),
        _REFUSED_OR_UNKNOWN,
        flags=_LOGGED,
    ),
    Case("paths and headers that break lines", _paths, flags=_LOGGED),
    Case("no messages for health", partial(_no_messages, paths=(_CHECK, _WATCH), broken=_BROKEN), _INVALID, flags=_LOGGED),
    Case(
        "no messages for reflection",
        partial(
            _no_messages,
            paths=[f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo" for version in _REFLECTION],
            broken=_BROKEN_REFLECTION,
        ),
        _INVALID,
        flags=_LOGGED,
    ),
    Case("no messages for all methods", partial(_no_messages, paths=REQUESTS, broken=_BROKEN), _INVALID, flags=_LOGGED),
    Case("odd numbers and unknown fields", _unknown_fields, _REFUSED, flags=_LOGGED),
    Case("unload without a name", _unload_nothing, _INVALID),
)
