"""Throughput of the service, beside ONNX Runtime alone on the same model and an empty gRPC server: `make bench`.

Closed loops on at most eight connections. Each round measures every row once, and the median of the rounds counts. The
callers share the machine with the server: the rates are a lower limit. ONNX Runtime alone is no ceiling for calls: the
network takes a small part of a call, gRPC takes the rest. `make bench-peers` compares calls a second with other servers.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from serving.client import DigitClient
from serving.cores import usable_cores
from serving.inference.classifier import Classifier
from serving.inference.model import open_model
from serving.loadtest.calls import GrpcTarget
from serving.loadtest.generator import samples
from serving.loadtest.plan import Plan, Rpc
from serving.repository import versions
from serving.settings import BUNDLED
from tests.benchmarks.cost import load_with_cost, measure, workers
from tests.benchmarks.echo import echo
from tests.benchmarks.generators import Figures, WrongAnswers, method_name
from tests.support.service import service

# RPC, images a call, callers.
WORKLOADS: tuple[tuple[Rpc, int, int], ...] = (
    *(("recognize", 1, callers) for callers in (1, 8, 32, 128, 512)),
    ("stream", 1, 128),
    ("field", 5, 32),
    ("batch", 16, 8),
    ("batch", 64, 8),
    ("batch", 256, 4),
    ("batch", 1024, 4),
    ("infer", 1, 32),
    ("infer", 64, 8),
    ("infer", 1024, 4),
)
ECHOED = (1, 8, 32, 128, 512)  # callers
BARE = tuple((threads, batch) for threads in (1, 2) for batch in (1, 32, 128))

# The libraries of a worker without our code: the script prints its memory, and its run time is the shortest possible start.
_NEEDED = """
import sys, time
start = time.perf_counter()
import grpc, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
session.run(None, {"images": numpy.zeros((1, 28, 28), numpy.uint8)})
import psutil
print(psutil.Process().memory_info().rss)
"""


def bare(model: Classifier, threads: int, batch: int, seconds: float) -> float:
    """Returns images a second of the model alone; each thread runs batches of its own."""
    images = np.resize(samples(), (batch, 28, 28))

    def run(end: float) -> int:
        done = 0
        while time.perf_counter() < end:
            done += len(model.predict(images))
        return done

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        done = sum(future.result() for future in [pool.submit(run, start + seconds) for _ in range(threads)])
        return done / (time.perf_counter() - start)


def start_up(path: Path) -> tuple[float, float, float, float]:
    """Measures a start: seconds and bytes of the libraries alone, then of our service up to its first right answer."""
    start = time.perf_counter()
    needed = subprocess.run([sys.executable, "-c", _NEEDED, str(path)], capture_output=True, text=True, check=True)
    alone = time.perf_counter() - start
    start = time.perf_counter()
    with service("--workers", "1") as server, DigitClient(server.address, timeout_seconds=10) as client:
        if client.recognize(samples()[7]).digit != 7:
            raise WrongAnswers("the first answer is wrong")
        ours = time.perf_counter() - start
        return alone, float(needed.stdout), ours, float(psutil.Process(server.process.pid).memory_info().rss)


def main() -> None:
    """Measures all workloads in turn, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--model", default="digits", help="one of the bundled ones (default: %(default)s)")
    options = parser.parse_args()
    version = versions.latest(BUNDLED, options.model)
    model = open_model(version.path.read_bytes(), str(version.number))
    alone: dict[tuple[int, int], list[float]] = defaultdict(list)
    echoed: dict[int, list[tuple[Figures, float]]] = defaultdict(list)
    ours: dict[tuple[Rpc, int, int], list[tuple[Figures, float]]] = defaultdict(list)
    starts, memory = [], []
    with service("--default-model", options.model) as server, echo(1) as (echo_address, echo_pids):
        for _ in range(options.rounds):
            for threads, batch in BARE:
                alone[threads, batch].append(bare(model, threads, batch, options.seconds))
            for callers in ECHOED:
                plan = Plan(callers=callers, seconds=options.seconds)
                echoed[callers].append(load_with_cost(echo_pids, GrpcTarget(echo_address), plan))
            for rpc, images, callers in WORKLOADS:
                name = options.model if rpc == "infer" else ""
                plan = Plan(rpc=rpc, images=images, callers=callers, seconds=options.seconds, model=name)
                ours[rpc, images, callers].append(measure(server, plan))
        memory = [one.memory_info().rss for one in workers(server)]
    starts = [start_up(version.path) for _ in range(options.rounds)]
    _print(model, alone, echoed, ours)
    needed, needed_bytes, taken, taken_bytes = (statistics.median(column) for column in zip(*starts, strict=True))
    print(
        f"\nOne worker, from nothing to its first right answer: {taken:.2f} s, {taken_bytes / 1e6:.0f} MB. Importing grpc,"
    )
    print(f"numpy and onnxruntime and running the model once: {needed:.2f} s, {needed_bytes / 1e6:.0f} MB. After all of the")
    print(f"load above, each of {len(memory)} workers: {max(memory) / 1e6:.0f} MB at most.")


def _print(
    model: Classifier,
    alone: Mapping[tuple[int, int], list[float]],
    echoed: Mapping[int, list[tuple[Figures, float]]],
    ours: Mapping[tuple[Rpc, int, int], list[tuple[Figures, float]]],
) -> None:
    metadata = model.metadata
    print(f"Model {metadata.recipe} {model.version} ({metadata.precision}); {usable_cores()} cores, {platform.machine()};")
    print(
        f"calls sent by h2load where it can, else by digits loadtest; medians of {len(next(iter(alone.values())))} rounds.\n"
    )
    print("| | images a call | callers | calls/s | images/s | p50 ms | p99 ms | CPU a call, µs | sent by |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for (threads, batch), rates in alone.items():
        rate = statistics.median(rates)
        name = f"ONNX Runtime alone, {threads} thread{'s' * (threads > 1)}"
        print(f"| {name} | {batch} | | | {rate:,.0f} | | | | |")
    for callers, measured in echoed.items():
        print(_row("an echo server, one process", 1, callers, measured))
    for (rpc, images, callers), measured in ours.items():
        print(_row(f"`{method_name(rpc)}`", images, callers, measured))


def _row(name: str, images: int, callers: int, measured: list[tuple[Figures, float]]) -> str:
    calls, p50, p99 = (
        statistics.median(getattr(one, figure) for one, _ in measured) for figure in ("calls_per_second", "p50", "p99")
    )
    cpu = statistics.median(microseconds for _, microseconds in measured)
    cells = (name, f"{images:,}", callers, f"{calls:,.0f}", f"{calls * images:,.0f}")
    return f"| {' | '.join(map(str, cells))} | {p50:.1f} | {p99:.1f} | {cpu:,.0f} | {measured[0][0].generator} |"


if __name__ == "__main__":
    main()
