"""Errors reported to callers, and errors that stop the service from starting.

CannotStart           for the operator; each module that raises it has a subclass of its own.

RequestError          for the caller: no path, no traceback.
  InvalidRequest      the request breaks the protocol; the same request will fail again.
  TooLarge            the request's message is over the size limit.
  Unsupported         the protocol has this feature, this server does not.
  Unauthenticated     the call carries no known token.
  PermissionDenied    the client may not do this.
  UnknownModel        no such model, or no such version.
  UnknownService      health of a service that this server does not have.
  ModelNotReady       the model exists, but no version of it is loaded.
  LoadFailed          a model could not be loaded on request.
  Refused             too much load; retry after `retry_after_seconds`.
    QueueFull           too many images wait.
      BatchQueueFull      too many images of priority batch wait.
    TooBusy             too many calls or streams are open.
    RateLimited         the client is above its rate limit.
  TruthNotStored      capture is on, but can't store the truth; retry later.
  DeadlineExceeded    the deadline passed, or would pass.
  Stopping            this server is shutting down; retry elsewhere.
  InferenceFailed     the model failed; the log has the cause.
  Internal            the server failed; the log has the cause.

Each error class states its canonical status code and the reason that the metric digits_rejected_requests_total counts.
"""

import enum


class Code(enum.IntEnum):
    """The canonical status codes. Source: google.rpc.Code, the codes of gRPC and of Connect."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CannotStart(Exception):
    """The service can't start as configured. The message names the cause and the remedy."""


class RequestError(Exception):
    """A request without an answer. The message is for the caller.

    Attributes:
        code: canonical status code.
        reason: label of the metric digits_rejected_requests_total.
    """

    code: Code
    reason: str


class InvalidRequest(RequestError):
    """The request breaks the protocol. The message states what came and what is expected."""

    code = Code.INVALID_ARGUMENT
    reason = "invalid"


class TooLarge(RequestError):
    """The message of the request is over the size limit. The code is the one that gRPC itself uses."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "too_large"


class Unsupported(RequestError):
    """The protocol has this feature, this server does not."""

    code = Code.UNIMPLEMENTED
    reason = "unsupported"


class Unauthenticated(RequestError):
    """The call carries no known token."""

    code = Code.UNAUTHENTICATED
    reason = "unauthenticated"


class PermissionDenied(RequestError):
    """The client is known, but may not do this; or no client may."""

    code = Code.PERMISSION_DENIED
    reason = "permission_denied"


class UnknownModel(RequestError):
    """There is no such model, or no such version of the model that answers."""

    code = Code.NOT_FOUND
    reason = "unknown_model"


class UnknownService(RequestError):
    """A health check names a service that this server does not have."""

    code = Code.NOT_FOUND
    reason = "unknown_service"


class ModelNotReady(RequestError):
    """The model exists, but no version of it is loaded."""

    code = Code.UNAVAILABLE
    reason = "model_not_ready"


class LoadFailed(RequestError):
    """No version of a model could be loaded on request."""

    code = Code.FAILED_PRECONDITION
    reason = "load_failed"


class Refused(RequestError):
    """The server sheds the request: there is more load than it can take. The request has no effect.

    Attributes:
        retry_after_seconds: time to wait before a retry; None without an estimate.
    """

    code = Code.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_seconds: float | None = None):
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(Refused):
    """The queue has no room or no time for the images of the request, or a client with fewer needs their place."""

    reason = "queue_full"


class BatchQueueFull(QueueFull):
    """The same for a request of priority batch. It is counted apart: nobody waits for its answer."""

    reason = "batch_queue_full"


def queue_full(message: str, retry_after_seconds: float, *, batch: bool) -> QueueFull:
    """Returns the error of a full queue for a request of priority batch, or of priority live."""
    return (BatchQueueFull if batch else QueueFull)(message, retry_after_seconds)


class TooBusy(Refused):
    """The limit of open calls or streams is reached."""

    reason = "too_busy"


class RateLimited(Refused):
    """The client sends more images a second than its limit."""

    reason = "rate_limited"


class TruthNotStored(RequestError):
    """The reported truth can't be stored now. None of it was counted."""

    code = Code.UNAVAILABLE
    reason = "truth_not_stored"


class DeadlineExceeded(RequestError):
    """The deadline passed before the answer was ready."""

    code = Code.DEADLINE_EXCEEDED
    reason = "deadline"


class Stopping(RequestError):
    """The server is shutting down and takes no more requests."""

    code = Code.UNAVAILABLE
    reason = "stopping"


class InferenceFailed(RequestError):
    """The model failed on the batch with the request, or returned NaN or infinity for the request."""

    code = Code.INTERNAL
    reason = "model_error"


class Internal(RequestError):
    """The server has a bug or an unexpected failure."""

    code = Code.INTERNAL
    reason = "internal"


def retry_after_milliseconds(error: RequestError) -> int:
    """Returns the time to wait before a retry, at least 1 ms; 0 when the error has no estimate."""
    if not isinstance(error, Refused) or error.retry_after_seconds is None:
        return 0
    return max(1, round(error.retry_after_seconds * 1000))


def request_errors() -> set[type[RequestError]]:
    """Returns every kind of error that ends a request."""
    kinds, found = [RequestError], set()
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if "reason" in vars(kind):
            found.add(kind)
    return found
