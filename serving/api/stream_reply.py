"""The future that takes the answer to one request of a stream, which is answered by the run."""

import asyncio
from collections.abc import Callable

from serving.call import Pending
from serving.errors import DeadlineExceeded, RequestError


class StreamReply(asyncio.Future[bytes]):
    """Resolves to the encoded answer to one request of a stream. Cancelling it takes the request out of the service."""

    def __init__(self, refuse: Callable[[RequestError], bytes]):
        """Starts unanswered.

        Args:
            refuse: encodes an error as an answer, or raises an error that ends the stream.
        """
        super().__init__()
        self._refuse = refuse
        self._pending: Pending | None = None
        self._timer: asyncio.TimerHandle | None = None

    def wait_for(self, pending: Pending, deadline: float | None) -> None:
        """Waits for the outcome of a request.

        Args:
            pending: the request.
            deadline: of the request, on the clock of the event loop; None if it has only that of its stream.
        """
        self._pending = pending
        if deadline is not None:
            self._timer = self.get_loop().call_at(deadline, self._expire)

    def succeed(self, encoded: bytes) -> None:
        """Takes the answer."""
        self._end_wait()
        self.set_result(encoded)

    def fail(self, error: RequestError) -> None:
        """Takes the error that the request ends with."""
        self._end_wait()
        try:
            self.set_result(self._refuse(error))
        except RequestError as fatal:
            self.set_exception(fatal.with_traceback(None))  # whose frames would refer to this future and to the request

    def cancel(self, msg: object = None) -> bool:
        """Takes the request out of the service, unless it is answered."""
        cancelled, pending = super().cancel(msg), self._end_wait()
        if pending:
            pending.abandon()
        return cancelled

    def _expire(self) -> None:
        pending = self._pending
        self.fail(DeadlineExceeded("the request's timeout passed before its answer was ready"))
        if pending:
            pending.abandon()

    def _end_wait(self) -> Pending | None:
        """Lets go of the request and returns it; None if nothing was waited for."""
        pending, self._pending = self._pending, None
        if self._timer:
            self._timer.cancel()
        return pending
