"""Counts calls by status code, and records their latencies in a histogram that gives any percentile."""

from collections import Counter
from dataclasses import dataclass, field

from hdrh.histogram import HdrHistogram

Packed = tuple[dict[str, int], int, int, int, int, int, bytes, bytes]

_MAX_LATE_SHARE = 0.5  # of the windows; with more, the calls that are left measure the sender's best moments

_MIN_MICROSECONDS, _MAX_MICROSECONDS, _SIGNIFICANT_DIGITS = 1, 3_600_000_000, 3


def _histogram() -> HdrHistogram:
    return HdrHistogram(_MIN_MICROSECONDS, _MAX_MICROSECONDS, _SIGNIFICANT_DIGITS)


@dataclass
class Tally:
    """The results of the calls in an interval of time.

    Attributes:
        codes: number of calls by gRPC status code. UNSENT counts calls of an open loop that had too many calls in flight.
        wrong: calls that ended with OK and a wrong answer.
        ended: calls that ended during the measurement, regardless of when they were due.
        answered: the part of `ended` with a right answer: the throughput.
        windows: number of windows of time, see `lateness`; each process has its own.
        late_windows: the part of `windows` in which the sender was late.
        discarded: calls of late windows, which only `ended` and `answered` count; 0 if `sender_late`.
        microseconds: latency of the calls with OK, from when they were due to their answer.
        late_microseconds: delay of the sender, from when a call was due until it was sent; a part of the latency.
    """

    codes: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    ended: int = 0
    answered: int = 0
    windows: int = 0
    late_windows: int = 0
    discarded: int = 0
    microseconds: HdrHistogram = field(default_factory=_histogram)
    late_microseconds: HdrHistogram = field(default_factory=_histogram)

    def sent(self, seconds_late: float) -> None:
        """Records a call that was sent `seconds_late` after it was due."""
        self.late_microseconds.record_value(max(1, round(seconds_late * 1e6)))

    def count(self, code: str, seconds: float, *, right: bool) -> None:
        """Records a call that ended with `code`, `seconds` after it was due."""
        self.codes[code] += 1
        if code == "OK":
            self.wrong += not right
            self.microseconds.record_value(max(1, round(seconds * 1e6)))

    def add(self, other: "Tally") -> None:
        """Adds the results of another process."""
        self.codes.update(other.codes)
        self.wrong += other.wrong
        self.ended += other.ended
        self.answered += other.answered
        self.windows += other.windows
        self.late_windows += other.late_windows
        self.microseconds.add(other.microseconds)
        self.late_microseconds.add(other.late_microseconds)

    def discard(self, late: "Tally") -> None:
        """Leaves out the calls of late windows, or adds them if the sender was late so often that too few would be left."""
        if self.sender_late or not self.calls:
            self.add(late)
        else:
            self.discarded = late.calls

    @property
    def sender_late(self) -> bool:
        """True if the sender was late too often. All calls count then, with the sender's part of their latencies."""
        return self.late_windows > _MAX_LATE_SHARE * self.windows

    @property
    def calls(self) -> int:
        """Number of the calls that count."""
        return self.codes.total()

    @property
    def due(self) -> int:
        """Number of all calls, the discarded ones included."""
        return self.calls + self.discarded

    @property
    def errors(self) -> float:
        """Share of the calls with no answer or a wrong answer."""
        return 1 - (self.codes["OK"] - self.wrong) / self.calls if self.calls else 0.0

    def milliseconds(self, percentile: float) -> float:
        """Returns a percentile of the latency; `percentile` is from 0 to 100."""
        return float(self.microseconds.get_value_at_percentile(percentile)) / 1000

    def slower_than(self, milliseconds: float) -> int:
        """Returns the number of answers with a longer latency, at the resolution of the histogram: three digits."""
        recorded = self.microseconds.get_recorded_iterator()
        return sum(one.count_added_in_this_iter_step for one in recorded if one.value_iterated_to / 1000 > milliseconds)

    def late_milliseconds(self, percentile: float) -> float:
        """Returns a percentile of the sender's delay; `percentile` is from 0 to 100."""
        return float(self.late_microseconds.get_value_at_percentile(percentile)) / 1000

    def packed(self) -> Packed:
        """Encodes the tally for another process."""
        times = self.microseconds.encode(), self.late_microseconds.encode()
        return dict(self.codes), self.wrong, self.ended, self.answered, self.windows, self.late_windows, *times

    @classmethod
    def unpacked(cls, packed: Packed) -> "Tally":
        """Decodes the tally of another process."""
        codes, wrong, ended, answered, windows, late_windows, *times = packed
        histograms = map(HdrHistogram.decode, times)
        return cls(Counter(codes), wrong, ended, answered, windows, late_windows, 0, *histograms)
