"""Every case of the suite on every front that promises to bear it: `make harm`."""

import pytest

from tests.robustness.case import Case
from tests.robustness.cases import CASES
from tests.robustness.judge import faults
from tests.robustness.stage import Stage

pytestmark = pytest.mark.harm


def _in_order() -> list[tuple[str, Case]]:
    """Returns fronts and cases, so that cases with the same front and flags follow each other."""
    pairs = [(front, case) for case in CASES for front in case.fronts]
    return sorted(pairs, key=lambda pair: (pair[0] != "http2", pair[1].flags, not pair[1].log_read))


@pytest.mark.parametrize(("front", "case"), _in_order(), ids=str)
async def test_an_attack_harms_no_polite_caller_and_no_service(one_stage: Stage, front: str, case: Case) -> None:
    report = await one_stage.run(case, front)
    if found := faults(report):
        pytest.fail("\n".join([str(report), *found]), pytrace=False)
