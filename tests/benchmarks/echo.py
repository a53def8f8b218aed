"""A grpc.aio server that sends a constant answer: the upper limit for any service on gRPC for Python.

`python -m tests.benchmarks.echo PORT` listens on 127.0.0.1; several processes can share the port.
"""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE, Popen
from typing import Any

import grpc

from serving.loadtest.calls import KINDS
from serving.pb.digits.v1 import digit_service_pb2 as pb
from tests.support.service import free_ports

_PROBABILITIES = [0.0] * 7 + [1.0] + [0.0] * 2
_ID = "x" * 56  # as long as an answer's


async def _serve(port: int) -> None:
    answer = pb.RecognizeResponse(
        digit=7, confidence=1.0, probabilities=_PROBABILITIES, model_version="20261130101529", recognition_id=_ID
    ).SerializeToString()

    async def echo(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return answer

    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    service, method = KINDS["recognize"].method.strip("/").split("/")
    handler: Any = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


@contextmanager
def echo(processes: int) -> Iterator[tuple[str, list[int]]]:
    """Runs `processes` of these servers on one port; yields its address and the process ids."""
    (port,) = free_ports(1)
    started = [
        Popen([sys.executable, "-m", "tests.benchmarks.echo", str(port)], stdout=PIPE, text=True) for _ in range(processes)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield f"127.0.0.1:{port}", [process.pid for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
