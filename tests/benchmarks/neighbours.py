"""Latency of a polite caller beside bulk load and while versions load: `python -m tests.benchmarks.neighbours`.

The polite caller sends single images at a fixed rate. It is measured by turns: alone, beside each kind of bulk load, and
while one version after the other loads. A second service has loaded a hundred versions before. The table has the medians of
the percentiles over all rounds, and the median ratio to the same caller alone in the same round.

Bulk load, its sender and the polite caller share the cores of this machine. `--workers` leaves cores to the senders.
"""

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc

from serving.loadtest import processes
from serving.loadtest.calls import GrpcTarget
from serving.loadtest.plan import Plan
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from tests.support.model_files import publish
from tests.support.service import Service, service

RELOADS = 100
_POLITE = Plan(rate=100, arrivals="fixed", warmup_seconds=1)
_BULK = {
    "batches of 1,000 images, 4 callers": Plan(rpc="batch", images=1000, callers=4),
    "batches of 1,000 images of priority batch, 4 callers": Plan(rpc="batch", images=1000, callers=4, priority="batch"),
    "batches of 64 images, 16 callers": Plan(rpc="batch", images=64, callers=16),
    "single images, 64 callers": Plan(callers=64),
    "streams, 256 requests in flight": Plan(rpc="stream", callers=256),
}
_MOST_SECONDS = 60.0  # for a version to be taken up


@dataclass
class Condition:
    """What goes on beside the polite caller.

    Attributes:
        server: the service of the polite caller.
        beside: a block that lasts as long as the measurement.
        p50: medians of the rounds, ms.
        p99: 99th percentiles of the rounds, ms.
        codes: how often calls of all rounds ended with each status code.
    """

    server: Service
    beside: Callable[[], AbstractContextManager[None]]
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)


class Versions:
    """Publishes one version after the other in a repository, and deletes the versions that no longer answer."""

    def __init__(self, models: Path, server: Service):
        """Takes a repository with version 1, and its service."""
        self._models, self._latest = models, 1
        self._stub = DigitServiceStub(grpc.insecure_channel(server.address))

    def take_up(self) -> None:
        """Publishes a version, and waits until it answers. Raises TimeoutError."""
        self._latest += 1
        publish(self._models, self._latest)
        end = time.monotonic() + _MOST_SECONDS
        # Not by the metrics: the service would write their page meanwhile.
        while self._stub.Recognize(pb.RecognizeRequest(image=bytes(784)), timeout=5).model_version != str(self._latest):
            if time.monotonic() > end:
                raise TimeoutError(f"version {self._latest} was not taken up within {_MOST_SECONDS:g} s")
            time.sleep(0.05)
        shutil.rmtree(self._models / "digits" / str(self._latest - 2), ignore_errors=True)

    @contextmanager
    def take_up_all_the_time(self) -> Iterator[None]:
        """Takes up versions in a thread, until the block ends; at least one."""
        stopped = threading.Event()

        def repeat() -> None:
            while not stopped.is_set():
                self.take_up()

        with _in_thread(repeat, stopped):
            yield


@contextmanager
def _in_thread(work: Callable[[], object], stopped: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@contextmanager
def bulk(server: Service, plan: Plan, seconds: float) -> Iterator[None]:
    """Sends bulk load for longer than the polite caller is measured."""
    longer = replace(plan, seconds=seconds + 3, warmup_seconds=0, timeout_seconds=30)
    with _in_thread(lambda: processes.measure(longer, GrpcTarget(server.address), 1), threading.Event()):
        time.sleep(1)
        yield


def main() -> None:
    """Measures all conditions by turns, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--workers", default="1", help="of each service (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        for directory in (one, other):
            publish(Path(directory), 1)
        flags = ("--workers", options.workers, "--poll-seconds", "0.2", "--models")
        with service(*flags, one) as server, service(*flags, other) as reloaded:
            versions, reloads = Versions(Path(one), server), Versions(Path(other), reloaded)
            for _ in range(RELOADS):
                reloads.take_up()
            conditions = {"nothing": Condition(server, nullcontext)}
            for name, plan in _BULK.items():
                conditions[name] = Condition(server, lambda plan=plan: bulk(server, plan, options.seconds))  # type: ignore[misc]
            conditions["versions that load, one after the other"] = Condition(server, versions.take_up_all_the_time)
            conditions[f"nothing, after {RELOADS} versions have been loaded"] = Condition(reloaded, nullcontext)
            for _ in range(options.rounds):
                for condition in conditions.values():
                    _measure(condition, options.seconds)
    print("| beside the polite caller | outcomes | p50, ms | p99, ms | p99, times that beside nothing |")
    print("|---|---|---:|---:|---:|")
    alone = conditions["nothing"]
    for name, condition in conditions.items():
        ratio = statistics.median(mine / own for mine, own in zip(condition.p99, alone.p99, strict=True))
        p50, p99 = statistics.median(condition.p50), statistics.median(condition.p99)
        outcomes = ", ".join(f"{code} {count:,}" for code, count in condition.codes.most_common())
        print(f"| {name} | {outcomes} | {p50:.1f} | {p99:.1f} | {ratio:.2f} |")


def _measure(condition: Condition, seconds: float) -> None:
    with condition.beside():
        plan = replace(_POLITE, seconds=seconds)
        tally = processes.measure(plan, GrpcTarget(condition.server.address), 1)
    condition.codes.update(tally.codes)
    condition.p50.append(tally.milliseconds(50))
    condition.p99.append(tally.milliseconds(99))


if __name__ == "__main__":
    main()
