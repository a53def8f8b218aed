"""The workers of a service: connections to each, their counts of calls, their states."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import grpc
from prometheus_client.multiprocess import MultiProcessCollector

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from tests.support.calls import TIMEOUT
from tests.support.service import Service


@asynccontextmanager
async def connections(service: Service, count: int) -> AsyncIterator[list[DigitServiceStub]]:
    """Stubs on `count` connections, each of which the kernel gives to one of the workers."""
    async with AsyncExitStack() as open_ones:
        apart = [("grpc.use_local_subchannel_pool", 1)]  # else they would share one
        channels = [grpc.aio.insecure_channel(service.address, options=apart) for _ in range(count)]
        yield [DigitServiceStub(await open_ones.enter_async_context(channel)) for channel in channels]


def counted(tmp_path: Path, worker: int) -> int:
    """Returns the calls that the worker with this number has counted."""
    files = [str(file) for file in tmp_path.glob(f"*/counter_{worker}.db")]
    merged = MultiProcessCollector.merge(files)
    values = [sample.value for metric in merged for sample in metric.samples if sample.name == "digits_requests_total"]
    return int(sum(values))


async def connections_of_both(
    tmp_path: Path, stubs: list[DigitServiceStub], request: pb.RecognizeRequest
) -> tuple[set[int], set[int]]:
    """Makes a call on each connection; returns the indices of the connections of worker 0, and of worker 1."""
    owned: tuple[set[int], set[int]] = (set(), set())
    for place, stub in enumerate(stubs):
        before = counted(tmp_path, 0)
        await stub.Recognize(request, timeout=TIMEOUT)
        owned[0 if counted(tmp_path, 0) > before else 1].add(place)
    return owned


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2 * TIMEOUT):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


def ready(service: Service) -> tuple[int, str]:
    try:
        with urlopen(service.metrics.replace("metrics", "readyz"), timeout=TIMEOUT) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
