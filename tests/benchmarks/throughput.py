"""How fast the service answers, beside ONNX Runtime alone on the same model in the same run: `make bench`.

A closed loop: so many callers, each sending its next call when it has the answer to the last. All the callers are one
Python process on the server's own machine, and cost about as much as it does: take the ratios between rows as telling, and
the rates as a floor. Every row is measured once a round, rounds follow each other, and the median counts.
"""

import argparse
import asyncio
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import numpy as np

from serving import versions
from serving.cores import usable_cores
from serving.model import Model
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.settings import BUNDLED
from tests.drawn_digits import draw_many
from tests.service import Service, service

CONNECTIONS = 4
RUNS = ("digits_batch_size_images_count", "digits_batch_size_images_sum")
WORKLOADS = ((1, 1), (8, 1), (64, 1), (8, 64), (4, 1024))  # callers, images a call


@dataclass(frozen=True)
class Row:
    """One workload, measured once; latencies in milliseconds."""

    images_per_second: float
    p50: float
    p99: float
    mean_batch: float


async def measure(server: Service, callers: int, images_per_call: int, seconds: float) -> Row:
    """Loads the server for `seconds` and reports; a call that fails ends the benchmark."""
    images, _ = draw_many(images_per_call, seed=0)
    request = pb.RecognizeBatchRequest(images=images.tobytes())
    single = pb.RecognizeRequest(image=images[0].tobytes())
    latencies = []
    apart = [("grpc.use_local_subchannel_pool", 1)]  # else the channels would share one connection
    channels = [grpc.aio.insecure_channel(server.address, options=apart) for _ in range(CONNECTIONS)]

    async def call_in_turn(stub: DigitServiceStub, end: float) -> None:
        while (start := time.perf_counter()) < end:
            await (stub.Recognize(single, timeout=60) if images_per_call == 1 else stub.RecognizeBatch(request, timeout=60))
            latencies.append(time.perf_counter() - start)

    stubs = [DigitServiceStub(channel) for channel in channels]
    before, start = [server.scrape(series) for series in RUNS], time.perf_counter()
    await asyncio.gather(*(call_in_turn(stubs[n % CONNECTIONS], start + seconds) for n in range(callers)))
    elapsed, after = time.perf_counter() - start, [server.scrape(series) for series in RUNS]
    for channel in channels:
        await channel.close()
    runs, images_run = np.subtract(after, before)
    p50, p99 = np.quantile(latencies, (0.5, 0.99)) * 1000
    return Row(len(latencies) * images_per_call / elapsed, p50, p99, images_run / runs)


def bare(model: Model, seconds: float) -> float:
    """Images a second of the model alone, in batches of 128, on as many threads as the server uses."""
    images = draw_many(128, seed=0)[0]
    end = time.perf_counter() + seconds

    def run() -> int:
        done = 0
        while time.perf_counter() < end:
            done += len(model.predict(images))
        return done

    with ThreadPoolExecutor(usable_cores()) as threads:
        start = time.perf_counter()
        total = sum(future.result() for future in [threads.submit(run) for _ in range(usable_cores())])
    return total / (time.perf_counter() - start)


def main() -> None:
    """Measures every workload and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    options = parser.parse_args()
    version = versions.latest(BUNDLED)
    model = Model(version.path, str(version.number))
    alone: list[float] = []
    rows: dict[tuple[int, int], list[Row]] = {workload: [] for workload in WORKLOADS}
    with service() as server:
        asyncio.run(measure(server, 8, 1, 1.0))  # warm-up
        for _ in range(options.rounds):
            alone.append(bare(model, options.seconds))
            for callers, images_per_call in WORKLOADS:
                row = asyncio.run(measure(server, callers, images_per_call, options.seconds))
                rows[callers, images_per_call].append(row)
    ceiling = statistics.median(alone)
    print(f"Medians of {options.rounds} rounds, {os.cpu_count()} cores, model {model.recipe}.\n")
    print("| callers | images a call | images/s | of bare ONNX Runtime | p50 ms | p99 ms | images a run |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    print(f"| bare ONNX Runtime, {usable_cores()} threads | 128 | {ceiling:,.0f} | 1.00 | | | 128 |")
    for (callers, images_per_call), measured in rows.items():
        rate, p50, p99, batch = (
            statistics.median(getattr(row, name) for row in measured)
            for name in ("images_per_second", "p50", "p99", "mean_batch")
        )
        print(
            f"| {callers} | {images_per_call:,} | {rate:,.0f} | {rate / ceiling:.2f} | {p50:.1f} | {p99:.1f} | {batch:.1f} |"
        )


if __name__ == "__main__":
    main()
