"""Runs a server for one call."""

import re
import signal
import subprocess

from serving.client import DigitClient
from serving.samples.draw import draw
from tests.support.calls import TIMEOUT


def serve_a_seven(process: "subprocess.Popen[str]") -> str:
    """Returns the log of a server that recognizes a 7 and is then stopped."""
    try:
        assert process.stderr is not None
        log: list[str] = []
        while not log or not (found := re.search(r"(\S+) for gRPC", log[-1])):
            log.append(process.stderr.readline())
            assert log[-1], "".join(log)
        with DigitClient(found[1], TIMEOUT) as client:
            assert client.recognize(draw(7)).digit == 7
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    assert process.returncode == 0
    return "".join(log) + rest
