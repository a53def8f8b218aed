import asyncio
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from numpy.typing import NDArray

from serving import digit_service, edge
from serving.errors import Refused, RequestError
from serving.metrics import Metrics
from serving.model import Model
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.server import Server
from tests.conftest import TIMEOUT, GatedModel, StartServer, refused, until, value
from tests.model_files import publish_breakable, publish_unsound

Images = NDArray[np.uint8]

CODE = grpc.StatusCode


async def recognize(stub: DigitServiceStub, image: bytes, timeout: float = TIMEOUT) -> pb.RecognizeResponse:
    answer: pb.RecognizeResponse = await stub.Recognize(pb.RecognizeRequest(image=image), timeout=timeout)
    return answer


async def recognize_batch(stub: DigitServiceStub, images: bytes) -> pb.RecognizeBatchResponse:
    request = pb.RecognizeBatchRequest(images=images)
    answer: pb.RecognizeBatchResponse = await stub.RecognizeBatch(request, timeout=TIMEOUT)
    return answer


async def test_one_image_is_answered_as_the_model_reads_it(stub: DigitServiceStub, model: Model, images: Images) -> None:
    expected = model.predict(images[:1])[0]
    answer = await recognize(stub, images[0].tobytes())
    assert answer.digit == expected.argmax()
    assert answer.confidence == pytest.approx(expected.max(), abs=1e-6)
    assert list(answer.probabilities) == pytest.approx(expected.tolist(), abs=1e-6)
    assert answer.model_version == model.version


