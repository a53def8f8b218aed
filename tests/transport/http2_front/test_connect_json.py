"""The Connect protocol with JSON: what curl and scripts send and get."""

import asyncio
import base64
import json
import threading
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from numpy.typing import NDArray

from serving.api import digits, open_inference, side_thread
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.process.server import Server
from tests.support.calls import TIMEOUT
from tests.support.digit_calls import connect, recognize
from tests.support.http2_client import Response, http2_client
from tests.support.metrics import value

RECOGNIZE = f"/{digits.NAME}/Recognize"
WHITE = base64.b64encode(bytes(784)).decode()


@pytest.fixture
def front() -> str:
    return "http2"


async def post(server: Server, path: str, body: bytes) -> Response:
    async with http2_client(server.grpc_port) as client:
        return await client.call(path, body, content_type="application/json; charset=utf-8")


async def answer(server: Server, path: str, **fields: object) -> Any:
    """Makes a call that must succeed; returns its answer."""
    response = await post(server, path, json.dumps(fields).encode())
    assert (response.headers[":status"], response.headers["content-type"]) == ("200", "application/json"), response.body
    return json.loads(response.body)


async def test_an_answer_has_every_field_of_grpcs_answer(server: Server, images: NDArray[np.uint8]) -> None:
    image = images[0].tobytes()
    fields = await answer(server, RECOGNIZE, image=base64.b64encode(image).decode())
    async with connect(server) as stub:
        expected = await recognize(stub, image)
    found = json_format.ParseDict(fields, pb.RecognizeResponse())
    found.recognition_id = expected.recognition_id
    assert found == expected
    assert len(fields) == len(pb.RecognizeResponse.DESCRIPTOR.fields)


async def test_fields_without_a_value_are_shown(server: Server) -> None:
    fields = await answer(server, RECOGNIZE, image=WHITE)
    assert fields["decision"] == "DECISION_REJECT_INVALID_IMAGE"
    assert (fields["audit"], fields["captured"]) == (False, False)


async def test_both_spellings_of_names_are_read_and_unknown_ones_are_ignored(server: Server) -> None:
    for name in ("target_error_rate", "targetErrorRate"):
        fields = await answer(server, RECOGNIZE, image=WHITE, **{name: 0.01}, colour={"of": ["the", "pen"]})
        assert fields["targetErrorRate"] == 0.01


async def test_every_kind_of_call_is_answered(server: Server, images: NDArray[np.uint8]) -> None:
    three = base64.b64encode(images[:3].tobytes()).decode()
    batch = await answer(server, f"/{digits.NAME}/RecognizeBatch", images=three)
    assert len(batch["digits"]) == 3
    field = await answer(server, f"/{digits.NAME}/ReadField", images=three)
    assert field["value"] == "".join(map(str, batch["digits"]))
    truth = {"recognitionId": batch["recognitionId"], "source": "TRUTH_SOURCE_KEYING", "values": {"0": "7", "2": "x"}}
    assert await answer(server, f"/{digits.NAME}/ReportTruth", truths=[truth]) == {"counted": 2}
    tensor = {"name": "images", "datatype": "UINT8", "shape": [3, 28, 28]}
    path = f"/{open_inference.NAME}/ModelInfer"
    inferred = await answer(server, path, modelName="digits", inputs=[tensor], rawInputContents=[three])
    assert inferred["outputs"][0]["shape"] == ["3", "10"]
    assert await answer(server, "/grpc.health.v1.Health/Check") == {"status": "SERVING"}


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'""',
        b"null",
        b"7",
        b'{"image": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"image": 5}',
        b'{"image": "a"}',
        b'{"image": ["AA=="]}',
        b'{"targetErrorRate": "high"}',
        b'{"targetErrorRate": 1e999}',
        b'{"image": "", "image": ""}',
        b'{"targetErrorRate": %s}' % (b"9" * 5000),
        nested(30_000),
        b"[" * 100_000,
    ],
    ids=lambda body: f"{str(body[:24], errors='replace')} {len(body)}",
)
async def test_bad_json_is_refused_with_a_short_reason(server: Server, body: bytes) -> None:
    response = await post(server, RECOGNIZE, body)
    assert response.headers[":status"] == "400", response.body
    error = json.loads(response.body)
    assert error["code"] == "invalid_argument"
    assert "digits.v1.RecognizeRequest in JSON: " in error["message"]
    assert len(error["message"]) < 400
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="invalid") == 1


async def test_a_reason_does_not_repeat_a_long_value(server: Server) -> None:
    response = await post(server, RECOGNIZE, b'{"targetErrorRate": "%s"}' % (b"x" * 1_000_000))
    assert response.headers[":status"] == "400"
    assert len(response.body) < 1000


async def test_a_request_of_too_many_values_is_refused_unparsed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_format, "Parse", None)
    for value_and_comma in (b"1,", b"{},", b'"",'):
        response = await post(server, RECOGNIZE, b'{"x": [%s0]}' % (value_and_comma * 100_000))
        assert response.headers[":status"] == "429"
        assert json.loads(response.body)["code"] == "resource_exhausted"
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="too_large") == 3


async def test_long_requests_above_the_limit_of_those_that_wait_are_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_thread, "_MAX_WAITING_KIB", 150)
    parse, may_go_on, reached = json_format.Parse, threading.Event(), threading.Event()

    def slow_parse(*arguments: Any, **options: Any) -> Any:
        reached.set()
        assert may_go_on.wait(TIMEOUT)
        return parse(*arguments, **options)

    monkeypatch.setattr(json_format, "Parse", slow_parse)
    long = json.dumps({"image": "AAAA" * 25_000}).encode()
    async with http2_client(server.grpc_port) as client:
        _, first = client.send(RECOGNIZE, long, content_type="application/json")
        assert await asyncio.to_thread(reached.wait, TIMEOUT)
        responses = [first, *(client.send(RECOGNIZE, long, content_type="application/json")[1] for _ in range(3))]
        async with asyncio.timeout(TIMEOUT):
            while not any(response.ended.is_set() for response in responses):
                await asyncio.sleep(0.001)
            may_go_on.set()
            for response in responses:
                await response.ended.wait()
    assert sorted(response.headers[":status"] for response in responses) == ["400", "400", "429", "429"]
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="too_busy") == 2


async def test_other_calls_are_answered_while_large_json_is_parsed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    parse, may_go_on, reached = json_format.Parse, threading.Event(), threading.Event()

    def slow_parse(text: bytes, *arguments: Any, **options: Any) -> Any:
        if len(text) > 1_000_000:
            reached.set()
            assert may_go_on.wait(TIMEOUT)
        return parse(text, *arguments, **options)

    monkeypatch.setattr(json_format, "Parse", slow_parse)
    async with http2_client(server.grpc_port) as client:
        large = json.dumps({"image": "AAAA" * 500_000}).encode()
        _, response = client.send(RECOGNIZE, large, content_type="application/json")
        async with asyncio.timeout(TIMEOUT):
            assert await asyncio.to_thread(reached.wait, TIMEOUT)
        assert (await answer(server, RECOGNIZE, image=WHITE))["modelVersion"]
        may_go_on.set()
        async with asyncio.timeout(TIMEOUT):
            await response.ended.wait()
    assert response.headers[":status"] == "400"
    assert "784" in json.loads(response.body)["message"]
