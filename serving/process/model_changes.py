"""Loading and unloading of models that every worker carries out before the caller, whom one of them heard, is answered."""

import asyncio
import logging
from dataclasses import dataclass, field

from serving.errors import UnknownModel
from serving.process.worker_channel import Channel, Message, Verb
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

# How long the workers may take before the caller is told that they didn't do it.
_CHANGE_SECONDS = 60.0


@dataclass(eq=False)
class _Change:
    """One model being loaded or unloaded.

    Attributes:
        waiting: the lines to the workers that have not done it yet.
        errors: what those that failed said: the error's name, its message.
    """

    id: int
    verb: Verb
    model: str
    waiting: set[Channel] = field(default_factory=set)
    errors: list[list[str]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def ask(self, worker: Channel) -> None:
        self.waiting.add(worker)
        worker.send("do", id=self.id, verb=self.verb, model=self.model)

    def done(self, worker: Channel, error: list[str] | None) -> None:
        if worker in self.waiting:
            self.waiting.remove(worker)
            if error:
                self.errors.append(error)
        if not self.waiting:
            self.over.set()


class ModelChanges:
    """The supervisor's part in them: asks every worker, gathers what they say, and answers the one that asked.

    There is one change at a time. A worker that dies meanwhile is not waited for, and the one that takes its place begins
    with what all have come to.

    Attributes:
        unloaded: the models that a new worker begins without.
    """

    def __init__(self) -> None:
        self._workers: set[Channel] = set()
        self.unloaded: set[str] = set()
        self._turn = asyncio.Lock()
        self._change: _Change | None = None
        self._changes = 0
        self._carrying_out: set[asyncio.Task[None]] = set()

    def join(self, worker: Channel) -> None:
        """Counts a worker in, which has been told of `unloaded`, and asks it for what is being carried out."""
        self._workers.add(worker)
        if self._change:
            self._change.ask(worker)

    def leave(self, worker: Channel) -> None:
        """Counts a worker out that is dead."""
        self._workers.discard(worker)
        if self._change:
            self._change.done(worker, None)

    def asked(self, worker: Channel, message: Message) -> None:
        """A worker asks for a model to be loaded or unloaded."""
        task = asyncio.create_task(self._carry_out(worker, message))
        self._carrying_out.add(task)
        task.add_done_callback(self._carrying_out.discard)

    def done(self, worker: Channel, message: Message) -> None:
        """A worker has done what it was asked, or failed to."""
        if self._change and self._change.id == message["id"]:
            self._change.done(worker, message["error"])

    async def _carry_out(self, asking: Channel, message: Message) -> None:
        async with self._turn:
            self._changes += 1
            change = self._change = _Change(self._changes, message["verb"], message["model"])
            for worker in self._workers:
                change.ask(worker)
            try:
                await asyncio.wait_for(change.over.wait(), _CHANGE_SECONDS)
            except TimeoutError:
                late = f"{len(change.waiting)} workers have not carried out {change.verb} {change.model}"
                log_event(log, logging.ERROR, "change_late", late, verb=change.verb, model=change.model)
                change.errors.append([TimeoutError.__name__, f"not every worker did it within {_CHANGE_SECONDS:g} s"])
            self._change = None
            if not any(kind == UnknownModel.__name__ for kind, _ in change.errors):
                (self.unloaded.add if change.verb == "unload" else self.unloaded.discard)(change.model)
        asking.send("told", id=message["id"], error=change.errors[0] if change.errors else None)
