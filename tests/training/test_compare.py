import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests.support import model_files
from tests.support.captured_store import Store, answers
from training.__main__ import main
from training.compare import compare, paired_interval, table
from training.dataset import Dataset
from training.exported import Decisions

OLD = model_files.bundled().parent


def test_the_interval_equals_the_published_example() -> None:
    """Expects the result of ci.prop.ps(.05, 12, 4, 26, 6) in statpsych, Bonett's package for R."""
    assert paired_interval(26, 4, 12 + 4 + 26 + 6) == pytest.approx((0.2548067, 0.6251933), abs=1e-7)
    assert paired_interval(4, 26, 48) == pytest.approx((-0.6251933, -0.2548067), abs=1e-7)
    low, high = paired_interval(1, 0, 1)
    assert -1 <= low < 0 < high == 1


@pytest.mark.parametrize(("first", "second"), [(0.004, 0.004), (0.01, 0.004), (0.1, 0.3)])
def test_the_interval_covers_the_difference_in_95_of_100_draws(first: float, second: float) -> None:
    random = np.random.default_rng(1)
    draws = random.multinomial(2000, [first, second, 1 - first - second], size=4000).tolist()
    intervals = [paired_interval(one, other, 2000) for one, other, _ in draws]
    assert 0.94 < np.mean([low <= first - second <= high for low, high in intervals]) < 0.97


def answered(*digits: int, confidence: float = 0.91) -> Decisions:
    """Decisions for these digits with equal confidence, none refused."""
    probabilities = np.full((len(digits), 10), (1 - confidence) / 9, np.float32)
    probabilities[np.arange(len(digits)), digits] = confidence
    return Decisions(probabilities, probabilities.max(axis=1), np.ones(len(digits), bool))


