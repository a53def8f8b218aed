"""Calls of one method that are answered by the run of the model: no call has a task or a future."""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from serving import errors
from serving.api.request_counter import RequestCounter
from serving.api.rpc import ByRun, Method
from serving.call import Call, Pending, Reply
from serving.errors import Code, RequestError
from serving.inference.entry import SingleImage
from serving.telemetry.logs import log_event, trace_ids

if TYPE_CHECKING:
    from serving.telemetry.spans import Tracing

log = logging.getLogger(__name__)


class RunCalls:
    """Enters calls of one method, tells each caller the outcome, and counts and traces the calls."""

    def __init__(
        self,
        method: Method[Any, Any],
        way: ByRun,
        counter: RequestCounter,
        tracing: "Tracing | None",
    ):
        """Takes the parts of the way.

        Args:
            method: the method that is called.
            way: parses the request, has its image read, and completes the answer.
            counter: counts the calls.
            tracing: gives each call a span; None for requests of a stream, whose span is that of the stream, if any.
        """
        self._method = method
        self._parse, self._enter, self._join = way
        self._counter = counter
        self._tracing = tracing

    def enter(self, encoded: bytes, call: Call, reply: Reply) -> Pending | None:
        """Enters a call; returns None, with nothing counted, for a request that can't be answered by the run."""
        request = self._parse(encoded)
        if request is None:
            return None
        arrived = time.monotonic()
        if request.options.timeout_seconds:
            call.deadline = min(call.deadline, arrived + request.options.timeout_seconds)
        image = SingleImage(request.pixels, call.deadline, arrived, call, reply, self, request.tail)
        self._counter.begin()
        if self._tracing is not None:
            call.span = self._tracing.begin(self._method.service, self._method.name, call.metadata() or ())
        try:
            self._enter(request, image)
        except RequestError as error:
            self.fail(image, error)
        except Exception:
            self.fail_internally([image])
        return image

    def succeed(self, images: Sequence[SingleImage], encoded: Sequence[bytes]) -> None:
        """Answers the calls that are not done, each with its message."""
        answered = []
        for image, message in zip(images, encoded, strict=True):
            if not image.done:
                image.done = True
                answered.append(image)
                try:
                    image.reply.succeed(self._join(message, image.tail))
                except Exception:  # a fault of one connection; the other calls of the run get their answers
                    self._log_fault()
        if len(answered) == 1 or (answered and answered[0].call.span is not None):  # all calls have spans, or none has
            for image in answered:
                self._end(image, Code.OK)
        elif answered:
            seconds = time.monotonic() - np.array([image.arrived for image in answered])
            self._counter.end_all(self._method.name, Code.OK, [image.call for image in answered], seconds)

    def fail(self, image: SingleImage, error: RequestError) -> None:
        """Ends a call with an error."""
        image.done = True
        self._counter.reject(error.reason)
        self._end(image, error.code)
        try:
            image.reply.fail(error)
        except Exception:
            self._log_fault()

    def fail_internally(self, images: Sequence[SingleImage]) -> None:
        """Ends the calls that are not done, and logs the exception that is being handled: a fault of the server."""
        self._log_fault()
        for image in images:
            if not image.done:
                self.fail(image, errors.Internal("internal error"))

    def abandon(self, image: SingleImage) -> None:
        """Ends a call whose caller takes no answer: it leaves the queue, and the model does not read it any more."""
        image.done = True
        if not image.read:
            image.group.leave(image)
        self._end(image, self._counter.reject_cancelled(image.call))

    def _log_fault(self) -> None:
        name = self._method.name
        log_event(log, logging.ERROR, "call_failed", f"{name} failed", exc_info=True, method=name)

    def _end(self, image: SingleImage, code: Code) -> None:
        """Counts a call and ends its span. The line that is logged meanwhile carries the ids of the trace."""
        seconds, call = time.monotonic() - image.arrived, image.call
        if call.span is None:
            self._counter.end(self._method.name, code, call, seconds)
            return
        logged = trace_ids.set({"trace_id": call.span.trace_id, "span_id": call.span.span_id})
        self._counter.end(self._method.name, code, call, seconds)
        trace_ids.reset(logged)
        if self._tracing is not None:
            call.span.end(code)