async def test_a_batch_is_answered_in_order(stub: DigitServiceStub, server: Server, model: Model, images: Images) -> None:
    expected = model.predict(images)
    answer = await recognize_batch(stub, images.tobytes())
    assert list(answer.digits) == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(answer.confidences, expected.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(np.array(answer.probabilities).reshape(-1, 10), expected, atol=1e-5)
    assert answer.model_version == model.version


@pytest.mark.parametrize("size", [0, 1, 783, 785, 2 * 784])
async def test_an_image_of_another_size_is_refused_and_the_server_lives(
    stub: DigitServiceStub, images: Images, size: int
) -> None:
    error = await refused(recognize(stub, bytes(size)))
    assert error.code() is CODE.INVALID_ARGUMENT
    assert error.details() == f"image is {size} bytes, expected 784: 28 rows of 28 pixels"
    assert len((await recognize(stub, images[0].tobytes())).probabilities) == 10


@pytest.mark.parametrize("size", [0, 783, 10 * 784 + 1])
async def test_a_batch_of_no_whole_number_of_images_is_refused(stub: DigitServiceStub, size: int) -> None:
    error = await refused(recognize_batch(stub, bytes(size)))
    assert error.code() is CODE.INVALID_ARGUMENT
    assert f"images is {size} bytes" in (error.details() or "")


async def test_a_message_with_too_many_images_is_refused_and_the_server_lives(
    start_server: StartServer, images: Images
) -> None:
    server = await start_server(max_images_per_request=100)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        error = await refused(recognize_batch(stub, bytes(101 * 784)))
        assert error.code() is CODE.INVALID_ARGUMENT
        assert error.details() == "images holds 101 images, this server takes 100 a call"
        error = await refused(recognize_batch(stub, bytes(1000 * 784)))
        assert error.code() is CODE.RESOURCE_EXHAUSTED
        assert len((await recognize_batch(stub, images[:100].tobytes())).digits) == 100


async def test_bytes_that_are_no_message_are_refused_and_the_server_lives(server: Server, images: Images) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{digit_service.NAME}/Recognize")
        error = await refused(call(b"\xff" * 50, timeout=TIMEOUT))
        assert error.code() is CODE.INVALID_ARGUMENT
        assert error.details() == "the request is no digits.v1.RecognizeRequest message"
        assert await recognize(DigitServiceStub(channel), images[0].tobytes())


def test_every_reason_for_no_answer_has_a_status_code() -> None:
    reasons = {*RequestError.__subclasses__(), *Refused.__subclasses__()} - {Refused}
    assert set(edge.STATUS) == reasons
    named = {reason.reason for reason in reasons}
    assert len(named) == len(reasons)
    described = next(iter(Metrics().rejected_requests.describe())).documentation.rstrip(".").split(": ")[1].split(", ")
    assert set(described) == named | {"cancelled"}, "the metric's help names them all"


async def test_a_full_queue_is_told_with_a_time_to_come_back(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, max_queue_size=10, max_images_per_request=10, instances=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        running = asyncio.ensure_future(recognize(stub, images[0].tobytes()))
        await gated.run_starts()
        waiting = asyncio.ensure_future(recognize_batch(stub, images[:10].tobytes()))
        await until(server.metrics.registry, "digits_queue_length_images", 10)
        error = await refused(recognize(stub, images[0].tobytes()))
        gated.open()
        assert error.code() is CODE.RESOURCE_EXHAUSTED
        assert int(str(dict(error.trailing_metadata())["grpc-retry-pushback-ms"])) >= 1
        await asyncio.gather(running, waiting)
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="queue_full") == 1


async def test_an_expired_deadline_is_counted_and_what_waited_is_never_run(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        running = asyncio.ensure_future(recognize(stub, images[0].tobytes()))
        await gated.run_starts()
        error = await refused(recognize(stub, images[1].tobytes(), timeout=0.2))
        assert error.code() is CODE.DEADLINE_EXCEEDED
        gated.open()
        await running
        await recognize(stub, images[2].tobytes())
    assert [batch[0].tobytes() for batch in gated.batches] == [images[0].tobytes(), images[2].tobytes()]
    counted = {"method": "Recognize", "code": "DEADLINE_EXCEEDED"}
    assert value(server.metrics.registry, "digits_requests_total", **counted) == 1
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="deadline") == 1


async def test_a_caller_that_gives_up_is_counted_and_what_waited_is_never_run(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    registry = server.metrics.registry
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        running = asyncio.ensure_future(recognize(stub, images[0].tobytes()))
        await gated.run_starts()
        leaving = stub.Recognize(pb.RecognizeRequest(image=images[1].tobytes()), timeout=TIMEOUT)
        staying = asyncio.ensure_future(recognize(stub, images[2].tobytes()))
        await until(registry, "digits_queue_length_images", 2)
        leaving.cancel()
        await until(registry, "digits_queue_length_images", 1)
        gated.open()
        await asyncio.gather(running, staying)
    assert [batch[0].tobytes() for batch in gated.batches] == [images[0].tobytes(), images[2].tobytes()]
    assert value(registry, "digits_requests_total", method="Recognize", code="CANCELLED") == 1


async def test_sixty_four_callers_share_batches_without_any_delay_set(
    stub: DigitServiceStub, server: Server, model: Model, images: Images
) -> None:
    expected = model.predict(images).argmax(axis=1)

    async def call_in_turn(first: int) -> list[int]:
        return [(await recognize(stub, images[n].tobytes())).digit for n in range(first, len(images), 64)]

    for first, digits in enumerate(await asyncio.gather(*(call_in_turn(first) for first in range(64)))):
        assert digits == expected[first::64].tolist()
    runs = value(server.metrics.registry, "digits_batch_size_images_count")
    assert value(server.metrics.registry, "digits_batch_size_images_sum") == len(images)
    assert len(images) / runs > 4
    assert value(server.metrics.registry, "digits_requests_total", method="Recognize", code="OK") == len(images)


async def test_a_run_that_fails_in_onnx_runtime_ends_its_call_with_a_fixed_text_and_the_server_lives(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish_breakable(tmp_path, 1)
    server = await start_server(None, models=tmp_path)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        assert len((await recognize_batch(stub, images[:5].tobytes())).digits) == 5
        error = await refused(recognize(stub, b"\xff" * 784))
        assert error.code() is CODE.INTERNAL
        assert error.details() == "the model failed on a run with images of this request"
        assert len((await recognize_batch(stub, images[:5].tobytes())).digits) == 5
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="model_error") == 1


async def test_an_image_that_the_model_gives_no_number_for_fails_alone(
    start_server: StartServer, model: Model, images: Images, tmp_path: Path
) -> None:
    publish_unsound(tmp_path, 1)
    server = await start_server(None, models=tmp_path, max_queue_delay_ms=50, instances=1)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = DigitServiceStub(channel)
        good, error = await asyncio.gather(
            recognize_batch(stub, images[:5].tobytes()), refused(recognize(stub, b"\xff" * 784))
        )
    assert error.code() is CODE.INTERNAL
    assert error.details() == "the model gave no number for an image of this request"
    assert list(good.digits) == model.predict(images[:5]).argmax(axis=1).tolist()
    assert value(server.metrics.registry, "digits_batch_size_images_count") == 1, "they should have shared a run"


async def test_metrics_over_http_count_what_was_answered(
    stub: DigitServiceStub, server: Server, model: Model, images: Images
) -> None:
    await recognize_batch(stub, images.tobytes())
    await refused(recognize(stub, b""))

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=TIMEOUT) as page:
            return str(page.read(), "utf-8")

    page = await asyncio.to_thread(scrape)
    counts = np.bincount(model.predict(images).argmax(axis=1), minlength=10)
    for digit, count in enumerate(counts):
        assert f'digits_predictions_total{{digit="{digit}",model="digits",version="{model.version}"}} {count:.1f}' in page
    assert 'digits_requests_total{code="INVALID_ARGUMENT",method="Recognize"} 1.0' in page
    assert 'digits_rejected_requests_total{reason="invalid"} 1.0' in page
    assert f'digits_confidence_count{{model="digits",version="{model.version}"}} {len(images):.1f}' in page
    assert "digits_in_flight_requests 0.0" in page
    assert f'model="digits",recipe="{model.recipe}",test_accuracy="{model.test_accuracy:.4f}"' in page


async def test_health_and_reflection_answer(server: Server) -> None:
    def reflect() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            file = database.FindFileContainingSymbol(digit_service.NAME)
            return list(database.get_services()), [method.name for method in file.service[0].method]

    services, methods = await asyncio.to_thread(reflect)
    assert digit_service.NAME in services
    assert methods == ["Recognize", "RecognizeBatch", "RecognizeStream"]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", digit_service.NAME):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
