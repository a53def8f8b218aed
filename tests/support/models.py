"""Loaded models that a test gives to a server: one that is warm already, and one whose runs the test holds back."""

import asyncio
import threading

import numpy as np
from numpy.typing import NDArray

from serving.inference.classifier import Classifier
from serving.repository.quarantine.quarantine import OpenVersion
from serving.repository.versions import ModelVersion
from tests.support.calls import TIMEOUT


def opens(*models: Classifier) -> OpenVersion:
    """Returns what opens these models in turn, and the last one for ever, in place of a quarantine and its files."""
    left = [*models]

    async def open_version(source: ModelVersion, since: float) -> Classifier:
        return left.pop(0) if len(left) > 1 else left[0]

    return open_version


class WarmModel(Classifier):
    """A real model that was loaded and warmed up before, so that a server on it starts at once."""

    def __init__(self, model: Classifier):
        self.__dict__.update(model.__dict__)

    def warm_up(self, max_batch_size: int) -> None:
        pass


class GatedModel(WarmModel):
    """A real model whose runs wait at a gate, so that a test decides when each run continues.

    Attributes:
        batches: the images of every run, in order; each (N, 28, 28) uint8.
        started: released once per run.
        gate: lets one run pass for each release.
    """

    def __init__(self, model: Classifier):
        super().__init__(model)
        self.batches: list[NDArray[np.uint8]] = []
        self.started = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.batches.append(images)
        self.started.release()
        assert self.gate.acquire(timeout=TIMEOUT), "the test never opened the gate"
        if (images[0] == 255).all():
            raise RuntimeError("a white image first in the batch breaks this model")
        return super().infer(images)

    def open(self, runs: int = 1_000_000) -> None:
        self.gate.release(runs)

    async def run_starts(self) -> None:
        """Waits until the model receives one more batch."""
        assert await asyncio.to_thread(self.started.acquire, timeout=TIMEOUT)
