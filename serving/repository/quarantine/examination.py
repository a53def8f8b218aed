"""One child process that examines a model file, as its parent sees it."""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from serving.child_process import kill, python_path
from serving.inference.metadata import ENVIRONMENT, REFUSALS, ModelError
from serving.repository.quarantine.child import SEALS
from serving.repository.versions import ModelVersion
from serving.settings import Settings
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)

_EXIT_SECONDS = 5.0  # for a child that has closed its output
_KILLED_SECONDS = 1.0  # for a child that was killed

# Processor time in which a sound version is loaded and tried by far, as a share of the limit. A child that had less when
# its time was over waited for a disk or for the processor.
_ENOUGH_SHARE = 0.15

_PIPE_BYTES = 1 << 16  # of a pipe on Linux
_MOST_LOGGED = 2000  # characters of what a child wrote to stderr

# Signals that a process causes by what it does itself.
_FAULTS = frozenset(
    {
        *(signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
        *(signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP, signal.SIGXFSZ),
    }
)

# A child needs no settings: among them are passwords.
_SECRET = ("DIGITS_", "OTEL_")


class Verdict(NamedTuple):
    """The result of an examination.

    Attributes:
        reason: one of REFUSALS; empty if the version may be served.
        message: what the version does or is, in words; empty if the version may be served.
    """

    reason: str
    message: str


class Examination:
    """A child process that has one file to read, and perhaps to try."""

    def __init__(self, process: Process, memory: int, errors: int, settings: Settings):
        """Takes over a process that waits for its first message, and writes its errors to the pipe `errors`."""
        self._process = process
        self._input = cast("asyncio.StreamWriter", process.stdin)
        self._output = cast("asyncio.StreamReader", process.stdout)
        self._memory = memory
        self._errors = errors
        self._settings = settings

    async def read(self, source: ModelVersion) -> str:
        """Has the child copy the file into the memory file and seal it; returns the SHA-256 of the content.

        Raises:
            ModelError: the file can't be read, is no regular file, or is too large.
        """
        answer = await self._ask(
            source,
            path=str(source.path.absolute()),
            fingerprint=source.fingerprint,
            max_bytes=self._settings.max_model_bytes,
        )
        if isinstance(answer, Verdict):
            raise ModelError(answer.reason, answer.message)
        digest = answer.get("sha256")
        if not isinstance(digest, str) or fcntl.fcntl(self._memory, fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise ModelError(ENVIRONMENT, "cannot be read: the process that read it gave no answer")
        return digest

    async def check(self, source: ModelVersion) -> Verdict:
        """Has the child load and try what it has read, within limits of time and memory."""
        answer = await self._ask(
            source,
            version=str(source.number),
            provider=self._settings.provider,
            max_batch_size=self._settings.max_batch_size,
            seconds=self._settings.load_seconds,
            memory_bytes=self._settings.load_memory_bytes,
        )
        return answer if isinstance(answer, Verdict) else Verdict("crashed", "crashed the process that tried it")

    async def _ask(self, source: ModelVersion, **wanted: Any) -> dict[str, Any] | Verdict:
        """Sends one message, and returns the answer: a verdict, if need be one on the child's silence."""
        seconds = self._settings.load_seconds
        try:
            self._input.write(json.dumps(wanted).encode() + b"\n")
            line = await asyncio.wait_for(self._output.readline(), seconds)
            answer = json.loads(line) if line else None
        except TimeoutError:
            return self._late(seconds)
        except ValueError:  # a line that is too long, or no JSON
            return Verdict("crashed", "crashed the process that tried it: its answer makes no sense")
        if answer is None:
            return await self._silent(source)
        if not isinstance(answer, dict):
            return Verdict("crashed", "crashed the process that tried it: its answer makes no sense")
        reason, message = answer.get("reason"), answer.get("message")
        if reason is None:
            return answer
        return Verdict(reason, str(message)) if reason in (*REFUSALS, "") else Verdict("crashed", "crashed")

    def _late(self, seconds: float) -> Verdict:
        """Judges a child that gave no answer in time."""
        used = _processor_seconds(self._process.pid)
        if used >= _ENOUGH_SHARE * seconds:
            return Verdict("hung", _hung(seconds))
        message = f"was not loaded within {seconds:g} s, of which the process for it ran {used:.1f} s: the machine is slow"
        return Verdict(ENVIRONMENT, message)

    async def _silent(self, source: ModelVersion) -> Verdict:
        """Judges a child that has ended without an answer."""
        try:
            status = await asyncio.wait_for(self._process.wait(), _EXIT_SECONDS)
        except TimeoutError:
            return Verdict("hung", "hung the process that tried it: it did not exit")
        self._log_errors(source, status)
        if status >= 0:
            return Verdict(ENVIRONMENT, f"was not tried: the process for it ended with status {status}")
        if -status == signal.SIGXCPU:
            return Verdict("hung", _hung(self._settings.load_seconds))
        if -status not in _FAULTS:  # short of memory, the kernel kills; so do people
            return Verdict(ENVIRONMENT, "was not tried: the kernel or somebody killed the process for it")
        return Verdict("crashed", f"crashed the process that tried it: {signal.Signals(-status).name}")

    def _log_errors(self, source: ModelVersion, status: int) -> None:
        """Logs what an ended child wrote to stderr: a traceback shows a broken installation, which no verdict can name."""
        with contextlib.suppress(BlockingIOError):  # it wrote nothing
            text = os.read(self._errors, _PIPE_BYTES).decode("utf-8", "replace").strip()[-_MOST_LOGGED:]
            message = f"the process that tried {source.path} ended with status {status}: {text}"
            log_event(log, logging.WARNING, "model_process_ended", message, path=str(source.path), status=status)


@asynccontextmanager
async def examination(memory: int, settings: Settings) -> AsyncIterator[Examination]:
    """Runs a child process, which is killed when the block ends.

    Args:
        memory: file descriptor of an empty memory file, which the child fills.
        settings: limits and provider.

    Raises:
        ModelError: the child can't be started.
    """
    environment = {name: text for name, text in os.environ.items() if not name.startswith(_SECRET)}
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # as in a run
    module = "serving.repository.quarantine.child"
    with contextlib.ExitStack() as pipe:
        try:
            errors, written = pipe.enter_context(_full_pipe_drops())
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-B", "-P", "-m", module, str(os.getpid()), str(memory)),
                executable="/proc/self/exe",  # this very interpreter, even if an upgrade has removed it from the disk
                stdin=PIPE,
                stdout=PIPE,
                stderr=written,
                pass_fds=(memory,),
                env={**environment, **threads, "PYTHONPATH": python_path()},
                start_new_session=True,  # a signal for the service's process group is not for the child
            )
        except OSError as error:
            raise ModelError(ENVIRONMENT, f"was not tried: no process can be started: {error.strerror}") from error
        try:
            yield Examination(process, memory, errors, settings)
        finally:
            kill(process)
            with contextlib.suppress(TimeoutError):  # a process that waits for a dead disk ends when the disk answers
                await asyncio.wait_for(process.wait(), _KILLED_SECONDS)


@contextmanager
def _full_pipe_drops() -> Iterator[tuple[int, int]]:
    """Opens a pipe that nobody need read: what is written once it is full is lost. Yields both ends. Raises OSError."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


def _hung(seconds: float) -> str:
    return f"hung the process that tried it: it had not ended after {seconds:g} s (--load-seconds)"


def _processor_seconds(pid: int) -> float:
    """Returns the processor time of a process so far; 0 once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
