from pathlib import Path

import numpy as np
import pytest

from tests.support.drawings import draw_many
from tests.support.model_files import SPECK, publish_contract_1, publish_whole
from training.exported import Exported, VerificationError


def test_a_second_head_decides_by_the_threshold_in_the_file(tmp_path: Path) -> None:
    images = np.stack([SPECK, *draw_many(3, seed=1)[0]])
    exported = Exported(publish_whole(tmp_path, 1, threshold="0.8"))
    probabilities, confidence, whole = exported.decisions(images)
    assert whole.tolist() == [False, True, True, True]
    assert confidence.tolist() == [0, *probabilities[1:].max(axis=1).tolist()]
    del exported.metadata["whole_threshold"]
    with pytest.raises(VerificationError, match="its metadata lack whole_threshold"):
        exported.decisions(images)


def test_a_file_without_a_second_head_refuses_nothing(tmp_path: Path) -> None:
    decisions = Exported(publish_contract_1(tmp_path, 1)).decisions(SPECK[np.newaxis])
    assert decisions.whole.all()
    assert decisions.confidence.tolist() == decisions.probabilities.max(axis=1).tolist()
