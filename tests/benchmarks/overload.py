"""Goodput under three times the load that the service can answer: `make overload`.

A closed loop finds the capacity. Then an open loop sends a multiple of the capacity: every call leaves at its own time, and
counts only when its answer arrives within the deadline. The service has one worker with one instance, so that on two cores
the callers, one Python process, have a core of their own. Python sends calls of one image too slowly; h2load, where it is
installed, sends these to a service with default settings.
"""

import argparse
import asyncio
import shutil
import time
from collections import Counter
from dataclasses import dataclass

import grpc
import numpy as np

from serving.loadtest.calls import GrpcTarget
from serving.loadtest.plan import Plan
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from tests.benchmarks.generators import check, flood, load
from tests.support.drawings import draw_many
from tests.support.service import Service, service

CONNECTIONS = 8
CALLERS = 16


@dataclass
class Outcome:
    """Outcomes of the calls of one run, by status code; rates in calls a second."""

    codes: Counter[str]
    seconds: float
    latencies: list[float]  # seconds, of the calls answered
    refusals: list[float]  # seconds, of the calls refused with RESOURCE_EXHAUSTED

    @property
    def goodput(self) -> float:
        """Calls answered, a second."""
        return self.codes["OK"] / self.seconds


async def closed(stubs: list[DigitServiceStub], request: pb.RecognizeBatchRequest, seconds: float) -> Outcome:
    """Runs CALLERS callers; each sends its next call when the last one is answered."""
    outcome = Outcome(Counter(), seconds, [], [])
    end = time.perf_counter() + seconds

    async def call_in_turn(stub: DigitServiceStub) -> None:
        while time.perf_counter() < end:
            await _call(stub, request, 60, outcome)

    await asyncio.gather(*(call_in_turn(stubs[n % len(stubs)]) for n in range(CALLERS)))
    return outcome


async def opened(
    stubs: list[DigitServiceStub], request: pb.RecognizeBatchRequest, rate: float, seconds: float, deadline: float
) -> Outcome:
    """Sends `rate` calls a second, at fixed times."""
    outcome = Outcome(Counter(), seconds, [], [])
    start = time.perf_counter()
    calls = set()
    number = 0
    while (now := time.perf_counter() - start) < seconds:
        while number < now * rate:
            calls.add(asyncio.ensure_future(_call(stubs[number % len(stubs)], request, deadline, outcome)))
            number += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*calls)
    outcome.codes["sent"] = number
    return outcome


async def _call(stub: DigitServiceStub, request: pb.RecognizeBatchRequest, deadline: float, outcome: Outcome) -> None:
    start = time.perf_counter()
    try:
        await stub.RecognizeBatch(request, timeout=deadline)
        outcome.codes["OK"] += 1
        outcome.latencies.append(time.perf_counter() - start)
    except grpc.aio.AioRpcError as error:
        outcome.codes[error.code().name] += 1
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            outcome.refusals.append(time.perf_counter() - start)


async def run(server: Service, images_per_call: int, factor: float, seconds: float, deadline: float) -> None:
    """Finds the capacity, then exceeds it, and prints the outcomes of both."""
    images, _ = draw_many(images_per_call, seed=0)
    request = pb.RecognizeBatchRequest(images=images.tobytes())
    own_pool = [("grpc.use_local_subchannel_pool", 1)]  # else the channels would share one connection
    channels = [grpc.aio.insecure_channel(server.address, options=own_pool) for _ in range(CONNECTIONS)]
    stubs = [DigitServiceStub(channel) for channel in channels]
    await closed(stubs, request, 1)  # warm-up
    before = server.scrape("process_resident_memory_bytes")
    capacity = await closed(stubs, request, seconds)
    over = await opened(stubs, request, factor * capacity.goodput, seconds, deadline)
    after = server.scrape("process_resident_memory_bytes")
    again = await closed(stubs, request, seconds)
    for channel in channels:
        await channel.close()
    base = (capacity.goodput + again.goodput) / 2
    print(f"{images_per_call} images a call, deadline {deadline:g} s")
    print(f"capacity   {capacity.goodput:,.0f} calls/s before, {again.goodput:,.0f} after")
    sent = over.codes.pop("sent")
    print(f"sent       {sent / seconds:,.0f} calls/s for {seconds:g} s")
    print(
        f"goodput    {over.goodput:,.0f} calls/s, {over.goodput / base:.2f} of capacity; p50, p99 ms {_tail(over.latencies)}"
    )
    print(f"refused    p50, p99 ms {_tail(over.refusals)}")
    print(f"ended as   {dict(over.codes)} of {sent:,} calls, lost {sent - over.codes.total()}")
    print(f"memory     {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after")


def run_single(factor: float, seconds: float, deadline: float) -> None:
    """Does the same with calls of one image."""
    with service() as server:
        target = GrpcTarget(server.address)
        many = Plan(callers=64, seconds=seconds)
        check(target, many)
        before = load(target, many).calls_per_second
        outcomes = {code: -server.scrape("digits_requests_total", code=code.name) for code in grpc.StatusCode}
        sent_rate = factor * before
        flood(target, Plan(rate=sent_rate, seconds=seconds, timeout_seconds=deadline))
        time.sleep(deadline)
        for code in outcomes:
            outcomes[code] += server.scrape("digits_requests_total", code=code.name)
        after = load(target, many).calls_per_second
    goodput = outcomes[grpc.StatusCode.OK] / seconds
    print(f"1 image a call by h2load, deadline {deadline:g} s")
    print(f"capacity   {before:,.0f} calls/s before, {after:,.0f} after")
    print(f"sent       {sent_rate:,.0f} calls/s for {seconds:g} s")
    print(f"goodput    {goodput:,.0f} calls/s, {goodput / ((before + after) / 2):.2f} of capacity")
    ended = ", ".join(f"{count:,.0f} {code.name}" for code, count in outcomes.items() if count)
    print(f"ended as   {ended}; about {sent_rate * seconds - sum(outcomes.values()):,.0f} never reached the service")


def _tail(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    p50, p99 = np.quantile(seconds, (0.5, 0.99)) * 1000
    return f"{p50:.1f}, {p99:.1f}"


def main() -> None:
    """Measures each number of images a call on a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each part (default: %(default)s)")
    parser.add_argument("--factor", type=float, default=3.0, help="of the capacity (default: %(default)s)")
    parser.add_argument("--deadline", type=float, default=2.0, help="seconds (default: %(default)s)")
    parser.add_argument("--images", type=int, nargs="+", default=[64, 512], help="a call (default: %(default)s)")
    options = parser.parse_args()
    for images in options.images:
        with service("--workers", "1", "--instances", "1") as server:
            asyncio.run(run(server, images, options.factor, options.seconds, options.deadline))
    if shutil.which("h2load"):
        run_single(options.factor, options.seconds, options.deadline)
    else:
        print("1 image a call: skipped, because h2load is not installed (apt-get install nghttp2-client)")


if __name__ == "__main__":
    main()
