"""The queue of crops: PNG or JPEG files of one digit each, framed like MNIST images before the network sees them."""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass, field
from typing import NamedTuple

from serving.call import Call, Source
from serving.contract import IMAGE_BYTES
from serving.errors import DeadlineExceeded, Stopping, queue_full
from serving.imaging.headers import CropError
from serving.inference.priorities import Priorities
from serving.peers import heaviest
from serving.telemetry.metrics import Metrics

_TURN = 5  # crops of one connection framed in a row, as in a field; then other connections have their turn
_TURN_SECONDS = 0.02  # time after which a turn ends early
_MAX_WAITING_BYTES = 1 << 26  # 64 MiB of each priority
_FIRST_GUESS_SECONDS = 0.001
_SMOOTHING = 0.05  # weight of the newest crop in the average


class FramedCrops(NamedTuple):
    """The n framed crops of one call.

    Attributes:
        pixels: 784 bytes a crop, 0 paper to 255 ink; blank where a crop shows no ink or can't be decoded.
        whole: n flags; False where the crop does not certainly show one whole digit.
        errors: the reasons that crops can't be decoded, by their index.
    """

    pixels: bytes
    whole: list[bool]
    errors: dict[int, str]


class _Framed(NamedTuple):
    """One framed crop: the image, whether it shows one whole digit, why it can't be decoded or "", and the seconds."""

    image: bytes
    whole: bool
    error: str
    seconds: float


@dataclass(eq=False, slots=True)
class _Job:
    """The crops of one call.

    Attributes:
        crops: PNG or JPEG files.
        size: bytes of all crops.
        deadline: on the clock of time.monotonic.
        source: the client, and its connection.
        batch: True for priority batch, False for live.
        done: resolves to the framed crops.
        framed: those that are framed already.
        taken: number of crops that have had their turn.
    """

    crops: Sequence[bytes]
    size: int
    deadline: float
    source: Source
    batch: bool
    done: asyncio.Future[FramedCrops]
    framed: list[_Framed] = field(default_factory=list)
    taken: int = 0
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.crops)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def take(self, framed: _Framed) -> None:
        """Takes the next framed crop; the last one answers the call."""
        self.framed.append(framed)
        if len(self.framed) == self.count and not self.done.done():
            errors = {index: one.error for index, one in enumerate(self.framed) if one.error}
            pixels = b"".join([one.image for one in self.framed])
            self.done.set_result(FramedCrops(pixels, [one.whole for one in self.framed], errors))


