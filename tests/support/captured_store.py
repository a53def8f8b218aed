"""Databases of captured images, as `digits serve --capture` leaves them."""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.feedback import capture_store

IMAGE = """
INSERT INTO captured_images
    (captured_at, model, version, digit, confidence, decision, audited, answer, place, field_length, image)
    VALUES (1.5, 'digits', '20261121221913', 3, 0.5, 'low_confidence', FALSE, ?, ?, ?, ?)
"""
TRUTH = "INSERT INTO captured_truths (reported_at, answer, place, source, value) VALUES (2.5, ?, ?, ?, ?)"


class Store:
    """A database file that a test writes rows to.

    Attributes:
        file: the database.
        url: the same for `--captured`.
    """

    def __init__(self, file: Path):
        self.file = file
        self.url = f"sqlite:///{file}"
        service = capture_store.Store(self.url, days=30, max_images=100_000)
        service.add([], [])
        service.close()

    def capture(self, answer: str, *images: NDArray[np.uint8] | bytes, place: int = 0, field_length: int = 0) -> None:
        """The images of an answer, in the places that follow `place`."""
        rows = [(answer, place + index, field_length, bytes(image)) for index, image in enumerate(images)]
        self.write(IMAGE, rows)

    def report(self, answer: str, *values: str, place: int = 0, source: str = "keying") -> None:
        """The truths about the digits in the places that follow `place`, or that about a field."""
        self.write(TRUTH, [(answer, place + index, source, value) for index, value in enumerate(values)])

    def write(self, statement: str, rows: Iterable[tuple[Any, ...]] = ((),)) -> None:
        """Carries out a statement, once a row."""
        with closing(sqlite3.connect(self.file)) as database, database:
            database.execute("PRAGMA synchronous = OFF")  # nobody pulls a plug here, and the disk is what takes time
            database.executemany(statement, rows)


def answers(count: int, seed: int = 0) -> list[str]:
    """Ids as they are drawn for answers."""
    random = np.random.default_rng(seed)
    return [random.bytes(8).hex() for _ in range(count)]
