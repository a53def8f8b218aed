import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.inference.classifier import Classifier
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.process.server import Server
from tests.support.calls import TIMEOUT, refused
from tests.support.digit_calls import connect, recognize, recognize_batch
from tests.support.metrics import until, value
from tests.support.model_files import publish_breakable, publish_unsound
from tests.support.models import GatedModel
from tests.support.servers import StartServer

Images = NDArray[np.uint8]

CODE = grpc.StatusCode
WHITE = b"\xff" * 784


async def test_an_image_is_answered_with_the_output_of_the_model(
    stub: DigitServiceStub, model: Classifier, images: Images
) -> None:
    expected = model.predict(images[:1])[0]
    answer = await recognize(stub, images[0].tobytes())
    assert answer.digit == expected.argmax()
    assert answer.confidence == pytest.approx(expected.max(), abs=1e-6)
    assert list(answer.probabilities) == pytest.approx(expected.tolist(), abs=1e-6)
    assert answer.model_version == model.version


async def test_a_batch_is_answered_in_order(stub: DigitServiceStub, model: Classifier, images: Images) -> None:
    expected = model.predict(images)
    answer = await recognize_batch(stub, images.tobytes())
    assert list(answer.digits) == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(answer.confidences, expected.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(np.array(answer.probabilities).reshape(-1, 10), expected, atol=1e-5)
    assert answer.model_version == model.version


@pytest.mark.parametrize("size", [0, 1, 783, 785, 2 * 784])
async def test_an_image_of_another_size_is_refused_and_the_next_is_answered(
    stub: DigitServiceStub, images: Images, size: int
) -> None:
    error = await refused(recognize(stub, bytes(size)))
    assert error.code() is CODE.INVALID_ARGUMENT
    assert error.details() == f"image is {size} bytes, expected 784: 28 rows of 28 pixels"
    assert len((await recognize(stub, images[0].tobytes())).probabilities) == 10


@pytest.mark.parametrize("size", [0, 783, 10 * 784 + 1])
async def test_a_batch_without_a_whole_number_of_images_is_refused(stub: DigitServiceStub, size: int) -> None:
    error = await refused(recognize_batch(stub, bytes(size)))
    assert error.code() is CODE.INVALID_ARGUMENT
    assert f"images is {size} bytes" in (error.details() or "")


async def test_a_batch_above_a_limit_is_refused_and_the_next_is_answered(start_server: StartServer, images: Images) -> None:
    server = await start_server(max_images_per_request=100)
    async with connect(server) as stub:
        error = await refused(recognize_batch(stub, bytes(101 * 784)))
        assert error.code() is CODE.INVALID_ARGUMENT
        assert error.details() == "images holds 101 images, this server takes 100 a call"
        error = await refused(recognize_batch(stub, bytes(5 << 20)))
        assert error.code() is CODE.RESOURCE_EXHAUSTED, "the message is larger than 100 images can be"
        assert len((await recognize_batch(stub, images[:100].tobytes())).digits) == 100


async def test_a_full_queue_refuses_a_call_with_a_time_to_retry_after(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, max_queue_size=10, max_images_per_request=10, instances=1)
    async with connect(server) as stub:
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


async def test_a_call_past_its_deadline_is_counted_and_its_image_never_run(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    async with connect(server) as stub:
        running = asyncio.ensure_future(recognize(stub, images[0].tobytes()))
        await gated.run_starts()
        error = await refused(recognize(stub, images[1].tobytes(), timeout=0.2))
        assert error.code() is CODE.DEADLINE_EXCEEDED
        gated.open()
        await running
        await recognize(stub, images[2].tobytes())
    assert [batch[0].tobytes() for batch in gated.batches] == [images[0].tobytes(), images[2].tobytes()]
    # The caller gives up at the same moment, and its cancellation may be first.
    registry = server.metrics.registry
    codes = [value(registry, "digits_requests_total", code=code) for code in ("DEADLINE_EXCEEDED", "CANCELLED")]
    reasons = [value(registry, "digits_rejected_requests_total", reason=reason) for reason in ("deadline", "cancelled")]
    assert sorted(codes) == [0, 1]
    assert reasons == codes


async def test_a_cancelled_call_is_counted_and_its_image_never_run(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1)
    registry = server.metrics.registry
    async with connect(server) as stub:
        running = asyncio.ensure_future(recognize(stub, images[0].tobytes()))
        await gated.run_starts()
        cancelled = stub.Recognize(pb.RecognizeRequest(image=images[1].tobytes()), timeout=TIMEOUT)
        staying = asyncio.ensure_future(recognize(stub, images[2].tobytes()))
        await until(registry, "digits_queue_length_images", 2)
        cancelled.cancel()
        await until(registry, "digits_queue_length_images", 1)
        gated.open()
        await asyncio.gather(running, staying)
    assert [batch[0].tobytes() for batch in gated.batches] == [images[0].tobytes(), images[2].tobytes()]
    assert value(registry, "digits_requests_total", method="Recognize", code="CANCELLED") == 1


async def test_64_callers_are_answered_at_once(
    stub: DigitServiceStub, server: Server, model: Classifier, images: Images
) -> None:
    expected = model.predict(images).argmax(axis=1)

    async def call_in_turn(first: int) -> list[int]:
        return [(await recognize(stub, images[index].tobytes())).digit for index in range(first, len(images), 64)]

    for first, recognized in enumerate(await asyncio.gather(*(call_in_turn(first) for first in range(64)))):
        assert recognized == expected[first::64].tolist()
    assert value(server.metrics.registry, "digits_batch_size_images_sum") == len(images)
    assert value(server.metrics.registry, "digits_requests_total", method="Recognize", code="OK") == len(images)


async def test_callers_share_runs_without_a_queue_delay(
    start_server: StartServer, gated: GatedModel, images: Images
) -> None:
    server = await start_server(gated, instances=1, max_queue_delay_ms=0)
    async with connect(server) as stub:
        first = asyncio.ensure_future(recognize(stub, images[0].tobytes()))
        await gated.run_starts()
        others = [asyncio.ensure_future(recognize(stub, image.tobytes())) for image in images[1:64]]
        await until(server.metrics.registry, "digits_queue_length_images", 63)
        gated.open()
        await asyncio.gather(first, *others)
    assert [len(batch) for batch in gated.batches] == [1, 63]


async def test_a_failed_run_ends_only_its_call_with_a_fixed_message(
    start_server: StartServer, images: Images, tmp_path: Path
) -> None:
    publish_breakable(tmp_path, 1)
    server = await start_server(None, models=tmp_path)
    async with connect(server) as stub:
        assert len((await recognize_batch(stub, images[:5].tobytes())).digits) == 5
        error = await refused(recognize(stub, WHITE))
        assert error.code() is CODE.INTERNAL
        assert error.details() == "the model failed on a run with images of this request"
        assert len((await recognize_batch(stub, images[:5].tobytes())).digits) == 5
    assert value(server.metrics.registry, "digits_rejected_requests_total", reason="model_error") == 1


async def test_an_image_with_nan_in_its_output_fails_alone_in_its_run(
    start_server: StartServer, model: Classifier, images: Images, tmp_path: Path
) -> None:
    publish_unsound(tmp_path, 1)
    server = await start_server(None, models=tmp_path, max_queue_delay_ms=50, instances=1)
    async with connect(server) as stub:
        answer, error = await asyncio.gather(recognize_batch(stub, images[:5].tobytes()), refused(recognize(stub, WHITE)))
    assert error.code() is CODE.INTERNAL
    assert error.details() == "the model returned NaN or infinity for an image in this request"
    assert list(answer.digits) == model.predict(images[:5]).argmax(axis=1).tolist()
    assert value(server.metrics.registry, "digits_batch_size_images_count") == 1, "both requests should share a run"
