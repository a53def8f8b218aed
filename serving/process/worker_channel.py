"""What the supervisor and its workers say to each other: a JSON object a line, over a socket pair that a worker inherits.

    supervisor to worker                                   worker to supervisor
      begin    number, directory, settings, unloaded         started  what it serves: words, version
      stop     drain_seconds, grace_seconds                  failed   why it can't begin
      do       id, verb, model                               ready    unready: why it wants no traffic, if so
      told     id, error                                     done     id, error
                                                             ask      id, verb, model
                                                             alive    now and then, while its event loop turns

A Load or Unload reaches one worker, which asks; the supervisor has every worker do it, and tells the one that asked once all
have. The end of the line is the end of the other: a worker whose supervisor is gone drains and leaves, rather than live on
with nobody to restart or to stop it.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

from serving.errors import LoadFailed, RequestError, Stopping, UnknownModel
from serving.process.shutdown import Stop
from serving.repository.model_control import ModelControl

log = logging.getLogger(__name__)

Message = dict[str, Any]
Verb = Literal["load", "unload"]

_ALONE = "the server is stopping"

_LINE_BYTES = 1 << 20

# The errors of a Load or Unload that its caller is told of; any other is one of ours.
_TELLABLE: dict[str, type[RequestError]] = {error.__name__: error for error in (UnknownModel, LoadFailed)}


class Channel:
    """One end of the line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> "Channel":
        """The line that a socket is one end of."""
        return cls(*await asyncio.open_connection(sock=end, limit=_LINE_BYTES))

    def send(self, kind: str, **content: object) -> None:
        """Says something. It is lost when the other is gone, as `receive` will tell."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps({"kind": kind, **content}).encode() + b"\n")

    async def receive(self) -> Message | None:
        """What the other said next; None once it is gone."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        message: Message | None = json.loads(line) if line.endswith(b"\n") else None
        return message

    async def close(self) -> None:
        """Hangs up, when all that was said is sent."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            log.debug("the other end was gone first")


class Control:
    """A worker's end: its orders come out here, and Load and Unload go in, to take effect in every worker.

    Attributes:
        stops: the orders to stop.
        directory: what the workers keep together, metrics and rate limits, has its files here.
        unloaded: the models that are not to answer from the beginning.
    """

    def __init__(self, channel: Channel, directory: Path, unloaded: Collection[str], orphaned: Stop):
        """Speaks over `channel`; once the supervisor is gone, the worker stops by `orphaned`."""
        self.stops: asyncio.Queue[Stop] = asyncio.Queue()
        self.directory = directory
        self.unloaded = unloaded
        self._channel = channel
        self._orphaned = orphaned
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._asks = 0
        self._alone = False  # whether the supervisor is gone

    def tell_readiness(self, unready: str) -> None:
        """Tells the supervisor why this worker wants no traffic; nothing when it does."""
        self._channel.send("ready", unready=unready)

    async def beat(self, seconds: float) -> None:
        """Tells the supervisor that the event loop turns, that often."""
        while True:
            await asyncio.sleep(seconds)
            self._channel.send("alive")

    async def load(self, name: str) -> None:
        """Has the model answer in every worker; raises UnknownModel or LoadFailed, of whichever worker."""
        await self._ask("load", name)

    async def unload(self, name: str) -> None:
        """Has the model answer in no worker any more; raises UnknownModel."""
        await self._ask("unload", name)

    async def _ask(self, verb: Verb, model: str) -> None:
        if self._alone:
            raise Stopping(_ALONE)
        self._asks += 1
        asked = self._asks
        self._asked[asked] = asyncio.get_running_loop().create_future()
        self._channel.send("ask", id=asked, verb=verb, model=model)
        try:
            await self._asked[asked]
        finally:
            del self._asked[asked]

    async def obey(self, models: ModelControl) -> None:
        """Does what the supervisor says, with the worker's own `models`, until the supervisor is gone."""
        doing: set[asyncio.Task[None]] = set()
        while (message := await self._channel.receive()) is not None:
            match message["kind"]:
                case "stop":
                    self.stops.put_nowait(Stop(message["drain_seconds"], message["grace_seconds"]))
                case "do":
                    work = asyncio.create_task(self._do(models, message))
                    doing.add(work)
                    work.add_done_callback(doing.discard)
                case "told":
                    told = self._asked.get(message["id"])
                    if told is not None and not told.done():
                        finish(told, message["error"])
        self._alone = True
        self.stops.put_nowait(self._orphaned)
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(Stopping(_ALONE))

    async def _do(self, models: ModelControl, message: Message) -> None:
        error = await tellable(models.load if message["verb"] == "load" else models.unload, message["model"])
        self._channel.send("done", id=message["id"], error=error)


async def tellable(work: Callable[[str], Any], model: str) -> list[str] | None:
    """Does it, and returns the error as it crosses the line: its name and its message."""
    try:
        await work(model)
    except tuple(_TELLABLE.values()) as error:
        return [type(error).__name__, str(error)]
    except Exception as error:
        log.exception("loading or unloading %s failed", model)
        return [type(error).__name__, "internal error"]
    return None


def finish(asked: "asyncio.Future[None]", error: list[str] | None) -> None:
    """Ends a caller's wait, with the error that crossed the line if there was one."""
    if error is None:
        asked.set_result(None)
    else:
        kind, text = error
        asked.set_exception(_TELLABLE.get(kind, RuntimeError)(text))
