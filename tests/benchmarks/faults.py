"""What becomes of calls when a worker is killed, a model file is spoilt, or the service is told to stop: `make faults`.

Callers on connections of their own call without a pause. A call that ends with UNAVAILABLE is one that the service says to
try again, as gRPC clients do when they are set to; it is counted as told so, and the caller goes on. Lost is a call that
ends in no way that its caller can tell what to do from.
"""

import argparse
import asyncio
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.samples.draw import draw_many
from tests.support.model_files import place, publish
from tests.support.service import Service, service

CALLERS = 32


async def load(server: Service, seconds: float, fault: Callable[[Service], None]) -> Counter[str]:
    """Calls for `seconds`, with the fault in the middle; returns how the calls ended, and the digits read wrong."""
    images, digits = draw_many(100, seed=1)
    ended: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def call_in_turn(number: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100)]
        async with grpc.aio.insecure_channel(server.address, options) as channel:
            stub = DigitServiceStub(channel)
            while loop.time() < end:
                ended["sent"] += 1
                number = (number + 1) % len(images)
                try:
                    answer = await stub.Recognize(pb.RecognizeRequest(image=images[number].tobytes()), timeout=20)
                    ended["OK"] += 1
                    ended["read wrong"] += answer.digit != digits[number]
                except grpc.aio.AioRpcError as error:
                    ended[error.code().name] += 1
                    if server.process.poll() is not None:  # it has stopped, as it was told to
                        return
                    await asyncio.sleep(0.05)

    loop.call_later(seconds / 2, fault, server)
    await asyncio.gather(*(call_in_turn(number) for number in range(CALLERS)))
    return ended


def kill_a_worker(server: Service) -> None:
    """SIGKILL to one of the workers."""
    os.kill(psutil.Process(server.process.pid).children()[0].pid, signal.SIGKILL)


def stop(server: Service) -> None:
    """SIGTERM to the service."""
    server.process.send_signal(signal.SIGTERM)


def main() -> None:
    """Tries each fault on a service of its own with two workers, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each fault (default: %(default)s)")
    options = parser.parse_args()
    print("| fault | sent | answered | told to try again | lost | read otherwise than drawn |")
    print("|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)

        def spoil(server: Service) -> None:
            place(models, 2).write_bytes(b"no model")
            place(models, 1).write_bytes(b"spoilt while it serves")

        faults: list[tuple[str, Callable[[Service], None]]] = [
            ("none", lambda server: None),
            ("a worker killed (SIGKILL)", kill_a_worker),
            ("a broken version beside, and the one that serves overwritten", spoil),
            ("SIGTERM", stop),
        ]
        for name, fault in faults:
            publish(models, 1)
            with service(
                "--workers", "2", "--models", str(models), "--poll-seconds", "0.5", "--drain-seconds", "1"
            ) as server:
                ended = asyncio.run(load(server, options.seconds, fault))
            told = ended["UNAVAILABLE"]
            lost = ended["sent"] - ended["OK"] - told
            print(f"| {name} | {ended['sent']:,} | {ended['OK']:,} | {told:,} | {lost:,} | {ended['read wrong']:,} |")


if __name__ == "__main__":
    main()
