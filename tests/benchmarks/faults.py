"""Outcomes of calls while a worker is killed, a model file breaks, or the service stops: `make faults`.

Callers send calls without a pause, each on a connection of its own. UNAVAILABLE asks the client to retry, and gRPC clients
with a retry policy do so; the table counts these calls as "to retry". Any other error counts as lost: its caller cannot know
if a retry would help.
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
from tests.support.drawings import draw_many
from tests.support.model_files import place, publish
from tests.support.service import Service, service

CALLERS = 32


async def load(server: Service, seconds: float, fault: Callable[[Service], None]) -> Counter[str]:
    """Sends calls for `seconds`, with the fault in the middle; returns counts by status code, and of wrong digits."""
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
                    ended["wrong"] += answer.digit != digits[number]
                except grpc.aio.AioRpcError as error:
                    ended[error.code().name] += 1
                    if server.process.poll() is not None:  # SIGTERM has stopped it
                        return
                    await asyncio.sleep(0.05)

    loop.call_later(seconds / 2, fault, server)
    await asyncio.gather(*(call_in_turn(number) for number in range(CALLERS)))
    return ended


def kill_a_worker(server: Service) -> None:
    """Sends SIGKILL to one of the workers."""
    os.kill(psutil.Process(server.process.pid).children()[0].pid, signal.SIGKILL)


def stop(server: Service) -> None:
    """Sends SIGTERM to the service."""
    server.process.send_signal(signal.SIGTERM)


def main() -> None:
    """Causes each fault in a service of its own with two workers, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each fault (default: %(default)s)")
    options = parser.parse_args()
    print("| fault | sent | answered | to retry | lost | wrong digits |")
    print("|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as directory:
        models = Path(directory)

        def break_models(server: Service) -> None:
            place(models, 2).write_bytes(b"no model")
            place(models, 1).write_bytes(b"broken while it serves")

        faults: list[tuple[str, Callable[[Service], None]]] = [
            ("none", lambda server: None),
            ("a worker killed (SIGKILL)", kill_a_worker),
            ("a broken version added, and the serving one overwritten", break_models),
            ("SIGTERM", stop),
        ]
        for name, fault in faults:
            publish(models, 1)
            with service(
                "--workers", "2", "--models", str(models), "--poll-seconds", "0.5", "--drain-seconds", "1"
            ) as server:
                ended = asyncio.run(load(server, options.seconds, fault))
            to_retry = ended["UNAVAILABLE"]
            lost = ended["sent"] - ended["OK"] - to_retry
            print(f"| {name} | {ended['sent']:,} | {ended['OK']:,} | {to_retry:,} | {lost:,} | {ended['wrong']:,} |")


if __name__ == "__main__":
    main()
