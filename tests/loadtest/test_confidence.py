from math import comb

import pytest

from serving.loadtest.confidence import calls_needed, confidence
from serving.loadtest.objectives import parse
from serving.loadtest.report import confidences
from serving.loadtest.tally import Tally


def exactly(calls: int, late: int, one_of: int) -> float:
    """Returns the confidence in a percentile that one of `one_of` calls may exceed. Whole numbers round once, at the end."""
    ways = sum(comb(calls, count) * (one_of - 1) ** (calls - count) for count in range(late + 1))
    return float(1 - ways / one_of**calls)


@pytest.mark.parametrize(("late", "calls"), [(0, 459), (1, 662), (2, 838), (10, 2_010), (100, 12_571)])
def test_a_p99_is_shown_by_so_many_calls_and_not_by_one_fewer(late: int, calls: int) -> None:
    assert calls_needed(late, 99.0) == calls
    assert exactly(calls - 1, late, 100) < 0.99 <= exactly(calls, late, 100)


@pytest.mark.parametrize(
    ("calls", "late", "percentile", "one_of"),
    [
        (458, 0, 99.0, 100),
        (3_000, 25, 99.0, 100),
        (3_000, 60, 99.0, 100),
        (500, 250, 50.0, 2),
        (20, 0, 99.9, 1000),
    ],
)
def test_the_confidence_equals_the_exact_sum(calls: int, late: int, percentile: float, one_of: int) -> None:
    assert confidence(calls, late, percentile) == pytest.approx(exactly(calls, late, one_of), abs=1e-9)


def test_samples_of_millions_of_calls_have_a_confidence() -> None:
    assert confidence(10_000_000, 100_000, 99.0) == pytest.approx(0.5, abs=0.01)
    assert confidence(10_000_000, 98_000, 99.0) > 0.999
    assert confidence(10_000_000, 10_000_000, 99.0) == 0.0
    assert confidence(0, 0, 99.0) == 0.0
    assert 9_800_000 < calls_needed(98_000, 99.0) < 10_000_000


def measured(calls: int, late: int) -> Tally:
    tally = Tally()
    for number in range(calls):
        tally.count("OK", 0.03 if number < late else 0.01, right=True)
    return tally


@pytest.mark.parametrize(
    ("calls", "late", "said"),
    [
        (458, 0, "p99=20ms: 98.99 % confidence (0 of 458 calls later); 99 % needs 1 more call, not later"),
        (459, 0, "p99=20ms: 99.00 % confidence (0 of 459 calls later)"),
        (12_000, 100, "p99=20ms: 96.60 % confidence (100 of 12,000 calls later); 99 % needs 571 more calls, not later"),
        (12_571, 100, "p99=20ms: 99.00 % confidence (100 of 12,571 calls later)"),
    ],
)
def test_the_report_states_the_confidence_or_the_calls_that_it_needs(calls: int, late: int, said: str) -> None:
    assert confidences(parse("p99=20ms,errors=1%"), measured(calls, late))[0]["text"].startswith(said)


def test_a_missed_percentile_and_errors_have_no_confidence() -> None:
    assert confidences(parse("p99=20ms,errors=1%"), measured(1_000, 11)) == []
    assert confidences(parse("p99=20ms"), Tally()) == []
