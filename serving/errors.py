"""Why a request gets no answer. The message is for the caller: no path, no traceback.

RequestError
  InvalidRequest      the caller's mistake; the same request will fail again
  QueueFull           too much waits already; try again after `retry_after_seconds`
  DeadlineExceeded    the answer would come too late
  Stopping            this server is going away; another will answer
  InferenceFailed     the model failed; the log says how
"""


class RequestError(Exception):
    """A request that ends without an answer, for a reason that its caller is told."""

    reason: str
    """The reason as the metrics name it."""


class InvalidRequest(RequestError):
    """The request is not what the protocol asks for; the message says what was expected."""

    reason = "invalid"


class QueueFull(RequestError):
    """The queue has no room for the request's images; nothing of it was done."""

    reason = "queue_full"

    def __init__(self, message: str, retry_after_seconds: float):
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(RequestError):
    """The request's deadline passed before its answer was ready."""

    reason = "deadline"


class Stopping(RequestError):
    """The server takes no more requests."""

    reason = "stopping"


class InferenceFailed(RequestError):
    """The model raised an error on the batch that the request was in."""

    reason = "model_error"
