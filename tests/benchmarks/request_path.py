"""Trace of one Recognize call through the files of serving/: `python -m tests.benchmarks.request_path`.

A server in this process answers a call with an image, then a call with a crop. Meanwhile a profile hook notes each function
of serving/ that starts or resumes, on every thread; generated stubs do not count. A visit is an unbroken run of such events
in one file. A return to the file of the caller counts only once that file starts or resumes another function. `--source`
names another checkout, to compare two layouts.
"""

import argparse
import asyncio
import importlib
import itertools
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
WARM_UP_CALLS = 20  # after these every cache is filled, and the batcher knows how long a run takes
TRACED_CALLS = 15  # the most common path counts: a timer of the server may fire during one of them
TIMEOUT = 20  # seconds, of every call

Visit = tuple[str, tuple[str, ...]]
"""A file, relative to serving/, and the functions that ran in it, in order."""


class Recorder:
    """Profile hook that notes the functions of one package, on this thread and on all that start while it is installed.

    Attributes:
        recording: events are noted only while this is true.
    """

    def __init__(self, package: Path):
        self.recording = False
        self._prefix = f"{package}/"
        self._generated = f"{package}/pb/"
        self._events: list[tuple[str, str]] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def take(self) -> tuple[Visit, ...]:
        """Returns the visits noted since the last `take`, in order."""
        events, self._events = self._events, []
        return tuple(
            (file, tuple(dict.fromkeys(function for _, function in visit)))
            for file, visit in itertools.groupby(events, key=lambda event: event[0])
        )

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if self.recording and event == "call":  # the start of a function, or a coroutine or generator that resumes
            file = frame.f_code.co_filename
            if file.startswith(self._prefix) and not file.startswith(self._generated):
                self._events.append((file.removeprefix(self._prefix), frame.f_code.co_qualname))


def most_common(paths: list[tuple[Visit, ...]]) -> tuple[Visit, ...]:
    """Returns the path that most calls took; of several, the one with the fewest visits."""
    counts = Counter(paths)
    return min(counts, key=lambda path: (-counts[path], len(path)))


def load(source: Path, *names: str) -> Any:
    """Imports the first of these modules that the checkout has; layouts differ."""
    for name in names:
        # Not find_spec: an editable install would supply modules of yet another checkout.
        if source.joinpath(*name.split(".")).with_suffix(".py").is_file():
            return importlib.import_module(name)
    raise FileNotFoundError(f"{source} has none of the modules {', '.join(names)}")


async def trace(source: Path, recorder: Recorder) -> dict[str, tuple[Visit, ...]]:
    """Starts a server of the checkout `source`, and returns the path of each kind of call."""
    server_module = load(source, "serving.process.server", "serving.server")
    settings = load(source, "serving.settings").Settings
    with tempfile.TemporaryDirectory() as models:
        (Path(models) / "digits").symlink_to(source / "serving" / "models" / "digits")
        # With an hour between two polls of the repository, no poll falls into a traced call.
        server = server_module.Server(settings(grpc_port=0, metrics_port=0, models=models, poll_seconds=3600))
        await server.start()
        with recorder.installed():  # after the start, so that the thread of the metrics port is not traced
            paths = await _paths(source, recorder, f"127.0.0.1:{server.grpc_port}")
        await server.stop(drain_seconds=0, grace_seconds=TIMEOUT)
    return paths


async def _paths(source: Path, recorder: Recorder, address: str) -> dict[str, tuple[Visit, ...]]:
    pb = load(source, "serving.pb.digits.v1.digit_service_pb2")
    stubs = load(source, "serving.pb.digits.v1.digit_service_pb2_grpc")
    sample = source / "serving" / "samples" / "7.png"
    image = 255 - np.asarray(Image.open(sample))  # (28, 28) uint8, 0 paper, 255 ink
    requests = {
        "an image": pb.RecognizeRequest(image=image.tobytes()),
        "a crop": pb.RecognizeRequest(crop=sample.read_bytes()),
    }
    paths: dict[str, tuple[Visit, ...]] = {}
    async with grpc.aio.insecure_channel(address) as channel:
        recognize = stubs.DigitServiceStub(channel).Recognize
        for kind, request in requests.items():
            for _ in range(WARM_UP_CALLS):
                await recognize(request, timeout=TIMEOUT)
            paths[kind] = most_common([await _record(recorder, recognize, request) for _ in range(TRACED_CALLS)])
    return paths


async def _record(recorder: Recorder, recognize: Callable[..., Any], request: Any) -> tuple[Visit, ...]:
    recorder.recording = True
    answer = await recognize(request, timeout=TIMEOUT)
    await asyncio.sleep(0.05)  # the work after the answer has left belongs to the path
    recorder.recording = False
    if answer.digit != 7:
        raise RuntimeError(f"the server answered {answer.digit} for the sample 7")
    return recorder.take()


def report(kind: str, path: tuple[Visit, ...], package: Path) -> None:
    """Prints the totals of one path, its files by length, and its visits in order."""
    lines = {file: len((package / file).read_text().splitlines()) for file, _ in path}
    visits = Counter(file for file, _ in path)
    print(f"## Recognize with {kind}: {len(lines)} files, {len(path)} visits, {sum(lines.values()):,} lines\n")
    print("| file | lines | visits |\n|---|---:|---:|")
    for file in sorted(lines, key=lambda name: -lines[name]):
        print(f"| {file} | {lines[file]} | {visits[file]} |")
    print()
    for number, (file, functions) in enumerate(path, 1):
        print(f"{number:3}. {file}: {', '.join(functions)}")
    print()


def main() -> None:
    """Traces the checkout that `--source` names, and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=ROOT, help="checkout to trace (default: this one)")
    options = parser.parse_args()
    source = options.source.resolve()
    sys.path.insert(0, str(source))
    paths = asyncio.run(trace(source, Recorder(source / "serving")))
    for kind, path in paths.items():
        report(kind, path, source / "serving")


if __name__ == "__main__":
    main()
