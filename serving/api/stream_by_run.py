"""Requests of a stream that are answered by the run: the form of their answers, and the future that takes each of them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from serving.answers.decision import Threshold
from serving.api.packed import pack_message
from serving.call import Pending
from serving.errors import DeadlineExceeded, RequestError
from serving.recognition.call_group import Encode, Form, Rows, Verdicts
from serving.repository.catalog import Loaded


@dataclass(frozen=True)
class StreamForm:
    """Answers that are each a field of the answer of a stream.

    Attributes:
        answers: the form of the answers themselves.
        field: number of the field that holds one.
    """

    answers: Form
    field: int

    @property
    def decides(self) -> bool:
        """True if the answer has a decision."""
        return self.answers.decides

    @property
    def audits(self) -> bool:
        """True if accepted answers may be marked for audit."""
        return self.answers.audits

    def encoder(self, loaded: Loaded, threshold: Threshold | None, id_length: int) -> Encode:
        """Prepares the answers of a version."""
        encode_answers = self.answers.encoder(loaded, threshold, id_length)

        def encode(rows: Rows, verdicts: Verdicts) -> list[bytes]:
            encoded = encode_answers(rows, verdicts)
            return [pack_message(self.field, answer) for answer in encoded]

        return encode


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
            self.set_exception(fatal)

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
