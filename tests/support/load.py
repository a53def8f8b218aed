"""Load on a server of a test's own, or on a service, by the plan or by the command."""

import asyncio
import contextlib
import math
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from serving.loadtest.calls import GrpcTarget
from serving.loadtest.generator import samples
from serving.loadtest.plan import Plan
from serving.loadtest.processes import measure
from serving.loadtest.tally import Tally
from serving.loadtest.target import Target
from serving.pb.digits.v1 import digit_service_pb2 as pb
from tests.support.service import DIGITS

Answer = Callable[[pb.RecognizeRequest, Any], Awaitable[pb.RecognizeResponse]]
DIGIT_OF = {image.tobytes(): digit for digit, image in enumerate(samples())}
TIMEOUT = 90.0


@contextlib.asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[GrpcTarget]:
    """Runs a server whose Recognize is `answer`."""
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        answer, pb.RecognizeRequest.FromString, pb.RecognizeResponse.SerializeToString
    )
    methods = grpc.method_handlers_generic_handler("digits.v1.DigitService", {"Recognize": handler})
    server.add_generic_rpc_handlers((methods,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield GrpcTarget(f"127.0.0.1:{port}")
    await server.stop(0)


def right(request: pb.RecognizeRequest) -> pb.RecognizeResponse:
    return pb.RecognizeResponse(digit=DIGIT_OF[request.image])


async def run_plan(target: Target, processes: int = 1, **plan: Any) -> Tally:
    async with asyncio.timeout(TIMEOUT):
        one = Plan(**{"seconds": 1.0, "warmup_seconds": 0.2, "late_seconds": math.inf, **plan})
        return await asyncio.to_thread(measure, one, target, processes)


def load(address: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [*DIGITS, "loadtest", "--address", address, "--seconds", "1", "--warmup", "0.2", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
