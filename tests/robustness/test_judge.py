"""The judge of `make harm` finds every kind of fault. These tests attack nothing, and run with all others."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from tests.robustness.case import Case
from tests.robustness.judge import MARK, Report, faults
from tests.robustness.polite import Politeness
from tests.robustness.target import Target


async def nothing(target: Target) -> Counter[str]:
    return Counter()


CASE = Case("nothing", nothing, frozenset({"INVALID_ARGUMENT"}))
POLITE = Politeness(Counter({"image OK": 9, "healthz OK": 1}))
SOUND = Report(CASE, "http2", Counter({"INVALID_ARGUMENT": 1}), POLITE, before=130.0, peak=390.0, after=140.0)


def test_a_report_within_all_limits_has_no_fault() -> None:
    assert faults(SOUND) == []


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"outcomes": Counter({"OK": 1})}, "the attack ended with {'OK': 1}"),
        ({"outcomes": Counter()}, "the attack came to nothing"),
        ({"polite": Politeness(Counter({"image OK": 9, "crop DEADLINE_EXCEEDED": 1}))}, "saw crop DEADLINE_EXCEEDED, 1"),
        ({"polite": Politeness(Counter({"image OK": 9, "healthz 503": 1}))}, "saw healthz 503"),
        ({"polite": Politeness()}, "the polite caller made no call"),
        ({"peak": 401.0}, "the limit is 400"),
        ({"after": 231.0}, "231 MB are held after the attack"),
        ({"processes_lost": 1}, "1 processes ended"),
        ({"error": "TimeoutError"}, "the attack ended early: TimeoutError"),
        ({"log": "ERROR\nTraceback (most recent call last):"}, "1 tracebacks in the log"),
        ({"log": "2026 INFO a\x1b[31m"}, "an unescaped control character"),
        ({"log": "2026 INFO a\u2028b"}, "an unescaped control character"),
        ({"log": f"2026 INFO a\n{MARK}"}, "a caller has written a line of the log"),
    ],
)
def test_what_breaks_a_limit_is_a_fault(changed: dict[str, Any], reason: str) -> None:
    found = faults(replace(SOUND, **changed))
    assert len(found) == 1
    assert reason in found[0]


def test_a_text_of_a_caller_within_a_line_is_no_fault() -> None:
    log = f"2026-11-30 18:37:12,345 DEBUG call Recognize INVALID_ARGUMENT: no model 'a\\n{MARK}'"
    assert faults(replace(SOUND, log=log)) == []
