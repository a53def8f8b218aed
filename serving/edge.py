"""Where gRPC ends: deadlines come in, errors go out as status codes, and every call is counted once."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc

from serving.errors import DeadlineExceeded, InferenceFailed, InvalidRequest, QueueFull, RequestError, Stopping
from serving.metrics import Metrics

STATUS: dict[type[RequestError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    Stopping: grpc.StatusCode.UNAVAILABLE,
    InferenceFailed: grpc.StatusCode.INTERNAL,
}

# A caller whose deadline passes hangs up, and its hanging up arrives a little before the deadline does here.
_DEADLINE_SLACK_SECONDS = 0.01

Context = grpc.aio.ServicerContext[Any, Any]
Response = TypeVar("Response")

log = logging.getLogger(__name__)


def deadline_of(context: Context) -> float:
    """When the call's answer is of no more use, on the clock of time.monotonic; infinite when the caller set none."""
    remaining: float | None = context.time_remaining()
    return math.inf if remaining is None else time.monotonic() + remaining


async def answer(method: str, context: Context, metrics: Metrics, work: Awaitable[Response]) -> Response:
    """Awaits the answer to a call, or ends the call with the status code that its error stands for."""
    start = time.monotonic()
    code = grpc.StatusCode.INTERNAL
    metrics.in_flight_requests.inc()
    try:
        response = await work
        code = grpc.StatusCode.OK
        return response
    except RequestError as error:
        code = STATUS[type(error)]
        metrics.rejected_requests.labels(error.reason).inc()
        if isinstance(error, QueueFull):
            # gRPC's own word for "retry after": its retry policy obeys it. Source: gRFC A6, server pushback.
            pushback = max(1, round(error.retry_after_seconds * 1000))
            context.set_trailing_metadata((("grpc-retry-pushback-ms", str(pushback)),))
        await context.abort(code, str(error))
    except asyncio.CancelledError:
        late = deadline_of(context) <= time.monotonic() + _DEADLINE_SLACK_SECONDS
        code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
        metrics.rejected_requests.labels("deadline" if late else "cancelled").inc()
        raise
    except Exception:
        log.exception("%s failed", method)
        metrics.rejected_requests.labels("internal").inc()
        await context.abort(code, "internal error")
    finally:
        metrics.in_flight_requests.dec()
        metrics.request_seconds.labels(method).observe(time.monotonic() - start)
        metrics.requests.labels(method, code.name).inc()
