"""Databases of captured images, in the form that `digits serve --capture` writes."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.feedback import capture_store
from serving.feedback.capture_records import CapturedImage

IMAGE = """
INSERT INTO captured_images
    (captured_at, model, version, digit, confidence, decision, audited, answer, place, field_length, image)
    VALUES (1.5, 'digits', '20261121221913', 3, 0.5, ?, ?, ?, ?, ?, ?)
"""
TRUTH = "INSERT INTO captured_truths (reported_at, answer, place, source, value) VALUES (2.5, ?, ?, ?, ?)"

TRAINED_ON = "0000000000000001"  # an answer whose images are trained on
HELD_OUT = "0000000000000005"  # an answer whose images are held out


class Store:
    """A database file that a test writes rows to.

    Attributes:
        file: path of the database.
        url: URL of the database, for `--captured`.
    """

    def __init__(self, file: Path):
        self.file = file
        self.url = f"sqlite:///{file}"
        service = capture_store.Store(self.url, days=30, max_images=100_000)
        service.add([], [])
        service.close()

    def capture(
        self,
        answer: str,
        *images: NDArray[np.uint8] | bytes,
        place: int = 0,
        field_length: int = 0,
        audited: bool = False,
        rejected: str = "low_confidence",
    ) -> None:
        """Writes the images of an answer, from index `place` on: accepted and audited, or rejected with this decision."""
        decision = "accept" if audited else rejected
        rows = [(decision, audited, answer, place + index, field_length, bytes(image)) for index, image in enumerate(images)]
        self.write(IMAGE, rows)

    def report(self, answer: str, *values: str, place: int = 0, source: str = "keying") -> None:
        """Writes the truths about the images from index `place` on, or the one truth about a field."""
        self.write(TRUTH, [(answer, place + index, source, value) for index, value in enumerate(values)])

    def write(self, statement: str, rows: Iterable[tuple[Any, ...]] = ((),)) -> None:
        """Executes a statement once per row."""
        with closing(sqlite3.connect(self.file)) as database, database:
            database.execute("PRAGMA synchronous = OFF")  # a test need not survive a power failure
            database.executemany(statement, rows)


def grey(level: int) -> NDArray[np.uint8]:
    """Returns an image of one level, (28, 28) uint8."""
    return np.full((28, 28), level, np.uint8)


def answers(count: int, seed: int = 0) -> list[str]:
    """Draws nonces of answers, 16 hexadecimal digits each."""
    random = np.random.default_rng(seed)
    return [random.bytes(8).hex() for _ in range(count)]


def captured_image(answer: str = "0" * 16, **other: object) -> CapturedImage:
    """Returns the row of a rejected 7, with `other` columns as given."""
    about = {"place": 0, "field_length": 0, "model": "digits", "version": "1", "digit": 7, "confidence": 0.5}
    rest = {"decision": "low_confidence", "audited": False, "image": b"\x07" * 784}
    return CapturedImage(answer, **(about | rest | other))  # type: ignore[arg-type]


def rows(file: Path, query: str) -> list[tuple[object, ...]]:
    """Returns all rows of a query."""
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(query).fetchall()


def count_in_another_process(file: Path) -> int:
    """Counts the captured images in another process, which then disconnects."""
    query = "SELECT count(*) FROM captured_images"
    code = f"import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute({query!r}).fetchone())"
    command = [sys.executable, "-c", code, str(file)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout)
