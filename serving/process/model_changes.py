"""Loads and unloads models in every worker, before the worker that requested the change answers its caller."""

import asyncio
import logging
from dataclasses import dataclass, field

from serving.errors import UnknownModel
from serving.process.message_channel import Message, MessageChannel, Verb
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 60.0  # for all workers to apply a change, before its caller gets an error


@dataclass(eq=False)
class _Change:
    """One model being loaded or unloaded.

    Attributes:
        waiting: channels to the workers that have not applied the change yet.
        errors: name and text of each worker's error.
        complete: set when no worker is waited for.
    """

    id: int
    verb: Verb
    model: str
    waiting: set[MessageChannel] = field(default_factory=set)
    errors: list[list[str]] = field(default_factory=list)
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, worker: MessageChannel) -> None:
        self.waiting.add(worker)
        worker.send("apply", id=self.id, verb=self.verb, model=self.model)

    def acknowledge(self, worker: MessageChannel, error: list[str] | None) -> None:
        if worker in self.waiting:
            self.waiting.remove(worker)
            if error:
                self.errors.append(error)
        if not self.waiting:
            self.complete.set()


class ModelChanges:
    """The supervisor's part in model changes: sends each to every worker, collects the errors, returns the result.

    There is one change at a time. A worker that dies is no longer waited for; its replacement starts with the result of
    all changes so far.

    Attributes:
        unloaded: names of the models that a new worker starts without.
    """

    def __init__(self) -> None:
        self._workers: set[MessageChannel] = set()
        self.unloaded: set[str] = set()
        self._turn = asyncio.Lock()
        self._change: _Change | None = None
        self._last_id = 0
        self._running: set[asyncio.Task[None]] = set()

    def add_worker(self, worker: MessageChannel) -> None:
        """Adds a worker that was configured with `unloaded`, and sends it the change in progress."""
        self._workers.add(worker)
        if self._change:
            self._change.send(worker)

    def remove_worker(self, worker: MessageChannel) -> None:
        """Removes a dead worker."""
        self._workers.discard(worker)
        if self._change:
            self._change.acknowledge(worker, None)

    def request(self, worker: MessageChannel, message: Message) -> None:
        """Starts the change that a worker requests; the worker receives a message with the result."""
        task = asyncio.create_task(self._carry_out(worker, message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def acknowledge(self, worker: MessageChannel, message: Message) -> None:
        """Notes that a worker has applied the change in progress, or failed to."""
        if self._change and self._change.id == message["id"]:
            self._change.acknowledge(worker, message["error"])

    async def _carry_out(self, requester: MessageChannel, message: Message) -> None:
        async with self._turn:
            self._last_id += 1
            change = self._change = _Change(self._last_id, message["verb"], message["model"])
            for worker in self._workers:
                change.send(worker)
            try:
                await asyncio.wait_for(change.complete.wait(), _TIMEOUT_SECONDS)
            except TimeoutError:
                late = f"{len(change.waiting)} workers did not {change.verb} {change.model} within {_TIMEOUT_SECONDS:g} s"
                log_event(log, logging.ERROR, "change_late", late, verb=change.verb, model=change.model)
                change.errors.append([TimeoutError.__name__, f"not every worker did it within {_TIMEOUT_SECONDS:g} s"])
            self._change = None
            if not any(kind == UnknownModel.__name__ for kind, _ in change.errors):
                (self.unloaded.add if change.verb == "unload" else self.unloaded.discard)(change.model)
        requester.send("result", id=message["id"], error=change.errors[0] if change.errors else None)