def test_versions_are_compared_on_equal_images_by_their_own_thresholds() -> None:
    labels = np.array([0, 1, 2, 3, 4])
    old = answered(0, 1, 9, 9, 9)
    parts = answered(0, 9, 2, confidence=0.95), answered(3, 9, confidence=0.82)
    new = Decisions(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    thresholds = {"0.01": 0.9, "0.002": 0.99}, {"0.01": 0.9, "0.005": 0.5}
    comparison = compare((old, new), thresholds, labels)
    assert (comparison.old.accuracy, comparison.new.accuracy) == (0.4, 0.6)
    assert (comparison.old.alone, comparison.new.alone) == (1, 2)
    assert comparison.interval == paired_interval(2, 1, 5)
    of_old = -(2 * math.log(0.91) + 3 * math.log(0.01)) / 5
    of_new = -(2 * math.log(0.95) + math.log(0.05 / 9) + math.log(0.82) + math.log(0.02)) / 5
    assert comparison.old.negative_log_likelihood == pytest.approx(of_old, rel=1e-5)
    assert comparison.new.negative_log_likelihood == pytest.approx(of_new, rel=1e-5)
    assert list(comparison.old.accepted) == list(comparison.new.accepted) == ["0.01"], "certified by both"
    accepted = [
        (result.accepted["0.01"].coverage, result.accepted["0.01"].errors) for result in (comparison.old, comparison.new)
    ]
    assert accepted == [(1, 3), (0.6, 1)]
    assert table(comparison) == (
        "| 5 images | OLD | NEW |\n"
        "| --- | ---: | ---: |\n"
        "| accuracy | 0.4000 | 0.6000 |\n"
        "| correct by this version alone | 1 | 2 |\n"
        f"| negative log-likelihood, nats | {of_old:.4f} | {of_new:.4f} |\n"
        "| certified for | 1.0%, 0.2% | 1.0%, 0.5% |\n"
        "| accepted, at most 1.0% errors certified | 100.00%, 3 wrong | 60.00%, 1 wrong |\n"
    )


@pytest.mark.parametrize(
    ("lost", "gained", "verdict"),
    [(0, 0, "no difference shown"), (4, 6, "no difference shown"), (4, 20, "NEW is better"), (20, 4, "NEW is worse")],
)
def test_a_version_is_better_or_worse_if_the_interval_excludes_zero(lost: int, gained: int, verdict: str) -> None:
    labels = np.zeros(1000, int)
    old, new = labels.copy(), labels.copy()
    old[:gained], new[gained : gained + lost] = 1, 1
    comparison = compare((answered(*old), answered(*new)), ({}, {}), labels)
    difference = f"accuracy of NEW less OLD {(gained - lost) / 1000:+.4f} (95 % interval "
    assert str(comparison).startswith(difference)
    assert str(comparison).endswith(f": {verdict}")
    assert (comparison.better, comparison.worse) == ("better" in verdict, "worse" in verdict)


@pytest.fixture
def drawings_as_mnist(drawn: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.commands.load_dataset", lambda *_: drawn)


@pytest.mark.usefixtures("drawings_as_mnist")
def test_the_exit_status_is_3_if_the_new_version_is_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = model_files.publish_shifted(tmp_path, 1).parent
    assert main(["compare", str(OLD), str(wrong)]) == 3
    output = capsys.readouterr().out
    difference = "accuracy of NEW less OLD -1.0000 (95 % interval -1.0000 to -0.9707)"
    assert f"MNIST's test images: {difference}: NEW is worse\n" in output
    assert "| accepted, at most 0.5% errors certified |" in output
    assert main(["compare", str(OLD), str(OLD)]) == 0
    assert "no difference shown" in capsys.readouterr().out


@pytest.mark.usefixtures("drawings_as_mnist")
def test_answers_that_a_version_refuses_are_not_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refuses = model_files.publish_whole(tmp_path, 1, threshold="0.95").parent
    assert main(["compare", str(refuses), str(refuses)]) == 0
    assert "| accepted, at most 0.5% errors certified | 0.00%, 0 wrong | 0.00%, 0 wrong |" in capsys.readouterr().out


@pytest.mark.usefixtures("drawings_as_mnist")
def test_held_out_captured_images_are_compared_separately(
    drawings: tuple[NDArray[np.uint8], NDArray[np.uint8]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = model_files.publish_shifted(tmp_path, 1).parent
    store = Store(tmp_path / "captured.db")
    next_digits = (drawings[1] + 1) % 10  # a false truth, by which the shifted version is always correct
    for number, answer in enumerate(answers(100)):
        store.capture(answer, drawings[0][number])
        store.report(answer, str(next_digits[number]))
    assert main(["compare", str(wrong), str(OLD), "--captured", store.url]) == 3, "worse on one set"
    of_mnist, of_captured = capsys.readouterr().out.split("captured images, held out: ")
    assert "NEW is better\n\n| 200 images | OLD | NEW |" in of_mnist
    held = sum(int(answer, 16) % 5 == 0 for answer in answers(100))
    assert f"NEW is worse\n\n| {held} images | OLD | NEW |" in of_captured
    assert main(["compare", str(OLD), str(wrong), "--captured", store.url]) == 3, "worse on the other set"


@pytest.mark.usefixtures("drawings_as_mnist")
def test_captured_images_without_a_held_out_one_are_refused(
    drawings: tuple[NDArray[np.uint8], NDArray[np.uint8]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "captured.db")
    store.capture("0000000000000001", drawings[0][0])
    store.report("0000000000000001", "7")
    assert main(["compare", str(OLD), str(OLD), "--captured", store.url]) == 1
    assert "no captured image (of 1) is held out by its answer's id; capture more" in capsys.readouterr().err


@pytest.mark.usefixtures("drawings_as_mnist")
@pytest.mark.parametrize(
    ("thresholds", "complaint"),
    [
        (None, "model.onnx can't be loaded"),
        ("none", "model.onnx: thresholds are not in the form of `digits-train run`: Expecting value"),
        ('{"0.01": {"coverage": 1}}', "model.onnx: thresholds are not in the form of `digits-train run`: 'threshold'"),
        ("[0.5]", "model.onnx: thresholds are not in the form of `digits-train run`"),
    ],
)
def test_a_directory_without_a_version_can_not_be_compared(
    thresholds: str | None, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if thresholds is not None:
        model = onnx.load(model_files.bundled())
        onnx.helper.set_model_props(model, {"thresholds": thresholds})
        onnx.save(model, tmp_path / "model.onnx")
    assert main(["compare", str(OLD), str(tmp_path)]) == 1
    assert complaint in capsys.readouterr().err
