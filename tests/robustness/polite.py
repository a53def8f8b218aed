"""The polite caller, a process of its own: `python -m tests.robustness.polite PORT HTTP_PORT`.

The process sends single images, and now and then a crop, a compressed image, a stream, a call on a new connection, and a
probe of both health pages. Every call has a deadline of two seconds. A line on stdin asks for what has happened since the
last line.
"""

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from tests.support.service import ROOT

DEADLINE = 2.0
"""Seconds for each call and each probe."""

_PAUSE = 0.02
_IMAGE = bytes(300) + b"\xff" * 100 + bytes(384)


@dataclass
class Politeness:
    """What the polite caller has seen.

    Attributes:
        codes: how often each kind of call ended with each code, such as "image OK".
        p99_milliseconds: of single images that were answered; 0 without any.
        details: of the first errors.
    """

    codes: Counter[str] = field(default_factory=Counter)
    p99_milliseconds: float = 0.0
    details: list[str] = field(default_factory=list)


class PoliteCaller:
    """Runs the process of the polite caller, from its first answered call until `close`."""

    def __init__(self, port: int, http_port: int):
        """Starts the process, and waits for its first calls. Raises RuntimeError if the process ends."""
        command = [sys.executable, "-m", "tests.robustness.polite", str(port), str(http_port)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seen()

    def seen(self) -> Politeness:
        """Returns what happened since the last call of this method, at least one call of each kind."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("report\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the polite caller has ended")
        content = json.loads(line)
        return Politeness(Counter(content["codes"]), content["p99_milliseconds"], content["details"])

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


class _Tally:
    """Counts of one report; the threads of the callers write to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._codes: Counter[str] = Counter()
        self._seconds: list[float] = []
        self._details: list[str] = []

    def count(self, kind: str, call: Callable[[], str]) -> None:
        """Makes a call, and counts its code."""
        began = time.perf_counter()
        try:
            code, detail = call(), ""
        except grpc.RpcError as error:
            code, detail = error.code().name, f"{kind}: {error.code().name}: {error.details()}"[:200]
        with self._lock:
            self._codes[f"{kind} {code}"] += 1
            if detail and len(self._details) < 5:
                self._details.append(detail)
            if kind == "image" and code == "OK":
                self._seconds.append(time.perf_counter() - began)

    def take(self) -> dict[str, object]:
        """Returns the counts, and starts anew."""
        with self._lock:
            codes, seconds, details = self._codes, sorted(self._seconds), self._details
            self._codes, self._seconds, self._details = Counter(), [], []
        p99 = seconds[min(len(seconds) - 1, len(seconds) * 99 // 100)] if seconds else 0.0
        return {"codes": codes, "p99_milliseconds": round(p99 * 1000, 1), "details": details}


class _Caller:
    """Sends the calls of each kind on one channel, and makes new channels."""

    def __init__(self, port: int, http_port: int):
        self._address, self._http = f"127.0.0.1:{port}", f"http://127.0.0.1:{http_port}"
        self._crop = (ROOT / "serving" / "samples" / "7.png").read_bytes()
        self._stub = DigitServiceStub(self._channel())

    def _channel(self) -> grpc.Channel:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
        return grpc.insecure_channel(self._address, [*options, ("grpc.initial_reconnect_backoff_ms", 50)])

    def image(self) -> str:
        """Sends one image on the old connection."""
        self._stub.Recognize(pb.RecognizeRequest(image=_IMAGE), timeout=DEADLINE)
        return "OK"

    def crop(self) -> str:
        """Sends one crop on the old connection."""
        self._stub.Recognize(pb.RecognizeRequest(crop=self._crop), timeout=DEADLINE)
        return "OK"

    def compressed(self) -> str:
        """Sends one image with gzip on the old connection."""
        request = pb.RecognizeRequest(image=_IMAGE)
        self._stub.Recognize(request, timeout=DEADLINE, compression=grpc.Compression.Gzip)
        return "OK"

    def new_connection(self) -> str:
        """Sends one image as a client that has just come."""
        with self._channel() as channel:
            DigitServiceStub(channel).Recognize(pb.RecognizeRequest(image=_IMAGE), timeout=DEADLINE)
        return "OK"

    def stream(self) -> str:
        """Sends one image on a stream of its own."""
        request = pb.RecognizeStreamRequest(id=1, request=pb.RecognizeRequest(image=_IMAGE))
        answers = list(self._stub.RecognizeStream(iter([request]), timeout=DEADLINE))
        errors = [f"error {answer.error.code} in the stream" for answer in answers if answer.HasField("error")]
        return errors[0] if errors else "OK"

    def probe(self, page: str) -> str:
        """Asks a page of the metrics port. Returns the name of the error if there is no answer."""
        try:
            with urllib.request.urlopen(f"{self._http}/{page}", timeout=DEADLINE) as answer:
                return "OK" if answer.status == 200 else str(answer.status)
        except urllib.error.HTTPError as error:
            return str(error.code)
        except OSError as error:
            return type(error).__name__


def _repeat(stopped: threading.Event, pause: float, calls: Callable[[], None]) -> None:
    while not stopped.is_set():
        calls()
        stopped.wait(pause)


def main() -> None:
    """Calls until stdin ends."""
    caller, tally, stopped = _Caller(int(sys.argv[1]), int(sys.argv[2])), _Tally(), threading.Event()

    def rare() -> None:
        for kind in ("crop", "compressed", "stream", "new_connection"):
            tally.count(kind.replace("_", " "), getattr(caller, kind))
        for page in ("healthz", "readyz"):
            tally.count(page, lambda page=page: caller.probe(page))  # type: ignore[misc]

    threads = [
        threading.Thread(target=_repeat, args=(stopped, _PAUSE, lambda: tally.count("image", caller.image))),
        threading.Thread(target=_repeat, args=(stopped, 10 * _PAUSE, rare)),
    ]
    for thread in threads:
        thread.start()
    for _ in sys.stdin:
        rare()
        tally.count("image", caller.image)
        print(json.dumps(tally.take()), flush=True)
    stopped.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
