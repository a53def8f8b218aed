"""Measures the share of a call's CPU time that drift measurement takes: `make bench-drift`.

A server in a process of its own answers calls one after another; Linux gives its CPU time per call. The drift measurement
(ink statistics and counters) is timed separately on the same images. The result is the median of consecutive rounds.
"""

import statistics
import timeit

import numpy as np

from serving.client import DigitClient
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
from tests.support.drawings import draw_many
from tests.support.service import Service, service

ROUNDS = 5
CALLS = {1: 500, 64: 100, 1024: 10}  # calls per round, by images per call


def call_seconds(server: Service, images_per_call: int) -> float:
    """Returns the server's CPU seconds per call."""
    images, _ = draw_many(images_per_call, seed=0)
    with DigitClient(server.address, 60) as client:
        before = server.scrape("process_cpu_seconds_total")
        for _ in range(CALLS[images_per_call]):
            client.recognize_batch(images)
        return (server.scrape("process_cpu_seconds_total") - before) / CALLS[images_per_call]


def drift_seconds(images_per_call: int) -> float:
    """Returns the CPU seconds per call that the drift measurement takes."""
    images = draw_many(images_per_call, seed=0)[0].reshape(-1, 784)
    metrics = VersionMetrics(Metrics(), "digits", "1")
    calls = CALLS[images_per_call] * 10
    return timeit.timeit(lambda: metrics.measure(images), number=calls) / calls


def main() -> None:
    """Measures all call sizes and prints a Markdown table."""
    with service("--workers", "1") as server:
        rounds = [{n: (call_seconds(server, n), drift_seconds(n)) for n in CALLS} for _ in range(ROUNDS)]
    print("| images per call | CPU per call, µs | drift measurement, µs | share |\n|---:|---:|---:|---:|")

    for n in CALLS:
        call, drift = (1e6 * statistics.median(values) for values in zip(*(one[n] for one in rounds), strict=True))
        share = np.median([drift / call for call, drift in (one[n] for one in rounds)])
        print(f"| {n:,} | {call:,.0f} | {drift:,.1f} | {share:.2%} |")


if __name__ == "__main__":
    main()
