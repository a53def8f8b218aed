"""Mutations of a conversation: of its frames, then of its bytes, then of the places where it is cut."""

from collections.abc import Callable, Iterator
from random import Random

from tests.fuzz.http2.conversations import Frame
from tests.support.http2_client import PREFACE

_UNCHANGED = 0.15  # share of conversations that stay valid
_MOST_PIECES = 60

Change = Callable[[Random, list[Frame]], None]


def mutate(random: Random, frames: list[Frame], others: list[Frame]) -> bytes:
    """Returns a client's bytes, made of `frames` and of parts of `others`."""
    frames = list(frames)
    if random.random() < _UNCHANGED:
        return PREFACE + b"".join(one.encode() for one in frames)
    for _ in range(random.choice((0, 1, 1, 2, 4, 10))):
        if frames:
            random.choice(_FRAME_CHANGES)(random, frames)
    if random.random() < 0.2:
        _interleave(random, frames, others)
    encoded = bytearray(PREFACE + b"".join(one.encode() for one in frames))
    first = 0 if random.random() < 0.02 else len(PREFACE)
    if len(encoded) > first:
        _change_bytes(random, encoded, first)
    return bytes(encoded)


def pieces(random: Random, data: bytes, size: int) -> Iterator[bytes]:
    """Cuts bytes as a network may, into pieces of at most `size` bytes."""
    longest = max(random.choice((1, 9, 60, 1000, size, size, size, size)), len(data) // _MOST_PIECES)
    start = 0
    while start < len(data):
        end = start + random.randint(1, min(longest, size))
        yield data[start:end]
        start = end


def _change_bytes(random: Random, encoded: bytearray, first: int) -> None:
    for _ in range(random.choice((0, 0, 1, 2, 5, 30))):
        encoded[random.randrange(first, len(encoded))] = random.randrange(256)
    kind = random.random()
    if kind < 0.1:
        del encoded[random.randrange(first, len(encoded)) :]
    elif kind < 0.2:
        at = random.randrange(first, len(encoded))
        del encoded[at : at + random.randint(1, 20)]
    elif kind < 0.3:
        at = random.randrange(first, len(encoded))
        encoded[at:at] = random.randbytes(random.randint(1, 20))


def _interleave(random: Random, frames: list[Frame], others: list[Frame]) -> None:
    """Puts the frames of another conversation between these, mostly on streams of their own."""
    shift = random.choice((0, 2, 100))
    at = 0
    for other in others:
        at = random.randint(at, len(frames))
        frames.insert(at, other._replace(stream=other.stream + shift if other.stream else 0))
        at += 1


def _duplicate(random: Random, frames: list[Frame]) -> None:
    at = random.randrange(len(frames))
    copies = random.choice((1, 1, 1, 50))
    frames[at:at] = [frames[at]] * copies


def _drop(random: Random, frames: list[Frame]) -> None:
    del frames[random.randrange(len(frames))]


def _swap(random: Random, frames: list[Frame]) -> None:
    one, other = random.randrange(len(frames)), random.randrange(len(frames))
    frames[one], frames[other] = frames[other], frames[one]


def _truncate(random: Random, frames: list[Frame]) -> None:
    at = random.randrange(len(frames))
    payload = frames[at].payload
    frames[at] = frames[at]._replace(payload=payload[: random.randint(0, len(payload))])


def _lengthen(random: Random, frames: list[Frame]) -> None:
    at = random.randrange(len(frames))
    more = random.randbytes(random.choice((1, 5, 300, 17_000)))
    frames[at] = frames[at]._replace(payload=frames[at].payload + more)


def _retype(random: Random, frames: list[Frame]) -> None:
    at = random.randrange(len(frames))
    frames[at] = frames[at]._replace(kind=random.randrange(12))


def _reflag(random: Random, frames: list[Frame]) -> None:
    at = random.randrange(len(frames))
    frames[at] = frames[at]._replace(flags=frames[at].flags ^ (1 << random.randrange(8)))


def _move(random: Random, frames: list[Frame]) -> None:
    """Puts a frame on another stream."""
    at = random.randrange(len(frames))
    frames[at] = frames[at]._replace(stream=random.choice((0, 1, 2, 3, 5, 99, random.randrange(1 << 32))))


def _stop(random: Random, frames: list[Frame]) -> None:
    del frames[random.randrange(len(frames)) :]


_FRAME_CHANGES: list[Change] = [_duplicate, _drop, _swap, _truncate, _lengthen, _retype, _reflag, _move, _stop]
