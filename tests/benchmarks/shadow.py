"""Latency with and without a shadow version, by turns at one rate: `python -m tests.benchmarks.shadow`.

An open loop sends single images at a rate that leaves the machine some room. Each round measures both on the same server,
whose routing.toml changes in between.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from tests.support.drawings import draw_many
from tests.support.model_files import publish
from tests.support.service import Service, service

WITH_SHADOW = "stable = 1\n[shadow]\nversion = 2\n"
WITHOUT = "stable = 1\n"


async def latencies(stub: DigitServiceStub, rate: float, seconds: float) -> list[float]:
    """Returns the latency of each call of an open loop in milliseconds, measured from its due time."""
    request = pb.RecognizeRequest(image=draw_many(1, seed=0)[0][0].tobytes())
    taken = []

    async def call(due: float) -> None:
        await stub.Recognize(request, timeout=60)
        taken.append((time.perf_counter() - due) * 1000)

    start = time.perf_counter()
    calls: list[asyncio.Task[None]] = []
    while (now := time.perf_counter() - start) < seconds:
        while len(calls) < now * rate:
            calls.append(asyncio.create_task(call(start + len(calls) / rate)))
        await asyncio.sleep(0.001)
    await asyncio.gather(*calls)
    return taken


async def compare(server: Service, models: Path, rate: float, seconds: float, rounds: int) -> None:
    """Measures both routings by turns, and prints the medians of the rounds."""
    tails: dict[str, list[tuple[float, float]]] = {WITHOUT: [], WITH_SHADOW: []}
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = DigitServiceStub(channel)
        await latencies(stub, rate, 1)  # warm-up
        for _ in range(rounds):
            for routing, measured in tails.items():
                (models / "digits" / "new").write_text(routing)
                (models / "digits" / "new").rename(models / "digits" / "routing.toml")
                role = float(routing is WITH_SHADOW)
                while server.scrape("digits_model_role", role="shadow") != role:
                    await asyncio.sleep(0.1)
                p50, p99 = np.quantile(await latencies(stub, rate, seconds), (0.5, 0.99))
                measured.append((float(p50), float(p99)))
    for name, routing in (("without", WITHOUT), ("with shadow", WITH_SHADOW)):
        p50, p99 = (statistics.median(column) for column in zip(*tails[routing], strict=True))
        print(f"{name:12} p50 {p50:.2f} ms, p99 {p99:.2f} ms at {rate:g} calls/s")
    for outcome in ("agreed", "disagreed", "failed", "skipped"):
        print(f"{outcome:12} {server.scrape('digits_shadow_images_total', outcome=outcome):,.0f} images")


def main() -> None:
    """Measures on a server of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=1000.0, help="calls a second (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)
        publish(models, 1)
        publish(models, 2)
        with service("--models", str(models), "--poll-seconds", "0.2") as server:
            asyncio.run(compare(server, models, options.rate, options.seconds, options.rounds))


if __name__ == "__main__":
    main()