class CropQueue:
    """Frames crops on one thread, so that the event loop stays free: live before batch, and clients in turn.

    A turn costs the time that it takes: a client whose crops take long has fewer turns.
    """

    def __init__(self, max_waiting: int, metrics: Metrics):
        """Starts empty.

        Args:
            max_waiting: crops of each priority that may wait. They may also not exceed 64 MiB. One call is always accepted.
            metrics: counts crops and their framing time.
        """
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._queue: Priorities[_Job] = Priorities(_TURN)
        self._jobs: dict[_Job, None] = {}  # unanswered ones
        self._bytes = Counter({False: 0, True: 0})  # of them, by `batch`
        self._seconds_per_crop = _FIRST_GUESS_SECONDS
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="framing")
        self._framing: asyncio.Task[None] | None = None

    async def frame(
        self, crops: Sequence[bytes], deadline: float, call: Call | None = None, *, batch: bool = False
    ) -> FramedCrops:
        """Frames n crops.

        Args:
            crops: PNG or JPEG files.
            deadline: on the clock of time.monotonic.
            call: the call that the crops belong to, whose client gets a turn; None for one without a client.
            batch: True for priority batch, False for live.

        Raises:
            QueueFull: the queue has no room, or the crops would be framed too late; or a client with fewer needs the room.
            DeadlineExceeded: the deadline passed.
            Stopping: the queue was closed.
        """
        if self._stopping:
            raise Stopping("the server is stopping")
        source, future = (call or Call()).source, asyncio.get_running_loop().create_future()
        job = _Job(crops, sum(map(len, crops)), deadline, source, batch, future)
        self._refuse_excess(job)
        self._count(job, 1)
        self._queue.queue_of(job).add(job)
        if self._framing is None:  # in an empty context: log lines must not carry the ids of the call that comes first
            self._framing = asyncio.get_running_loop().create_task(self._frame_all(), context=Context())
        try:
            return await job.done
        finally:
            self._queue.queue_of(job).drop(job)
            self._count(job, -1)

    async def close(self, grace_seconds: float) -> None:
        """Refuses new crops and waits up to the grace for the queued ones; the rest end as Stopping."""
        self._stopping = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_seconds)
        self._closed = True
        for job in [*self._jobs]:
            job.fail(Stopping("the server is stopping"))
        self._thread.shutdown(wait=False)

    async def _frame_all(self) -> None:
        """Frames turn by turn until no crop waits."""
        try:
            while not self._closed and (turn := self._queue.take_turn(_TURN, _is_over)):
                await self._frame_turn(turn)
        finally:
            self._framing = None

    async def _frame_turn(self, turn: Sequence[tuple[_Job, int]]) -> None:
        parts = [(job, crop) for job, count in turn for crop in job.crops[job.taken - count : job.taken]]
        try:
            crops = [crop for _, crop in parts]
            framed = await asyncio.get_running_loop().run_in_executor(self._thread, _frame_some, crops)
        except Exception as error:  # a fault of the framing, which ends these calls only
            for job, _ in turn:
                job.fail(error)
            return
        for (job, _), one in zip(parts, framed, strict=False):
            job.take(one)
            self._metrics.framing_seconds.observe(one.seconds)
            self._seconds_per_crop += _SMOOTHING * (one.seconds - self._seconds_per_crop)
        for job, left in Counter(job for job, _ in parts[len(framed) :]).items():  # the turn has ended early
            if not job.done.done():
                self._queue.queue_of(job).drop(job)
                job.taken -= left
                self._queue.queue_of(job).add(job)
        job = turn[0][0]
        milliseconds = 1000 * sum(one.seconds for one in framed)
        self._queue.queue_of(job).charge(job.source, milliseconds - len(parts))  # instead of a unit for each crop

    def _refuse_excess(self, job: _Job) -> None:
        """Raises QueueFull, unless a job has time and room, or others give way to it. A refused job costs nobody."""
        self._refuse_late(job)
        queue = self._queue.queue_of(job)
        if not queue.waiting:
            return
        # Whoever gives way, those who have more than this client still do: no check can fail after the first job ends.
        largest = self._with_most_bytes(job)
        excess = queue.waiting + job.count - self._max_waiting
        if largest is None or (excess > 0 and not queue.heavier_than(job.source, job.count, excess)):
            raise queue_full(
                f"{queue.waiting} crops wait to be framed, and there is no room for {job.count} more",
                queue.waiting * self._seconds_per_crop,
                batch=job.batch,
            )
        for heavy in largest:
            self._give_way(heavy)
        while (excess := queue.waiting + job.count - self._max_waiting) > 0 and (
            other := queue.heavier_than(job.source, job.count, excess)
        ):
            self._give_way(other)

    def _refuse_late(self, job: _Job) -> None:
        """Raises QueueFull for a job that would be late.

        The estimate by turns takes longer, so it is made only where all that waits would make the job late.
        """
        waiting = self._queue.live.waiting + self._queue.batch.waiting
        if waiting and time.monotonic() + waiting * self._seconds_per_crop > job.deadline:
            ahead = self._queue.ahead(job)
            by_turns = -(-ahead // _TURN) * (_TURN_SECONDS + self._seconds_per_crop)
            seconds = min(ahead * self._seconds_per_crop, by_turns)
            if time.monotonic() + seconds > job.deadline:
                message = f"{waiting} crops wait to be framed, and {job.count} more would be late"
                raise queue_full(message, seconds, batch=job.batch)

    def _give_way(self, job: _Job) -> None:
        """Ends a job in favour of another."""
        queue = self._queue.queue_of(job)
        seconds = queue.waiting * self._seconds_per_crop
        queue.drop(job)
        self._count(job, -1)
        message = "too many crops wait to be framed, and other clients have fewer"
        job.fail(queue_full(message, seconds, batch=job.batch))

    def _with_most_bytes(self, job: _Job) -> list[_Job] | None:
        """Returns the jobs that give way to the bytes of a job; None if its own connection would have most of them.

        Each is the newest job of the connection with most bytes, of the client with most.
        """
        excess = self._bytes[job.batch] + job.size - _MAX_WAITING_BYTES
        if excess <= 0:
            return []
        jobs: defaultdict[Source, list[_Job]] = defaultdict(list)
        sizes = Counter({job.source: job.size})
        for other in self._queue.queue_of(job):
            jobs[other.source].append(other)
            sizes[other.source] += other.size
        giving_way = []
        while excess > 0:
            source = heaviest(sizes, lambda one: sizes[one], lambda one: one.client)
            if source == job.source:
                return None
            giving_way.append(jobs[source].pop())
            sizes[source] -= giving_way[-1].size
            excess -= giving_way[-1].size
        return giving_way

    def _count(self, job: _Job, change: int) -> None:
        """Counts a job in, or out; only once out."""
        if change > 0:
            self._jobs[job] = None
        elif job in self._jobs:
            del self._jobs[job]
        else:
            return
        self._bytes[job.batch] += change * job.size
        self._metrics.crops_waiting.inc(change * job.count)
        if self._jobs:
            self._idle.clear()
        else:
            self._idle.set()


def _is_over(job: _Job) -> bool:
    """Fails a late job; returns True also for one that has ended."""
    if time.monotonic() > job.deadline:
        job.fail(DeadlineExceeded("the deadline passed before all crops were framed"))
    return job.done.done()


def _frame_some(crops: Sequence[bytes]) -> list[_Framed]:
    """Frames crops in the calling thread, at least one, until a turn is over."""
    from serving.imaging.crop import frame_crop  # OpenCV: a service without crops starts sooner

    framed: list[_Framed] = []
    end = time.perf_counter() + _TURN_SECONDS
    for crop in crops:
        began, error = time.perf_counter(), ""
        if framed and began > end:
            break
        try:
            result = frame_crop(crop)
            image, whole = result.image.tobytes(), result.whole
        except CropError as refusal:
            image, whole, error = bytes(IMAGE_BYTES), False, str(refusal)
        framed.append(_Framed(image, whole, error, time.perf_counter() - began))
    return framed
