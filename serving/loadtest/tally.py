"""What became of calls: counted by status code, and timed in a histogram that knows every percentile."""

from collections import Counter
from dataclasses import dataclass, field

from hdrh.histogram import HdrHistogram

Packed = tuple[dict[str, int], int, int, int, bytes, bytes]

_LEAST_MICROSECONDS, _MOST_MICROSECONDS, _DIGITS = 1, 3_600_000_000, 3


def _histogram() -> HdrHistogram:
    return HdrHistogram(_LEAST_MICROSECONDS, _MOST_MICROSECONDS, _DIGITS)


@dataclass
class Tally:
    """Calls of some stretch of time.

    Attributes:
        codes: calls ended, by gRPC status code; UNSENT for those of an open loop that had too many on their way.
        wrong: calls with OK whose answer was not what the images show.
        ended: calls that did while the measurement lasted, whenever they were due.
        answered: those of them with a right answer: its throughput.
        microseconds: of the calls with OK, from when they were due to their answer.
        late_microseconds: of the calls sent, from when they were due until then: part of that, and the sender's own.
    """

    codes: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    ended: int = 0
    answered: int = 0
    microseconds: HdrHistogram = field(default_factory=_histogram)
    late_microseconds: HdrHistogram = field(default_factory=_histogram)

    def sent(self, seconds_late: float) -> None:
        """A call that was sent so long after it was due."""
        self.late_microseconds.record_value(max(1, round(seconds_late * 1e6)))

    def count(self, code: str, seconds: float, *, right: bool) -> None:
        """A call that ended with `code`, `seconds` after it was due."""
        self.codes[code] += 1
        if code == "OK":
            self.wrong += not right
            self.microseconds.record_value(max(1, round(seconds * 1e6)))

    def add(self, other: "Tally") -> None:
        """Takes in what another process has counted."""
        self.codes.update(other.codes)
        self.wrong += other.wrong
        self.ended += other.ended
        self.answered += other.answered
        self.microseconds.add(other.microseconds)
        self.late_microseconds.add(other.late_microseconds)

    @property
    def calls(self) -> int:
        """All of them."""
        return self.codes.total()

    @property
    def errors(self) -> float:
        """The share of the calls that got no answer, or a wrong one."""
        return 1 - (self.codes["OK"] - self.wrong) / self.calls if self.calls else 0.0

    def milliseconds(self, percentile: float) -> float:
        """The time within which so many of a hundred answers came."""
        return float(self.microseconds.get_value_at_percentile(percentile)) / 1000

    def late_milliseconds(self, percentile: float) -> float:
        """The time within which so many of a hundred calls were sent, after they were due."""
        return float(self.late_microseconds.get_value_at_percentile(percentile)) / 1000

    def packed(self) -> Packed:
        """For another process to unpack."""
        times = self.microseconds.encode(), self.late_microseconds.encode()
        return dict(self.codes), self.wrong, self.ended, self.answered, *times

    @classmethod
    def unpacked(cls, packed: Packed) -> "Tally":
        """What another process has packed."""
        codes, wrong, ended, answered, *times = packed
        return cls(Counter(codes), wrong, ended, answered, *map(HdrHistogram.decode, times))
