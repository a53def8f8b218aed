"""Opens versions after a child process has examined them, or did so before."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import onnxruntime

from serving import contract
from serving.disk_thread import on_disk_thread
from serving.inference.classifier import Classifier
from serving.inference.metadata import ENVIRONMENT, ModelError
from serving.inference.model import open_model
from serving.repository.quarantine.examination import Examination, Verdict, examination
from serving.repository.quarantine.verdicts import Verdicts
from serving.repository.versions import ModelVersion
from serving.settings import Settings

# Each child holds its file in memory, and waits until it may try the file. Without a bound, a repository of many models
# would start a child for each of them at once.
_CHILDREN = 4

# A second file is tried while a first one hangs. Each child that tries one may take `load_memory_bytes` more.
_TRIED_AT_ONCE = 2

OpenVersion = Callable[[ModelVersion, float], Awaitable[Classifier]]
"""Opens a version; refusals from before the given time don't count. Raises ModelError."""


class Quarantine:
    """Opens versions. Whatever is wrong with a file happens in a child process."""

    def __init__(self, settings: Settings):
        """Takes provider, batch size and limits from the settings."""
        self._settings = settings
        self._verdicts = Verdicts(settings, _conditions(settings))
        self._children = asyncio.Semaphore(_CHILDREN)
        self._trials = asyncio.Semaphore(_TRIED_AT_ONCE)

    async def open(self, source: ModelVersion, since: float = 0.0) -> Classifier:
        """Opens a version once a child process has examined its file, or did so before; then warms it up.

        Args:
            source: the version on disk.
            since: time of `time.time()` before which refusals don't count.

        Raises:
            ModelError: the version can't be served.
        """
        async with self._children:
            memory = _memory_file(source)
            try:
                async with examination(memory, self._settings) as child:
                    digest = await child.read(source)
                    verdict = await self._judge(child, digest, source, since)
                if verdict.reason:
                    raise ModelError(verdict.reason, verdict.message)
                return await self._open_on_thread(os.dup(memory), source)
            finally:
                os.close(memory)

    async def _judge(self, child: Examination, digest: str, source: ModelVersion, since: float) -> Verdict:
        """Returns the kept verdict on a content, or has the child check it."""
        known = await on_disk_thread(self._verdicts.find, digest, since)
        if known is not None:
            return known
        async with self._verdicts.lock(digest, 2 * self._settings.load_seconds), self._trials:
            known = await on_disk_thread(self._verdicts.find, digest, since)  # another worker may have had the lock
            if known is not None:
                return known
            verdict = await child.check(source)
            if verdict.reason != ENVIRONMENT:
                await on_disk_thread(self._verdicts.keep, digest, verdict)
            return verdict

    async def _open_on_thread(self, memory: int, source: ModelVersion) -> Classifier:
        """Opens the content that was examined on another thread. Closes `memory`, even if that thread never begins."""
        taken = threading.Lock()  # by the side that closes it
        try:
            return await asyncio.to_thread(self._open_sealed, memory, taken, source)
        finally:
            if taken.acquire(blocking=False):
                os.close(memory)

    def _open_sealed(self, memory: int, taken: threading.Lock, source: ModelVersion) -> Classifier:
        """Takes `memory`, opens and warms up its content, and closes it. Raises ModelError."""
        if not taken.acquire(blocking=False):
            raise ModelError(ENVIRONMENT, "was not loaded: nobody waits for it any more")
        with os.fdopen(memory, "rb"):
            content = os.pread(memory, os.fstat(memory).st_size, 0)
            try:
                opened = open_model(content, str(source.number), self._settings.provider)
                opened.warm_up(self._settings.max_batch_size)
            except ModelError as error:  # what was sound a moment ago fails here for want of memory or of a device
                raise ModelError(ENVIRONMENT, str(error)) from error
        return opened


def _conditions(settings: Settings) -> str:
    """Returns what a verdict depends on besides the content: the software that checks, and the limits."""
    package = Path(contract.__file__).parent
    checks = hashlib.sha256()
    for file in sorted([package / "contract.py", *package.glob("inference/*.py")]):
        checks.update(file.read_bytes())
    limits = (settings.max_batch_size, settings.max_model_bytes, settings.load_seconds, settings.load_memory_bytes)
    return repr((checks.hexdigest(), onnxruntime.__version__, settings.provider, *limits))


def _memory_file(source: ModelVersion) -> int:
    try:
        return os.memfd_create(f"digits-{source.number}"[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise ModelError(ENVIRONMENT, f"was not tried: no memory file can be made: {error.strerror}") from error
