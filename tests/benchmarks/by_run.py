"""CPU time of a call beside the network and the transport, in µs: `python -m tests.benchmarks.by_run`.

Calls of one image go through dispatcher, recognizer, batcher and policy, each with a task of its own and by the run. All
calls of a round arrive together and make one run. The model's output was computed before, so what is left is the service's
own work. The medians of many rounds are printed, with the two ways by turns.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.answers.recognition_id import RecognitionIds
from serving.api.digits import DigitService
from serving.api.dispatch import Dispatcher
from serving.api.open_inference import OpenInference
from serving.api.rpc import Method
from serving.call import Call
from serving.errors import RequestError
from serving.feedback.truth import TruthCounter
from serving.inference.batcher import Batcher
from serving.inference.classifier import Classifier
from serving.inference.model import open_model
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.recognition.policy import Policy
from serving.recognition.recognizer import Recognizer
from serving.repository import versions
from serving.repository.catalog import Catalog, Loaded, ServedModel
from serving.settings import BUNDLED, Settings
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
from tests.support.drawings import draw_many
from tests.support.infer_calls import image_request

SIZES = (1, 8, 32, 128)  # calls of a run
KEY = b"a key of 32 characters, or so so"

Round = Callable[[int], Awaitable[None]]
"""Sends this number of calls at once, and returns once all are answered."""


class Precomputed(Classifier):
    """A model that knows its output beforehand."""

    def __init__(self, model: Classifier, images: NDArray[np.uint8]):
        self.__dict__.update(model.__dict__)
        self._rows = model.classify(images)

    def classify(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the first rows of the output, whatever the images are."""
        return self._rows[: len(images)]


class NoControl:
    """Stands in for the control of models, which no call of this benchmark needs."""

    async def load(self, name: str) -> None:
        """Does nothing."""

    async def unload(self, name: str) -> None:
        """Does nothing."""


class Countdown:
    """Takes the answers of a round of calls."""

    def __init__(self, calls: int):
        self.over = asyncio.get_running_loop().create_future()
        self._calls = calls

    def succeed(self, _: bytes) -> None:
        """Counts an answer; the last one ends the round."""
        self._calls -= 1
        if not self._calls:
            self.over.set_result(None)

    def fail(self, error: RequestError) -> None:
        """Ends the benchmark."""
        self.over.set_exception(error)


class Service:
    """The service without transport, on one model whose output is known beforehand."""

    def __init__(self, images: NDArray[np.uint8], keys: list[bytes]):
        version = versions.latest(BUNDLED)
        model = Precomputed(open_model(version.path.read_bytes(), str(version.number)), images)
        metrics = Metrics()
        counts = VersionMetrics(metrics, "digits", model.version)
        self._batcher = Batcher(model, counts, instances=1, max_batch_size=128, max_queue_size=1024, brief_seconds=1.0)
        catalog = Catalog("digits")
        loaded = Loaded("digits", model.version, version, model, self._batcher, counts)
        catalog.models["digits"] = ServedModel("digits", roles={"stable": loaded})
        ids = RecognitionIds(keys)
        self._recognizer = Recognizer(catalog, Policy(0.005, 0.02, {}, ids, 0.0, None), metrics, 10_000, 1024)
        service = DigitService(self._recognizer, TruthCounter(ids, catalog.knows, metrics), 1000)
        self.dispatcher = Dispatcher(metrics, None, None)
        infer = OpenInference(Settings(), catalog, NoControl(), self._recognizer, metrics, str)
        self.dispatcher.add([*service.methods(), *infer.methods()])
        self.methods = {method.name: method for method in self.dispatcher.methods.values()}

    async def close(self) -> None:
        """Stops the threads."""
        await self._batcher.close(1)
        await self._recognizer.close(1)


def rounds(dispatcher: Dispatcher, method: Method[Any, Any], encoded: list[bytes]) -> dict[str, Round]:
    """Returns a round of calls by each way."""

    async def in_tasks(calls: int) -> None:
        await asyncio.gather(*[asyncio.create_task(dispatcher.answer(method, one, Call())) for one in encoded[:calls]])

    async def by_run(calls: int) -> None:
        reply = Countdown(calls)
        for one in encoded[:calls]:
            dispatcher.enter(method, one, Call(), reply)
        await reply.over

    return {"a task each": in_tasks, "by the run": by_run}


async def measure(ways: dict[str, Round], seconds: float) -> dict[tuple[str, int], float]:
    """Measures each way with each size by turns; returns the medians in µs a call."""
    taken: dict[tuple[str, int], list[float]] = {(way, size): [] for way in ways for size in SIZES}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for size in SIZES:
            for way, send in ways.items():
                await send(size)  # the runner learns how many callers there are
                start = time.process_time()
                for _ in range(5):
                    await asyncio.sleep(0)  # calls of another round arrive in another turn of the event loop
                    await send(size)
                taken[way, size].append((time.process_time() - start) / (5 * size) * 1e6)
    return {case: median(times) for case, times in taken.items()}


async def compare(seconds: float) -> None:
    """Measures all methods, and prints Markdown."""
    images = draw_many(max(SIZES), seed=1)[0]
    requests = {
        "Recognize": [pb.RecognizeRequest(image=image.tobytes()).SerializeToString() for image in images],
        "ModelInfer": [image_request(image[None]).SerializeToString() for image in images],
    }
    print("| µs a call | " + " | ".join(f"{size} calls a run" for size in SIZES) + " |")
    print("|---|" + "---:|" * len(SIZES))
    for keys in ([], [KEY]):
        service = Service(images, keys)
        for name, encoded in requests.items():
            method = service.methods[name]
            times = await measure(rounds(service.dispatcher, method, encoded), seconds)
            for way in ("a task each", "by the run"):
                cells = " | ".join(f"{times[way, size]:.1f}" for size in SIZES)
                print(f"| `{name}`{', signed ids' if keys else ''}, {way} | {cells} |")
        await service.close()


def main() -> None:
    """Reads the arguments and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each method (default: %(default)s)")
    asyncio.run(compare(parser.parse_args().seconds))


if __name__ == "__main__":
    main()
