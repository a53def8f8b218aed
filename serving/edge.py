"""Where gRPC ends: deadlines come in, errors go out as status codes, and every call is counted once.

But for those that gRPC refuses before it hands them over, such as a message over the size limit: it tells nobody of them.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

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

Context = grpc.aio.ServicerContext[bytes, bytes]
Request = TypeVar("Request", bound=Message)

log = logging.getLogger(__name__)


def _caller_is_there(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[0] and record.exc_info[0].__name__ == "ExecuteBatchError")


# An answer, or an error, for a caller who has gone meanwhile is nothing to log, and gRPC logs a traceback for each.
logging.getLogger("grpc._cython.cygrpc").addFilter(_caller_is_there)


def unary(
    method: str,
    request_type: type[Request],
    work: Callable[[Request, float], Awaitable[Message]],
    metrics: Metrics,
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Lets gRPC call `work`, from a decoded request and a deadline to a decoded answer, and counts its calls as `method`.

    The deadline is on the clock of time.monotonic, and infinite when the caller set none. Messages are decoded here rather
    than by gRPC, which would answer a broken one with UNKNOWN and the name of a Python class.
    """

    async def call(encoded: bytes, context: Context) -> bytes:
        start = time.monotonic()
        remaining: float | None = context.time_remaining()
        deadline = math.inf if remaining is None else start + remaining
        code = grpc.StatusCode.INTERNAL
        metrics.in_flight_requests.inc()
        try:
            answer = await work(_decode(request_type, encoded), deadline)
            encoded_answer = answer.SerializeToString()
            code = grpc.StatusCode.OK
            return encoded_answer
        except RequestError as error:
            code = STATUS.get(type(error), code)
            metrics.rejected_requests.labels(error.reason).inc()
            if isinstance(error, QueueFull):
                # gRPC's own word for "retry after", which its retry policy obeys. Source: gRFC A6, server pushback.
                pushback = max(1, round(error.retry_after_seconds * 1000))
                context.set_trailing_metadata((("grpc-retry-pushback-ms", str(pushback)),))
            await context.abort(code, str(error))
        except asyncio.CancelledError:
            late = deadline <= time.monotonic() + _DEADLINE_SLACK_SECONDS
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            metrics.rejected_requests.labels(DeadlineExceeded.reason if late else "cancelled").inc()
            raise
        except Exception:
            log.exception("%s failed", method)
            metrics.rejected_requests.labels("internal").inc()
            await context.abort(code, "internal error")
        finally:
            metrics.in_flight_requests.dec()
            metrics.request_seconds.labels(method).observe(time.monotonic() - start)
            metrics.requests.labels(method, code.name).inc()

    return grpc.unary_unary_rpc_method_handler(call)


def _decode(request_type: type[Request], encoded: bytes) -> Request:
    try:
        return request_type.FromString(encoded)
    except DecodeError:
        raise InvalidRequest(f"the request is no {request_type.DESCRIPTOR.full_name} message") from None
