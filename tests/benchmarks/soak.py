"""Ten minutes of every kind of call at once; memory and open files of the server must not grow: `make soak`.

Single calls, batches, streams, tensors, bad requests, callers who give up, clients that take no answers, dropped
connections, and a new model version now and then. The exit status is 1 when a good call fails, or when memory or the number
of open files has grown.
"""

import argparse
import asyncio
import random
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import psutil

from serving.api import digits
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.pb.inference import open_inference_pb2 as oip
from serving.pb.inference.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serving.settings import Settings
from tests.support.drawings import draw_many
from tests.support.http2_client import grpc_message, http2_client
from tests.support.model_files import publish
from tests.support.service import Service, service

# Allowed growth from the second fifth of the run, when all code has run once, to the last. Calls in flight make memory vary
# by a tenth, so the lower quartiles of both fifths are compared.
GROWTH_RATIO = 1.15
# The metrics of a version are six files in each worker. Of removed versions, some files wait for the garbage collector.
GROWTH_FILES = 36

INITIAL_WINDOW_SIZE = 4  # the number of this setting of HTTP/2

IMAGES, _ = draw_many(1000, seed=0)
Workload = Callable[[grpc.aio.Channel], Awaitable[None]]


async def single(channel: grpc.aio.Channel) -> None:
    """Sends one image."""
    stub = DigitServiceStub(channel)
    await stub.Recognize(pb.RecognizeRequest(image=random.choice(IMAGES).tobytes()), timeout=30)  # noqa: S311


async def batch(channel: grpc.aio.Channel) -> None:
    """Sends up to a thousand images in one call."""
    images = IMAGES[: random.randint(1, 1000)]  # noqa: S311
    await DigitServiceStub(channel).RecognizeBatch(pb.RecognizeBatchRequest(images=images.tobytes()), timeout=30)


async def stream(channel: grpc.aio.Channel) -> None:
    """Sends two hundred images on a stream; every fifth caller cancels in the middle."""
    call = DigitServiceStub(channel).RecognizeStream(timeout=30)
    leaves = random.random() < 0.2  # noqa: S311
    for number in range(200):
        image = pb.RecognizeRequest(image=IMAGES[number].tobytes())
        await call.write(pb.RecognizeStreamRequest(id=number, request=image))
        if leaves and number == 100:
            call.cancel()
            return
    await call.done_writing()
    answered = {answer.id async for answer in call}
    if answered != set(range(200)):
        raise RuntimeError(f"a stream was answered {len(answered)} of 200 images")


async def tensor(channel: grpc.aio.Channel) -> None:
    """Sends eight images by the Open Inference Protocol."""
    request = oip.ModelInferRequest(model_name="digits", raw_input_contents=[IMAGES[:8].tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=[8, 28, 28])
    await GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)


async def bad(channel: grpc.aio.Channel) -> None:
    """Sends a malformed request, or one with a deadline that is too short; the server must refuse both."""
    try:
        if random.random() < 0.5:  # noqa: S311
            await DigitServiceStub(channel).Recognize(pb.RecognizeRequest(image=b"short"), timeout=30)
        else:
            request = pb.RecognizeBatchRequest(images=IMAGES.tobytes())
            await DigitServiceStub(channel).RecognizeBatch(request, timeout=0.005)
    except grpc.aio.AioRpcError as error:
        if error.code().name not in ("INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"):
            raise


async def soak(server: Service, models: Path, seconds: float) -> int:
    """Loads the server, samples its memory and open files, and returns the exit status."""
    end = time.monotonic() + seconds
    done: Counter[str] = Counter()
    failed: Counter[str] = Counter()

    async def caller(workload: Workload) -> None:
        while time.monotonic() < end:
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(server.address, options=options) as channel:
                for _ in range(50):  # then a new connection
                    try:
                        await workload(channel)
                        done[workload.__name__] += 1
                    except grpc.aio.AioRpcError as error:
                        failed[f"{workload.__name__}: {error.code().name}"] += 1

    async def drop_connections() -> None:
        host, _, port = server.address.rpartition(":")
        while time.monotonic() < end:
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(random.randbytes(random.randint(0, 100)))  # noqa: S311
            done["dropped connections"] += 1
            await asyncio.sleep(0.05)

    async def take_no_answers() -> None:
        port = int(server.address.rpartition(":")[2])
        request = pb.RecognizeBatchRequest(images=IMAGES[:100].tobytes()).SerializeToString()
        while time.monotonic() < end:
            async with http2_client(port, {INITIAL_WINDOW_SIZE: 0}) as client:
                for _ in range(10):
                    client.send(f"/{digits.NAME}/RecognizeBatch", grpc_message(request))
                await asyncio.sleep(random.uniform(0, 5))  # noqa: S311
            done["clients that took no answers"] += 1

    async def publish_versions() -> None:
        version = 1
        while time.monotonic() < end - 10:
            # The metrics of the last ten versions stay, so that many are published before the second fifth begins.
            await asyncio.sleep(min(20.0, seconds / 60))
            version += 1
            publish(models, version)
            done["versions published"] += 1
            if version > 3:
                shutil.rmtree(models / "digits" / str(version - 2))

    held: list[tuple[float, int]] = []

    async def watch() -> None:
        processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
        while time.monotonic() < end:
            await asyncio.sleep(2)
            held.append((sum(each.memory_info().rss for each in processes) / 1e6, sum(each.num_fds() for each in processes)))

    beside = drop_connections(), take_no_answers(), publish_versions(), watch()
    workloads = [single] * 8 + [batch] * 2 + [stream] * 2 + [tensor] * 2 + [bad] * 2
    await asyncio.gather(*(caller(workload) for workload in workloads), *beside)
    fifth = len(held) // 5
    memory_before, memory_after = (
        statistics.quantiles([mb for mb, _ in part], n=4)[0] for part in (held[fifth : 2 * fifth], held[-fifth:])
    )
    files_before, files_after = (statistics.median(n for _, n in part) for part in (held[fifth : 2 * fifth], held[-fifth:]))
    print(f"done    {dict(done)}")
    print(f"failed  {dict(failed)}")
    print(f"memory  {memory_before:.0f} MB in the second fifth, {memory_after:.0f} MB in the last")
    print(f"files   {files_before:g} open in the second fifth, {files_after:g} in the last")
    print("memory by tenths, MB:", *(f"{mb:.0f}" for mb, _ in held[:: max(1, len(held) // 10)]))
    grown = memory_after > memory_before * GROWTH_RATIO or files_after > files_before + GROWTH_FILES
    return int(grown or bool(failed))


def main() -> int:
    """Runs the soak test on a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=10.0, help="(default: %(default)s)")
    parser.add_argument("--front", choices=("http2", "grpcio"), default=Settings().front, help="(default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)
        publish(models, 1)
        with service("--models", str(models), "--front", options.front) as server:
            return asyncio.run(soak(server, models, options.minutes * 60))


if __name__ == "__main__":
    sys.exit(main())
