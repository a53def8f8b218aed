"""Loads and unloads models in every worker, before the worker that requested the change answers its caller."""

import asyncio
import logging
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from serving.errors import UnknownModel
from serving.process.message_channel import BrokenChannel, Message, MessageChannel, Verb
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

# For all workers to apply a change, before its caller gets an error: beyond twice the time of a trial. A worker tries a
# version after another worker's trial of it.
_MORE_SECONDS = 60.0


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

    The changes of one model are applied one after the other, so that all workers end with the same result. Changes of other
    models don't wait. A worker that dies is no longer waited for; its replacement starts with the result of all changes so
    far.

    Attributes:
        unloaded: names of the models that a new worker starts without.
    """

    def __init__(self, load_seconds: float) -> None:
        """Starts without workers.

        Args:
            load_seconds: limit for one trial of a version, in seconds.
        """
        self._workers: set[MessageChannel] = set()
        self.unloaded: set[str] = set()
        self._seconds = 2 * load_seconds + _MORE_SECONDS
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by model, while one is in use
        self._open: dict[int, _Change] = {}  # by id: sent, and not yet applied by every worker
        self._last_id = 0
        self._running: set[asyncio.Task[None]] = set()

    def add_worker(self, worker: MessageChannel) -> None:
        """Adds a worker that was configured with `unloaded`, and sends it the changes in progress."""
        self._workers.add(worker)
        for change in self._open.values():
            change.send(worker)

    def remove_worker(self, worker: MessageChannel) -> None:
        """Removes a dead worker."""
        self._workers.discard(worker)
        for change in self._open.values():
            change.acknowledge(worker, None)

    def request(self, worker: MessageChannel, message: Message) -> None:
        """Starts the change that a worker requests; the worker receives a message with the result.

        Raises:
            BrokenChannel: the message is malformed; nothing was started.
        """
        match message:
            case {"id": int(number), "verb": "load" | "unload" as verb, "model": str(model)}:
                task = asyncio.create_task(self._carry_out(worker, number, verb, model))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            case _:
                raise BrokenChannel("a change needs a number, load or unload, and the name of a model")

    def acknowledge(self, worker: MessageChannel, message: Message) -> None:
        """Notes that a worker has applied a change in progress, or failed to.

        Raises:
            BrokenChannel: the message is malformed; nothing was noted.
        """
        match message:
            case {"id": int(number), "error": None | [str(), str()] as error}:
                if number in self._open:
                    self._open[number].acknowledge(worker, error)
            case _:
                raise BrokenChannel("an applied change needs a number, and no error or its name and text")

    async def _carry_out(self, requester: MessageChannel, number: int, verb: Verb, model: str) -> None:
        """Has every worker apply a change, and sends the result; `number` is the requester's own id of the change."""
        async with self._turns.setdefault(model, asyncio.Lock()):
            self._last_id += 1
            change = self._open[self._last_id] = _Change(self._last_id, verb, model)
            for worker in self._workers:
                change.send(worker)
            try:
                if change.waiting:  # else every worker has died meanwhile
                    await asyncio.wait_for(change.complete.wait(), self._seconds)
            except TimeoutError:
                late = f"{len(change.waiting)} workers did not {verb} {model} within {self._seconds:g} s"
                log_event(log, logging.ERROR, "change_late", late, verb=verb, model=model)
                change.errors.append([TimeoutError.__name__, f"not every worker did it within {self._seconds:g} s"])
            del self._open[change.id]
            if not any(kind == UnknownModel.__name__ for kind, _ in change.errors):
                (self.unloaded.add if verb == "unload" else self.unloaded.discard)(model)
        requester.send("result", id=number, error=change.errors[0] if change.errors else None)
