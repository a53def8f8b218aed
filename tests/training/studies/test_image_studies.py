from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.studies import rows, study, workbench
from training.__main__ import main
from training.dataset import Dataset

if TYPE_CHECKING:
    from training.studies.workbench import Workbench


def test_samples_prints_the_numbers_of_one_image(
    bench: "Workbench", drawn: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    line, table = study("samples", bench)
    numbers = np.array([list(row.values()) for row in table], np.uint8)
    index = int(line.split()[2].rstrip(",").replace(",", ""))
    np.testing.assert_array_equal(numbers, drawn.train.images[index])
    assert f"of class {drawn.train.labels[index]}," in line
    printed = [[int(number) for number in row.split()] for row in capsys.readouterr().out.splitlines()]
    assert printed == numbers.tolist()


def test_balance_counts_each_class(drawn: Dataset, tmp_path: Path) -> None:
    uneven = replace(drawn, train=drawn.train[np.flatnonzero((drawn.train.labels != 3) | (np.arange(800) < 100))])
    line, table = study("balance", workbench(uneven, tmp_path))
    assert [int(row["train"]) for row in table] == [80, 80, 80, 10, 80, 80, 80, 80, 80, 80]
    assert [int(row["test"]) for row in table] == [20] * 10
    assert "730 training and 200 test images, 28x28 pixels, 10 classes; fewest training images are 3s (10)" in line
    assert "8.00 times as many" in line


def test_balance_of_mnist_is_5421_fives_and_6742_ones(mnist_path: Path, tmp_path: Path) -> None:
    assert main(["study", "balance", "--data", str(mnist_path), "--out", str(tmp_path)]) == 0
    counts = [int(row["train"]) for row in rows(tmp_path / "balance.csv")]
    assert (min(counts), max(counts)) == (counts[5], counts[1]) == (5_421, 6_742)


@pytest.mark.parametrize("name", ["vertical gradient", "box blur", "sharpen", "vertical line", "diagonal"])
def test_the_response_to_a_single_point_is_the_reflected_filter(name: str) -> None:
    from training.studies.convolutions import FILTERS, convolve

    point = np.zeros((1, 7, 7), np.uint8)
    point[0, 3, 3] = 1
    answer = convolve(point, FILTERS[name])[0]
    assert answer.shape == (5, 5)
    np.testing.assert_allclose(answer[1:4, 1:4], FILTERS[name][::-1, ::-1], rtol=1e-6)
    assert np.count_nonzero(answer) == np.count_nonzero(FILTERS[name])


def test_responses_to_a_plus_sign_are_those_computed_by_hand(bench: "Workbench") -> None:
    from training.studies.convolutions import FILTERS, convolve, plus

    answers = {name: convolve(plus()[None], kernel)[0] for name, kernel in FILTERS.items()}
    # Output (5, 9) covers rows 5 to 7 and columns 9 to 11; the upper arm covers columns 11 to 16 and begins in row 4.
    assert answers["vertical gradient"][5, 9:12].tolist() == pytest.approx([0, -0.2 * 3 * 255, 0], abs=1e-4), "ink begins"
    assert answers["vertical gradient"][5, 15:18].tolist() == pytest.approx([0, 0.2 * 3 * 255, 0], abs=1e-4), "ink ends"
    assert answers["box blur"][5, 8:12].tolist() == pytest.approx([0, 255 / 3, 2 * 255 / 3, 255])
    assert answers["sharpen"][3, 10] == (5 - 2) * 255, "a corner of the arm has two neighbours with ink"
    assert answers["sharpen"][5, 9] == -255, "paper beside the arm"
    assert answers["vertical line"][5, 8:12].tolist() == [0, -3 * 255, 3 * 255, 0]
    assert answers["diagonal"][3, 10] == (2 - 1 - 1 - 1) * 255, "a corner of the arm"
    _, table = study("filters", bench)
    assert len(table) == 5 * 11
    assert {(row["rows"], row["columns"]) for row in table} == {("26", "26")}
    gradient = next(row for row in table if (row["filter"], row["input"]) == ("vertical gradient", "plus"))
    assert [float(gradient[name]) for name in ("least", "mean", "greatest")] == [-153, 0, 153]


def test_sizes_under_stride_and_padding_are_the_textbooks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "stride-padding", "--data", str(tmp_path / "none.npz"), "--out", str(tmp_path)]) == 0
    assert "28 -> 26 -> 13; 25x25 under 3x3, stride 2: 12; 16 of 16" in capsys.readouterr().out, "without MNIST"
    sizes = {
        tuple(row[name] for name in ("input", "kernel", "stride", "padding")): (int(row["output"]), int(row["formula"]))
        for row in rows(tmp_path / "stride-padding.csv")
    }
    assert sizes["28", "3", "1", "same"] == (28, 28)
    assert sizes["28", "3", "1", "valid"] == (26, 26)
    assert sizes["28", "3", "2", "same"] == (14, 14)
    assert sizes["28", "3", "2", "valid"] == (13, 13)
    assert sizes["25", "3", "2", "valid"] == (12, 12)
    assert sizes["28", "5", "1", "valid"] == (24, 24)
    assert all(output == formula for output, formula in sizes.values())


def test_max_pooling_keeps_the_maximum_and_drops_an_odd_last_row(bench: "Workbench") -> None:
    from training.studies.convolutions import pool

    image = np.arange(49).reshape(1, 7, 7)
    assert pool(image)[0].tolist() == [[8, 10, 12], [22, 24, 26], [36, 38, 40]]
    line, table = study("max-pooling", bench)
    assert [(row["before"], row["after"]) for row in table] == [("28", "14"), ("14", "7"), ("7", "3"), ("26", "13")]
    assert all(row["after"] == row["formula"] for row in table)
    assert line.startswith("28 -> 14 -> 7 -> 3, after a 3x3 convolution 26 -> 13")
