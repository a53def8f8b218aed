"""What measuring drift costs of a call's CPU time: `make bench-drift`.

A server alone in a process answers calls one after the other; its CPU time a call is what Linux says of it. What drift adds
to a call, the ink measured and all that is counted for it, is timed by itself, on the same images. Rounds follow each other,
and the median counts.
"""

import statistics
import timeit

import numpy as np

from serving.client import DigitClient
from serving.samples.draw import draw_many
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
from tests.support.service import Service, service

ROUNDS = 5
CALLS = {1: 500, 64: 100, 1024: 10}  # in a round, by images a call


def call_seconds(server: Service, images_per_call: int) -> float:
    """CPU seconds that the server takes for a call."""
    images, _ = draw_many(images_per_call, seed=0)
    with DigitClient(server.address, 60) as client:
        before = server.scrape("process_cpu_seconds_total")
        for _ in range(CALLS[images_per_call]):
            client.recognize_batch(images)
        return (server.scrape("process_cpu_seconds_total") - before) / CALLS[images_per_call]


def drift_seconds(images_per_call: int) -> float:
    """CPU seconds that drift takes of it."""
    images = draw_many(images_per_call, seed=0)[0].reshape(-1, 784)
    metrics = VersionMetrics(Metrics(), "digits", "1")
    calls = CALLS[images_per_call] * 10
    return timeit.timeit(lambda: metrics.measure(images), number=calls) / calls


def main() -> None:
    """Measures and prints a table."""
    with service("--workers", "1") as server:
        rounds = [{n: (call_seconds(server, n), drift_seconds(n)) for n in CALLS} for _ in range(ROUNDS)]
    print("| images a call | CPU a call, µs | of it drift, µs | share |\n|---:|---:|---:|---:|")
    for n in CALLS:
        call, drift = (1e6 * statistics.median(values) for values in zip(*(one[n] for one in rounds), strict=True))
        share = np.median([drift / call for call, drift in (one[n] for one in rounds)])
        print(f"| {n:,} | {call:,.0f} | {drift:,.1f} | {share:.2%} |")


if __name__ == "__main__":
    main()
