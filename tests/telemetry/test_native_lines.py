import logging
import os
import subprocess
import sys

import pytest

from serving.telemetry.native_lines import native_lines_to_log

# Fills stderr, a pipe that nobody reads, as a library in C would.
FLOOD = """
import os
from serving.telemetry import logs
from serving.telemetry.native_lines import native_lines_to_log
logs.configure("text", "info")
with native_lines_to_log():
    for _ in range(5000):
        try:
            os.write(2, b"Corrupt JPEG data: 100 extraneous bytes\\n" * 10)
        except BlockingIOError:
            pass
print("not held up", flush=True)
os._exit(0)
"""


def test_lines_of_libraries_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    before = os.fstat(2)
    with native_lines_to_log():
        os.write(2, b"Corrupt JPEG data\nPremature ")
        os.write(2, b"end\n")
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "Corrupt JPEG data"),
        (logging.WARNING, "Premature end"),
    ]
    assert (os.fstat(2).st_dev, os.fstat(2).st_ino) == (before.st_dev, before.st_ino)


def test_many_lines_of_libraries_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    with native_lines_to_log():
        for number in range(500):
            os.write(2, b"%d\n" % number)
    assert 10 <= len(caplog.records) < 500


def test_a_library_is_not_held_up_where_nobody_reads_the_log() -> None:
    with subprocess.Popen([sys.executable, "-c", FLOOD], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"not held up\n"
