from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.run_records import write_record
from tests.support.studies import rows, study, workbench
from tests.training import names
from training.dataset import Dataset, Examples
from training.evaluate import predict_logits

if TYPE_CHECKING:
    from training.studies.workbench import Workbench


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
    record = {"fingerprint": identity, "precision": "fp32", "fit_seconds": 1234.5, "history": {"loss": [1.0]}}
    version = write_record(tmp_path / "models" / "digits" / "1", **record)
    network.save(version / "model.keras")
    (tmp_path / "run.json").write_text("another program's")
    reused = workbench(drawn, tmp_path, seed=7, epochs=1, models=tmp_path).trained("mlp128")
    assert (reused.seconds, reused.epochs) == (1234.5, 1)
    np.testing.assert_allclose(reused.answers, predict_logits(network, drawn.test.images), rtol=1e-5)
    trained = workbench(drawn, tmp_path, seed=8, epochs=1, models=tmp_path).trained("mlp128")
    assert trained.seconds != 1234.5


def test_a_study_uses_a_version_that_was_trained_with_a_teacher(
    drawn: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.fit import fingerprint
    from training.recipes import RECIPES
    from training.teacher import find_teacher

    monkeypatch.setitem(RECIPES, "folded", replace(RECIPES["folded"], validation_images=100))
    recipe = RECIPES["folded"]
    identity = fingerprint(recipe, *recipe.split(drawn, 0), 0, 2, find_teacher(recipe))
    record = {"fingerprint": identity, "precision": "fp32", "history": {"loss": [1, 0.5]}, "fit_seconds": 3}
    version = write_record(tmp_path / "models" / "digits" / "1", **record)
    recipe.network().save(version / "model.keras")
    bench = workbench(drawn, tmp_path, epochs=2, models=tmp_path / "models")
    assert bench.trained("folded").epochs == 2
    assert f"folded: from {version}" in capsys.readouterr().out


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
