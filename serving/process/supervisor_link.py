"""A worker's link to its supervisor: takes stop requests, and has every worker load or unload a model."""

import asyncio
import logging
from collections.abc import Collection

from serving.errors import Stopping, UnknownModel
from serving.process.listening_sockets import ListeningSockets
from serving.process.message_channel import BrokenChannel, Message, MessageChannel, Verb, error_of, resolve
from serving.process.shutdown import Stop
from serving.repository.model_control import ModelControl
from serving.telemetry.logs import log_event
from serving.telemetry.series_files import SeriesFiles

log = logging.getLogger(__name__)

_STOPPING = "the server is stopping"
_NAME_BYTES = 255  # of a model, at most: its directory can have no longer name


class SupervisorLink:
    """Links a worker to its supervisor. As a `ModelControl`, it loads and unloads a model in every worker.

    Attributes:
        stops: the stop requests of the supervisor.
        series: files in which this worker counts, in the directory that all workers share.
        unloaded: names of the models that must not answer from the start.
    """

    def __init__(self, channel: MessageChannel, series: SeriesFiles, unloaded: Collection[str], orphaned: Stop):
        """Sends and receives over `channel`; once the supervisor has ended, puts `orphaned` into `stops`."""
        self.stops: asyncio.Queue[Stop] = asyncio.Queue()
        self.series = series
        self.unloaded = unloaded
        self._channel = channel
        self._orphaned = orphaned
        self._pending: dict[int, asyncio.Future[None]] = {}  # changes that this worker has requested, by id
        self._last_id = 0
        self._alone = False  # the supervisor has ended
        self._listening: ListeningSockets | None = None
        self._started = asyncio.Event()  # set once changes can be applied

    def serve(self, listening: ListeningSockets) -> None:
        """Takes the sockets of a worker that has started. It closes them once the supervisor has ended."""
        self._listening = listening
        if self._alone:
            listening.close()

    def apply_changes(self) -> None:
        """Begins to apply the changes that the supervisor sends. Changes from the time of the start have waited."""
        self._started.set()

    def report_readiness(self, unready: str) -> None:
        """Reports the reason why this worker accepts no traffic; empty when it does."""
        self._channel.send("readiness", unready=unready)

    async def send_heartbeats(self, seconds: float) -> None:
        """Sends a heartbeat at this interval, which shows that the event loop turns; runs until it is cancelled."""
        while True:
            await asyncio.sleep(seconds)
            self._channel.send("heartbeat")

    async def load(self, name: str) -> None:
        """Loads a model in every worker. Raises UnknownModel or LoadFailed if a worker does."""
        await self._request("load", name)

    async def unload(self, name: str) -> None:
        """Unloads a model in every worker. Raises UnknownModel."""
        await self._request("unload", name)

    async def _request(self, verb: Verb, model: str) -> None:
        if len(model.encode()) > _NAME_BYTES:
            raise UnknownModel(f"there is no model with a name of {len(model)} characters")
        if self._alone:
            raise Stopping(_STOPPING)
        self._last_id += 1
        number = self._last_id
        self._pending[number] = asyncio.get_running_loop().create_future()
        self._channel.send("change", id=number, verb=verb, model=model)
        try:
            await self._pending[number]
        finally:
            del self._pending[number]

    async def follow(self, models: ModelControl) -> None:
        """Follows the supervisor's messages until it ends; changes are applied to `models`, this worker's own."""
        applying: set[asyncio.Task[None]] = set()
        while (message := await self._receive()) is not None:
            match message["kind"]:
                case "stop":
                    self.stops.put_nowait(Stop(message["drain_seconds"], message["grace_seconds"]))
                case "apply":
                    task = asyncio.create_task(self._apply(models, message))
                    applying.add(task)
                    task.add_done_callback(applying.discard)
                case "result":
                    waiting = self._pending.get(message["id"])
                    if waiting is not None and not waiting.done():
                        resolve(waiting, message["error"])
        self._alone = True
        if self._listening:
            self._listening.close()  # the next supervisor can take the ports at once
        ended = "the supervisor has ended: this worker stops listening, drains and exits"
        log_event(log, logging.ERROR, "supervisor_lost", ended)
        self.stops.put_nowait(self._orphaned)
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(Stopping(_STOPPING))

    async def _receive(self) -> Message | None:
        try:
            return await self._channel.receive()
        except BrokenChannel:
            log_event(log, logging.ERROR, "supervisor_message_refused", "unusable message of the supervisor", exc_info=True)
            return None

    async def _apply(self, models: ModelControl, message: Message) -> None:
        await self._started.wait()
        error = await error_of(models.load if message["verb"] == "load" else models.unload, message["model"])
        self._channel.send("applied", id=message["id"], error=error)
