import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.api import digits
from serving.client import DigitClient, Recognition, Refusal
from serving.inference.classifier import Classifier
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from tests.support.calls import TIMEOUT, refused
from tests.support.digit_calls import connect, recognize
from tests.support.metrics import until, value
from tests.support.models import GatedModel
from tests.support.servers import StartServer

Images = NDArray[np.uint8]
METHOD = f"/{digits.NAME}/RecognizeStream"
CODE = grpc.StatusCode


def request(number: int, image: bytes, timeout_ms: int = 0) -> pb.RecognizeStreamRequest:
    return pb.RecognizeStreamRequest(id=number, request=pb.RecognizeRequest(image=image), timeout_ms=timeout_ms)


@asynccontextmanager
async def open_stream(server: Server, *options: tuple[str, int]) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options) as channel:
        yield DigitServiceStub(channel).RecognizeStream(timeout=TIMEOUT)


@pytest.fixture
async def stream(server: Server) -> AsyncIterator[Any]:
    async with open_stream(server) as stream:
        yield stream


async def end_code(stream: Any) -> grpc.StatusCode:
    """Reads a stream to its end; returns its status code."""
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    code: grpc.StatusCode = await stream.code()
    return code


def counts(server: Server) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the counts of requests and streams by status code, and by reason of their refusal."""
    samples = [sample for metric in server.metrics.registry.collect() for sample in metric.samples]
    codes: dict[str, float] = {}
    for sample in samples:
        if sample.name == "digits_requests_total":
            codes[sample.labels["code"]] = codes.get(sample.labels["code"], 0) + sample.value
    rejected = (sample for sample in samples if sample.name == "digits_rejected_requests_total" and sample.value)
    reasons = {sample.labels["reason"]: sample.value for sample in rejected}
    return codes, reasons


async def test_a_stream_answers_each_image_by_id_and_ends_after_the_half_close(
    stream: Any, server: Server, model: Classifier, images: Images
) -> None:
    async def send() -> None:
        for number, image in enumerate(images):
            await stream.write(request(number, image.tobytes()))
        await stream.done_writing()

    sending = asyncio.create_task(send())
    digits = {answer.id: answer.answer.digit async for answer in stream}
    await sending
    assert digits == dict(enumerate(model.predict(images).argmax(axis=1).tolist()))
    assert await stream.code() is CODE.OK
    assert value(server.metrics.registry, "digits_requests_total", method="RecognizeStream", code="OK") == len(images)


async def test_the_requests_of_a_stream_share_runs(start_server: StartServer, gated: GatedModel, images: Images) -> None:
    server = await start_server(gated, instances=1)
    async with open_stream(server) as stream:
        await stream.write(request(0, images[0].tobytes()))
        await gated.run_starts()
        for number in range(1, 50):
            await stream.write(request(number, images[number].tobytes()))
        await stream.done_writing()
        await until(server.metrics.registry, "digits_queue_length_images", 49)
        gated.open()
        assert len([answer async for answer in stream]) == 50
    assert [len(batch) for batch in gated.batches] == [1, 49]


async def test_an_invalid_request_is_answered_with_its_error_and_the_stream_goes_on(stream: Any, images: Images) -> None:
    await stream.write(request(1, b"short"))
    refusal = await stream.read()
    assert (refusal.id, refusal.error.code) == (1, CODE.INVALID_ARGUMENT.value[0])
    assert refusal.error.message == "image is 5 bytes, expected 784: 28 rows of 28 pixels"
    await stream.write(
        pb.RecognizeStreamRequest(id=2, request=pb.RecognizeRequest(image=images[0].tobytes(), model="letters"))
    )
    assert (await stream.read()).error.code == CODE.NOT_FOUND.value[0]
    await stream.write(request(3, images[0].tobytes()))
    assert (await stream.read()).answer.model_version
    await stream.done_writing()
    assert await end_code(stream) is CODE.OK


async def test_late_and_shed_requests_of_a_stream_are_answered_with_their_errors(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1, max_queue_size=1, max_images_per_request=1)
    async with open_stream(server) as stream:
        await stream.write(request(1, images[0].tobytes()))
        await gated.run_starts()
        await stream.write(request(2, images[1].tobytes(), timeout_ms=100))
        await until(server.metrics.registry, "digits_queue_length_images", 1)
        await stream.write(request(3, images[2].tobytes()))
        refusal = await stream.read()
        assert (refusal.id, refusal.error.code) == (3, CODE.RESOURCE_EXHAUSTED.value[0])
        assert refusal.error.retry_after_ms >= 1
        refusal = await stream.read()  # while the model still runs
        assert (refusal.id, refusal.error.code) == (2, CODE.DEADLINE_EXCEEDED.value[0])
        gated.open()
        answer = await stream.read()
        assert answer.id == 1
        assert answer.HasField("answer")
        assert [len(batch) for batch in gated.batches] == [1]


async def test_bytes_that_are_not_a_message_end_only_the_stream(server: Server, stub: DigitServiceStub) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call: Any = channel.stream_stream(METHOD)(timeout=TIMEOUT)
        await call.write(b"\xff" * 50)
        assert await end_code(call) is CODE.INVALID_ARGUMENT
        assert await call.details() == "the request is not a digits.v1.RecognizeStreamRequest message"
    assert counts(server) == ({"INVALID_ARGUMENT": 1}, {"invalid": 1})
    assert await stub.RecognizeBatch(pb.RecognizeBatchRequest(images=bytes(784)), timeout=TIMEOUT)


async def test_a_caller_that_reads_no_answers_is_read_no_further(start_server: StartServer, images: Images) -> None:
    server = await start_server(max_in_flight_per_stream=8)
    registry = server.metrics.registry
    # Limits the answers that the caller's gRPC takes unasked to 64 KB; by default it takes up to several MB.
    async with open_stream(server, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)) as stream:
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await stream.write(request(sent, images[0].tobytes()))
                sent += 1

        sending = asyncio.create_task(send())
        async with asyncio.timeout(TIMEOUT):
            before = -1
            while sent > before:  # until the sender is blocked
                before = sent
                await asyncio.sleep(0.5)
        answered = value(registry, "digits_requests_total")
        assert 64 < answered < 5000
        assert sent < 20_000, "HTTP/2 buffers a few MB, and the sender waits with the rest"
        async with asyncio.timeout(TIMEOUT):
            while sent == before:  # until the sender goes on, since answers are read
                await stream.read()
        sending.cancel()
        stream.cancel()
    await until(registry, "digits_open_streams", 0)


async def test_the_requests_of_a_cancelled_stream_leave_the_queue(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    registry = server.metrics.registry
    async with open_stream(server) as stream:
        for number in range(50):
            await stream.write(request(number, images[number].tobytes()))
        await until(registry, "digits_in_flight_requests", 50)
        assert value(registry, "digits_queue_length_images") > 0
        stream.cancel()
        await until(registry, "digits_in_flight_requests", 0)
        await until(registry, "digits_queue_length_images", 0)
        await until(registry, "digits_open_streams", 0)
    gated.open()
    await until(registry, "digits_batch_size_images_count", len(gated.batches))
    ran = sum(len(batch) for batch in gated.batches)
    assert ran < 50, "the queued images of a cancelled stream were run"
    assert value(registry, "digits_requests_total", method="RecognizeStream", code="OK") == 0
    assert value(registry, "digits_rejected_requests_total", reason="cancelled") == 50
    assert counts(server)[0] == {"CANCELLED": 50}


async def test_a_stream_above_the_limit_is_refused_and_an_ended_one_makes_room(start_server: StartServer) -> None:
    server = await start_server(max_streams=2)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub: Any = DigitServiceStub(channel)
        first, _second = (stub.RecognizeStream(timeout=TIMEOUT) for _ in range(2))
        await until(server.metrics.registry, "digits_open_streams", 2)
        assert await end_code(stub.RecognizeStream(timeout=TIMEOUT)) is CODE.RESOURCE_EXHAUSTED
        assert counts(server) == ({"RESOURCE_EXHAUSTED": 1}, {"too_busy": 1})
        await first.done_writing()
        assert await end_code(first) is CODE.OK
        third = stub.RecognizeStream(timeout=TIMEOUT)
        await third.done_writing()
        assert await end_code(third) is CODE.OK


async def test_stopping_answers_a_streams_requests_and_ends_it_as_unavailable(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    async with open_stream(server) as stream:
        for number in range(20):
            await stream.write(request(number, images[number].tobytes()))
        await until(server.metrics.registry, "digits_in_flight_requests", 20)
        stopping = asyncio.create_task(server.stop(drain_seconds=0, grace_seconds=TIMEOUT))
        async with connect(server) as stub:
            async with asyncio.timeout(TIMEOUT):
                while (await refused(recognize(stub, images[0].tobytes(), 0.2))).code() is not CODE.UNAVAILABLE:
                    pass  # until the server has begun to stop
        gated.open()
        answered = set()
        for _ in range(20):
            answered.add((await stream.read()).id)
        assert answered == set(range(20))
        assert await end_code(stream) is CODE.UNAVAILABLE
        await stopping
    codes, reasons = counts(server)
    assert codes["OK"] == 20
    assert reasons["stopping"] >= 1, "of the stream; a closed port refuses calls uncounted"


async def test_the_client_returns_the_answers_and_the_refusals_of_a_stream(
    server: Server, model: Classifier, images: Images
) -> None:
    def read() -> dict[int, Recognition | Refusal]:
        with DigitClient(f"127.0.0.1:{server.grpc_port}", TIMEOUT) as client:
            return dict(client.recognize_stream(images, model="digits", key="sorter 1"))

    def read_unknown_model() -> list[tuple[int, Recognition | Refusal]]:
        with DigitClient(f"127.0.0.1:{server.grpc_port}", TIMEOUT) as client:
            return list(client.recognize_stream(images[:3], model="letters"))

    answers = await asyncio.to_thread(read)
    digits = [answer.digit for _, answer in sorted(answers.items()) if isinstance(answer, Recognition)]
    assert digits == model.predict(images).argmax(axis=1).tolist()
    refusals = dict(await asyncio.to_thread(read_unknown_model))
    assert refusals == {number: Refusal(CODE.NOT_FOUND, "there is no model 'letters'") for number in range(3)}


async def test_an_invalid_image_ends_the_clients_stream_after_earlier_answers(server: Server, images: Images) -> None:
    answered = []

    def read() -> None:
        with DigitClient(f"127.0.0.1:{server.grpc_port}", TIMEOUT) as client:
            for number, _ in client.recognize_stream([*images[:5], images[:2], images[6]]):
                answered.append(number)

    with pytest.raises(ValueError, match=r"images have shape \(2, 28, 28\)"):
        await asyncio.to_thread(read)
    assert sorted(answered) == [0, 1, 2, 3, 4]
    await until(server.metrics.registry, "digits_open_streams", 0)


async def test_breaking_off_the_clients_stream_leaves_no_stream_open(server: Server, images: Images) -> None:
    def read_one() -> None:
        with DigitClient(f"127.0.0.1:{server.grpc_port}", TIMEOUT) as client:
            next(client.recognize_stream(itertools.cycle(images)))

    await asyncio.to_thread(read_one)
    await until(server.metrics.registry, "digits_open_streams", 0)
