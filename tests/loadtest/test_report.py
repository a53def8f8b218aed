import pytest

from serving.loadtest.objectives import ObjectiveError, broken, parse
from serving.loadtest.report import sender_too_slow
from serving.loadtest.tally import Tally


@pytest.mark.parametrize(
    ("codes", "late", "warning"),
    [
        ({"OK": 100}, 0.001, ""),
        ({"OK": 100}, 0.05, "the sender is too slow: 1 % of the calls were sent 50.0 ms late or later"),
        ({"RESOURCE_EXHAUSTED": 100}, 0.05, ""),
        ({}, 0.0, ""),
        ({"OK": 99}, 0.05, ""),  # too few calls for a p99
        ({"OK": 99, "UNSENT": 1}, 0.001, "1 of 100 calls were never sent"),
    ],
)
def test_only_a_slow_sender_is_reported(codes: dict[str, int], late: float, warning: str) -> None:
    tally = Tally()
    for code, count in codes.items():
        for _ in range(count):
            tally.sent(late)
            tally.count(code, 0.1, right=True)
    assert sender_too_slow(tally).startswith(warning)
    assert bool(sender_too_slow(tally)) is bool(warning)


@pytest.mark.parametrize(
    ("text", "missed"),
    [
        ("p99=20ms", ["p99=20ms, is 30.015ms"]),
        ("p50=20ms,errors=20%", []),
        ("p99.9=0.02s, errors=0.1", ["p99.9=20ms, is 30.015ms", "errors=10%, is 20%"]),
        ("p50=11000us", []),
    ],
)
def test_objectives_are_parsed_and_judged(text: str, missed: list[str]) -> None:
    tally = Tally()
    for milliseconds in (10, 10, 10, 30):
        tally.count("OK", milliseconds / 1000, right=True)
    tally.count("UNAVAILABLE", 0.0, right=False)
    assert broken(parse(text), tally) == missed


def test_a_service_without_answers_misses_its_objectives() -> None:
    tally = Tally()
    tally.count("UNAVAILABLE", 0.0, right=False)
    assert broken(parse("p99=20ms"), tally) == ["p99=20ms, and no call was answered"]


@pytest.mark.parametrize(
    "text",
    ["", "p99", "p99=20", "p0=1ms", "p00.0=1ms", "p100=1ms", "errors=101%", "errors=-1", "p99=20ms;errors=1%", "p99=nan"],
)
def test_an_invalid_objective_is_refused(text: str) -> None:
    with pytest.raises(ObjectiveError, match=r"expected for example p99=20ms or errors=0\.1%"):
        parse(text)
