from pathlib import Path

from serving.imaging.crop import frame_crop
from serving.inference.model import open_model
from tests.benchmarks.framing import recognize_kind, row
from tests.imaging.digit_crops import DIGIT_KINDS
from tests.imaging.source_digits import load_digits
from tests.support import model_files


def test_the_table_counts_a_crop_as_the_service_decides_on_it(tmp_path: Path) -> None:
    plain, source = DIGIT_KINDS["plain"], load_digits(20, 7)
    reads = open_model(model_files.publish_whole(tmp_path, 1, threshold="0.5").read_bytes(), "1")
    outcomes = recognize_kind(plain, 20, source, reads, frame_crop, truths=True)
    assert [one.truth for one in outcomes] == [number % 10 for number in range(20)]
    assert sum(one.digit == one.truth for one in outcomes) >= 18
    refuses = open_model(model_files.publish_whole(tmp_path, 2, threshold="0.95").read_bytes(), "2")
    refused = recognize_kind(plain, 20, source, refuses, frame_crop, truths=True)
    assert row("plain", refused) == "| plain | 20 | 0.0 % | 100.0 % | 0.0 % | 0.0 % |"
