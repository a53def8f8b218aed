"""Clients that call without a pause while the service changes, and a tally of their calls."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import grpc

from serving.client import DigitClient
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.samples.draw import draw
from tests.support.calls import TIMEOUT

IMAGES = [draw(digit) for digit in range(10)]

CLIENTS = 6

Read = Callable[[int], int]
"""Sends the image of a digit and returns the recognized digit. Raises grpc.RpcError."""


class Tally:
    """Counts calls by result.

    Attributes:
        ended: calls by OK, WRONG for a misread digit, or the name of the status code.
        complaint: message of the first failed call.
    """

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.complaint = ""
        self._writing = threading.Lock()

    def add(self, result: str, complaint: str = "") -> None:
        with self._writing:
            self.ended[result] += 1
            self.complaint = self.complaint or complaint

    @property
    def calls(self) -> int:
        return self.ended.total()

    @property
    def failed(self) -> int:
        return self.calls - self.ended["OK"]

    def wait(self, more: int) -> None:
        """Waits until `more` further calls have ended."""
        enough = self.calls + more
        until(lambda: self.calls >= enough)


def until(condition: Callable[[], object], seconds: float = 2 * TIMEOUT) -> float:
    """Waits for a condition and returns the time that it took, seconds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds, f"the condition did not hold within {seconds:g} s"
        time.sleep(0.01)
    return time.monotonic() - start


@contextmanager
def one_connection(address: str, credentials: grpc.ChannelCredentials | None = None) -> Iterator[Read]:
    """Opens a client with one connection and no retries, so that every failure shows.

    Before each reconnect it resolves the address again.
    """
    options = [
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.dns_min_time_between_resolutions_ms", 0),
    ]
    channel = grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address, options)
    with channel:
        stub = DigitServiceStub(channel)
        yield lambda digit: stub.Recognize(pb.RecognizeRequest(image=IMAGES[digit].tobytes()), timeout=TIMEOUT).digit


@contextmanager
def balancing(address: str) -> Iterator[Read]:
    """Opens a DigitClient."""
    with DigitClient(address, TIMEOUT) as client:
        yield lambda digit: client.recognize(IMAGES[digit]).digit


@contextmanager
def load(connect: Callable[[], AbstractContextManager[Read]], clients: int) -> Iterator[Tally]:
    """Runs clients until the end of the block. Each sends its next call once the previous one is answered."""
    tally, stopped = Tally(), threading.Event()

    def call() -> None:
        with connect() as read:
            for digit in itertools.cycle(range(len(IMAGES))):
                if stopped.is_set():
                    return
                try:
                    tally.add("OK" if read(digit) == digit else "WRONG")
                except grpc.RpcError as error:
                    tally.add(error.code().name, str(error.details()))

    threads = [threading.Thread(target=call) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield tally
    finally:
        stopped.set()
        for thread in threads:
            thread.join(2 * TIMEOUT)
