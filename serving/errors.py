"""Why a request gets no answer, and why the service can't start.

CannotStart           its message is for the operator, who can mend it; each module that may raise it has a kind of its own

RequestError          its message is for the caller: no path, no traceback
  InvalidRequest      the caller's mistake; the same request will fail again
  Unsupported         this server doesn't do that
  Unauthenticated     it doesn't say who calls, or not truly
  PermissionDenied    who calls may not do that
  UnknownModel        no such model, or no such version of it that answers
  ModelNotReady       the model is there, but doesn't answer now
  LoadFailed          a model was asked to be loaded, and can't be
  Refused             too much is asked for; try again after `retry_after_seconds`
    QueueFull           too many images wait already
    TooBusy             too many calls, or streams, are open already
    RateLimited         this client asks for more than it may
  TruthNotStored      capture is on, and can't store it; try again later
  DeadlineExceeded    the answer would come too late
  Stopping            this server is going away; another will answer
  InferenceFailed     the model failed; the log says how
  Internal            the server failed; the log says how
"""


class CannotStart(Exception):
    """The service can't start as it was told to; the message says why, and what would be right."""


class RequestError(Exception):
    """A request that ends without an answer, for a reason that its caller is told."""

    reason: str
    """The reason as the metrics name it."""


class InvalidRequest(RequestError):
    """The request is not what the protocol asks for; the message says what was expected."""

    reason = "invalid"


class Unsupported(RequestError):
    """The protocol has it, this server does not."""

    reason = "unsupported"


class Unauthenticated(RequestError):
    """The call carries no token that is known here."""

    reason = "unauthenticated"


class PermissionDenied(RequestError):
    """The caller is known, and may not do that; or nobody may."""

    reason = "permission_denied"


class UnknownModel(RequestError):
    """There is no such model, or no such version of it that answers."""

    reason = "unknown_model"


class ModelNotReady(RequestError):
    """The model is known, but no version of it is loaded."""

    reason = "model_not_ready"


class LoadFailed(RequestError):
    """A model was to be loaded, and no version of it can be."""

    reason = "load_failed"


class Refused(RequestError):
    """More is asked for than can be done now; nothing of it was done.

    Attributes:
        retry_after_seconds: when to try again; None where nobody can say.
    """

    def __init__(self, message: str, retry_after_seconds: float | None = None):
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(Refused):
    """The queue has no room for the request's images."""

    reason = "queue_full"


class TooBusy(Refused):
    """As many calls or streams as the server takes are open."""

    reason = "too_busy"


class RateLimited(Refused):
    """The client asks for more images a second than it may."""

    reason = "rate_limited"


class TruthNotStored(RequestError):
    """Truth was reported that can't be stored now; nothing of it was counted."""

    reason = "truth_not_stored"


class DeadlineExceeded(RequestError):
    """The request's deadline passed before its answer was ready."""

    reason = "deadline"


class Stopping(RequestError):
    """The server takes no more requests."""

    reason = "stopping"


class InferenceFailed(RequestError):
    """The model raised an error on the batch that the request was in, or gave numbers for it that are none."""

    reason = "model_error"


class Internal(RequestError):
    """Something that should not happen did."""

    reason = "internal"


def retry_after_milliseconds(error: RequestError) -> int:
    """When to try again, at least 1; 0 where that can't be said or is no use."""
    if not isinstance(error, Refused) or error.retry_after_seconds is None:
        return 0
    return max(1, round(error.retry_after_seconds * 1000))
