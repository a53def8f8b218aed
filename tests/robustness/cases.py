"""All cases of the suite."""

from tests.robustness import captures, crops, floods, hoards, loads, messages, model_files, mutations, operations
from tests.robustness.case import Case

CASES: tuple[Case, ...] = (
    *floods.CASES,
    *hoards.CASES,
    *messages.CASES,
    *crops.CASES,
    *loads.CASES,
    *mutations.CASES,
    *model_files.CASES,
    *operations.CASES,
    *captures.CASES,
)
