import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.training import names
from training.__main__ import main
from training.dataset import Dataset, Examples
from training.evaluate import predict_logits

if TYPE_CHECKING:
    from training.studies.workbench import Workbench


def workbench(dataset: Dataset, out: Path, **settings: Any) -> "Workbench":
    from training.studies.workbench import Workbench

    return Workbench(lambda: dataset, out, **settings)


@pytest.fixture
def bench(drawn: Dataset, tmp_path: Path) -> "Workbench":
    return workbench(drawn, tmp_path, epochs=2)


def study(name: str, bench: "Workbench") -> tuple[str, list[dict[str, str]]]:
    """Runs a study, checks that its pictures are PNG files, and returns its finding and the rows of its table."""
    from training.studies.study import STUDIES

    line = STUDIES[name].function(bench)
    pictures = [path for path in bench.written if path.suffix == ".png"]
    assert pictures
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
    return line, rows(bench.out / f"{name}.csv")


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


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


def test_a_study_uses_a_version_that_was_trained_with_a_teacher(
    drawn: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.fit import fingerprint
    from training.recipes import RECIPES
    from training.teacher import find_teacher

    monkeypatch.setitem(RECIPES, "folded", replace(RECIPES["folded"], validation_images=100))
    recipe, version = RECIPES["folded"], tmp_path / "models" / "digits" / "1"
    version.mkdir(parents=True)
    identity = fingerprint(recipe, *recipe.split(drawn, 0), 0, 2, find_teacher(recipe, None))
    record = {"fingerprint": identity, "precision": "fp32", "history": {"loss": [1, 0.5]}, "fit_seconds": 3}
    (version / "run.json").write_text(json.dumps(record))
    recipe.network().save(version / "model.keras")
    bench = workbench(drawn, tmp_path, epochs=2, models=tmp_path / "models")
    assert bench.trained("folded").epochs == 2
    assert f"folded: from {version}" in capsys.readouterr().out


@pytest.mark.parametrize("name", names.RECIPES)
def test_the_formulas_give_every_layers_parameters(name: str) -> None:
    from training.recipes import RECIPES
    from training.studies.networks import by_formula

    network = RECIPES[name].network()
    assert [by_formula(layer)[1] for layer in network.layers] == [layer.count_params() for layer in network.layers]
    assert sum(by_formula(layer)[1] for layer in network.layers) == network.count_params()


def test_parameters_of_lenet5_are_those_computed_by_hand(bench: "Workbench") -> None:
    line, table = study("parameters", bench)
    lenet5 = [
        (row["formula"], int(row["by_formula"])) for row in table if row["recipe"] == "lenet5" and row["formula"] != "0"
    ]
    assert lenet5 == [
        ("(5*5*1 + 1) * 6", 156),
        ("(5*5*6 + 1) * 16", 2_416),
        ("(256 + 1) * 120", 30_840),
        ("(120 + 1) * 84", 10_164),
        ("(84 + 1) * 10", 850),
    ]
    assert f"{len(table)} of {len(table)} layers" in line
    assert "44,426 parameters, 0.38 of mlp128-raw's 118,282; most are in its layer Dense 120: 30,840, 69%;" in line
    work = [int(row["multiply_adds"]) for row in table if row["recipe"] == "lenet5" and row["formula"] != "0"]
    assert work == [24 * 24 * 150, 8 * 8 * 2_400, 30_720, 10_080, 840]
    assert line.endswith("2.4 times the multiply-adds")


def test_the_gallery_has_nine_correct_and_nine_wrong_images(drawn: Dataset, tmp_path: Path) -> None:
    mislabelled = replace(drawn, test=Examples(drawn.test.images, drawn.test.labels.copy()))
    mislabelled.test.labels[5::10] = 4  # twenty drawings of a five, which a good network gets "wrong"
    line, table = study("gallery", workbench(mislabelled, tmp_path, epochs=5))
    assert len(table) == 18
    assert [row["predicted"] == row["class"] for row in table] == [True] * 9 + [False] * 9
    assert all(int(row["class"]) == mislabelled.test.labels[int(row["test_image"])] for row in table)
    assert "4 read as 5 20 times" in line


def test_curves_monitor_images_that_are_not_trained_on(drawn: Dataset, tmp_path: Path) -> None:
    indices = np.arange(6_300) % 800
    images, labels = drawn.train.images[indices], drawn.train.labels[indices].copy()
    labels[6_000:] = (labels[6_000:] + 1) % 10  # wrong for a network that is trained on the first 6,000
    dataset = replace(drawn, train=Examples(images, labels))
    line, table = study("curves", workbench(dataset, tmp_path, epochs=2))
    assert [row["epoch"] for row in table] == ["1", "2"]
    assert float(table[1]["accuracy"]) > 0.9
    assert float(table[1]["val_accuracy"]) < 0.1
    assert "first rises after epoch 1 and is lowest" in line


def test_the_first_rise_is_the_last_epoch_before_a_higher_loss() -> None:
    from training.studies.networks import first_rise

    assert first_rise([3.0, 2.0, 2.0, 2.5, 1.0]) == 3
    assert first_rise([3.0, 2.0, 1.0]) is None


def test_a_confusion_matrix_counts_every_test_image(bench: "Workbench", drawn: Dataset) -> None:
    bench.recipes = ("mlp128", "mlp128-raw")
    line, table = study("confusion", bench)
    assert [row["recipe"] for row in table] == ["mlp128", "mlp128-raw"]
    for row in table:
        matrix = np.array([list(cells.values())[1:] for cells in rows(bench.out / f"confusion-{row['recipe']}.csv")], int)
        assert matrix.sum(axis=1).tolist() == np.bincount(drawn.test.labels).tolist()
        assert np.trace(matrix) / 200 == pytest.approx(float(row["accuracy"]), abs=1e-4)
        assert float(row["seconds"]) > 0, "the notebook subtracted the end from the start"
        assert (bench.out / f"confusion-{row['recipe']}.png").exists()
    assert line.startswith(f"mlp128 {table[0]['accuracy']} in ")


def test_a_network_is_trained_once_for_all_studies(
    drawn: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = workbench(drawn, tmp_path, epochs=1).trained("mlp128")
    assert "mlp128: 800 images," in capsys.readouterr().out, "all training images"
    again = workbench(drawn, tmp_path, epochs=1).trained("mlp128")
    assert "resume     after epoch 1" in capsys.readouterr().out
    assert again.seconds == first.seconds
    np.testing.assert_array_equal(again.answers, first.answers)


def test_only_a_version_of_the_same_training_is_reused(drawn: Dataset, tmp_path: Path) -> None:
    from training.fit import fingerprint
    from training.recipes import RECIPES

    network = RECIPES["mlp128"].network()
    identity = fingerprint(RECIPES["mlp128"], *RECIPES["mlp128"].split(drawn, 7), 7, 1)
    record = {"fingerprint": identity, "precision": "fp32", "fit_seconds": 1234.5}
    (version := tmp_path / "models" / "digits" / "1").mkdir(parents=True)
    network.save(version / "model.keras")
    (tmp_path / "run.json").write_text("another program's")
    (version / "run.json").write_text(json.dumps(record | {"history": {"loss": [1.0]}}))
    reused = workbench(drawn, tmp_path, seed=7, epochs=1, models=tmp_path).trained("mlp128")
    assert (reused.seconds, reused.epochs) == (1234.5, 1)
    np.testing.assert_allclose(reused.answers, predict_logits(network, drawn.test.images), rtol=1e-5)
    trained = workbench(drawn, tmp_path, seed=8, epochs=1, models=tmp_path).trained("mlp128")
    assert trained.seconds != 1234.5


def test_smaller_batches_make_more_updates(bench: "Workbench") -> None:
    bench.epochs = 1
    line, table = study("batch-size", bench)
    assert [(row["batch_size"], row["updates"]) for row in table] == [("32", "25"), ("128", "7"), ("10000", "1")]
    accuracies = [float(row["accuracy"]) for row in table]
    assert accuracies[0] > accuracies[2], "one update is too little"
    assert f"10,000: {accuracies[2]:.4f} in " in line


@pytest.mark.slow
def test_adam_trains_faster_than_adadelta_at_keras_default_rate(bench: "Workbench") -> None:
    line, table = study("optimiser", bench)
    assert [(row["recipe"], row["optimiser"]) for row in table] == [
        ("lenet5", "Adadelta"),
        ("lenet5-adam", "Adam"),
        ("cnn3264", "Adadelta"),
        ("cnn3264-adam", "Adam"),
    ]
    accuracies = [float(row["test_accuracy"]) for row in table]
    assert accuracies[1] > accuracies[0] + 0.2
    assert accuracies[3] > accuracies[2]
    assert len(rows(bench.out / "optimiser-epochs.csv")) == 8
    assert f"lenet5 {accuracies[0]:.4f} with Adadelta" in line


def test_a_shifted_image_is_filled_with_paper() -> None:
    from training.studies.comparisons import shift

    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3)
    assert shift(image, 0, 0).tolist() == image.tolist()
    assert shift(image, 1, 0)[0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert shift(image, -1, 2)[0].tolist() == [[0, 0, 4], [0, 0, 7], [0, 0, 0]]


@pytest.mark.slow
def test_a_dense_network_is_less_accurate_on_shifted_digits(bench: "Workbench", drawn: Dataset) -> None:
    line, table = study("local-vs-global", bench)
    assert len(table) == 2 * (1 + 4 * 8)
    assert len({(row["recipe"], row["down"], row["right"]) for row in table}) == len(table), "eight directions"
    still = [row for row in table if row["pixels"] == "0"]
    dense, convolutional = (bench.trained(name).accuracy for name in ("dense512", "convnet"))
    assert [float(row["accuracy"]) for row in still] == [dense, convolutional]
    assert {row["ink_kept"] for row in still} == {"1.0"}
    moved = np.mean([float(row["accuracy"]) for row in table if (row["recipe"], row["pixels"]) == ("dense512", "4")])
    assert moved < dense - 0.2
    assert f"dense512 {dense:.3f}, " in line


def test_every_study_is_listed_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    from training.studies.study import STUDIES

    assert main(["study"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(STUDIES)
    assert all("seed notebook" in line for line in listed)
    assert {
        *("samples", "balance", "gallery", "curves", "confusion", "batch-size", "optimiser", "parameters", "filters"),
        *("stride-padding", "max-pooling", "local-vs-global", "label-noise", "detection"),
    } <= set(STUDIES)


def test_an_invalid_study_command_is_refused_with_the_valid_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "sample"]) == 2
    assert "no study is named 'sample'; the studies are: samples, balance," in capsys.readouterr().err
    assert main(["study", "samples", "--epochs", "3"]) == 2
    assert "study samples does not use --epochs" in capsys.readouterr().err
    assert main(["study", "confusion", "--recipes", "mlp128", "convnett"]) == 2
    assert "no recipe is named 'convnett'; the recipes are: cnn8," in capsys.readouterr().err
    assert main(["study", "gallery", "--models", "nowhere"]) == 2
    assert "--models nowhere is not a directory" in capsys.readouterr().err


def test_a_study_loads_the_named_files_of_data_and_writers(
    drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(*arguments: Any) -> Dataset:
        loaded.append(arguments)
        return drawn

    monkeypatch.setattr("training.commands.load_dataset", load)
    assert main(["study", "balance", "--data=mnist.npz", "--writers=writers.npz", f"--out={tmp_path}"]) == 0
    assert loaded == [("mnist.npz", Path("writers.npz"), False)]


def test_an_unwritable_results_directory_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["study", "parameters", "--out", str(tmp_path / "file" / "studies")]) == 1
    assert f"cannot write to {tmp_path}/file/studies: Not a directory" in capsys.readouterr().err


def test_all_studies_share_one_workbench_and_an_interrupt_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.studies.study import STUDIES

    benches = []

    def note(bench: "Workbench") -> str:
        benches.append(bench)
        return "noted"

    def interrupt(bench: "Workbench") -> str:
        raise KeyboardInterrupt

    for name, known in list(STUDIES.items()):
        monkeypatch.setitem(STUDIES, name, replace(known, function=note))
    assert main(["study", "all", "--out", str(tmp_path), "--epochs", "1"]) == 0
    free = [study for study in STUDIES.values() if not study.needs]  # the others are skipped

    assert len(benches) == len(free)
    assert len(set(map(id, benches))) == 1
    assert capsys.readouterr().out.count(" noted (") == len(free)
    monkeypatch.setitem(STUDIES, "gallery", replace(STUDIES["gallery"], function=interrupt))
    assert main(["study", "all", "--out", str(tmp_path)]) == 130
