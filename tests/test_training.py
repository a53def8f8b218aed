import hashlib
import shutil
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from serving.model import Model
from serving.versions import ModelVersion
from tests.test_model import negate_logits
from training import architectures, dataset, pipeline
from training.__main__ import main
from training.augmentation import RandomAffine
from training.calibrate import fit_temperature, softmax
from training.dataset import Dataset, DatasetError, Examples, hold_out, load_mnist
from training.evaluate import evaluate, wilson_interval
from training.export import export
from training.recipes import RECIPES
from training.verify import Exported, VerificationError, verify

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def network() -> keras.Sequential:
    """An untrained network whose normalisation layers have something to fold."""
    keras.utils.set_random_seed(1)
    network = architectures.convnet_bn()
    random = np.random.default_rng(1)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape[0]
            gamma, beta, mean = random.uniform(0.5, 1.5, size), random.normal(0, 0.3, size), random.normal(0, 0.3, size)
            layer.set_weights([gamma, beta, mean, random.uniform(0.5, 1.5, size)])
    return network


def test_the_recipes_have_the_parameters_that_their_sources_state() -> None:
    counts = {name: recipe.network().count_params() for name, recipe in RECIPES.items()}
    assert counts == {"convnet": 93_322, "convnet-affine": 93_802}


def test_a_file_that_is_not_mnist_is_refused_with_what_to_do(tmp_path: Path) -> None:
    file = tmp_path / "mnist.npz"
    file.write_bytes(b"something else")
    with pytest.raises(DatasetError, match=f"SHA-256 is {hashlib.sha256(b'something else').hexdigest()}.*--data"):
        load_mnist(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot read MNIST from .*none.npz: No such file"):
        load_mnist(tmp_path / "none.npz")


def test_offline_without_a_copy_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network() -> None:
        raise Exception("URL fetch failure on https://example.invalid/mnist.npz: None -- no route to host")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", no_network)  # whether there is a network must not matter
    with pytest.raises(DatasetError, match=r"no route to host.*Copy mnist.npz.*--data PATH or DIGITS_DATA=PATH"):
        load_mnist()


def test_holding_out_splits_without_overlap_and_repeatably(drawings: tuple[Images, Images]) -> None:
    examples = Examples(np.arange(100, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8), np.zeros(100, np.uint8))
    kept, held = hold_out(examples, 30, seed=1)
    assert (len(kept), len(held)) == (70, 30)
    assert sorted([*kept.images[:, 0, 0], *held.images[:, 0, 0]]) == list(range(100))
    np.testing.assert_array_equal(hold_out(examples, 30, seed=1)[1].images, held.images)
    assert (hold_out(examples, 30, seed=2)[1].images != held.images).any()


def test_distortion_moves_training_images_about_their_middle_and_leaves_others_alone(images: Images) -> None:
    pixels = images[:200, ..., None].astype(np.float32) / 255
    layer = RandomAffine(rotation=12, shear=0.2, zoom=0.12, shift=2, seed=1)
    np.testing.assert_array_equal(layer(pixels, training=False), pixels)
    moved = np.asarray(layer(pixels, training=True))
    assert moved.shape == pixels.shape
    assert (np.abs(moved - pixels).mean(axis=(1, 2, 3)) > 0.005).all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    rows, columns = np.indices((28, 28))
    middle = [(axis * moved[..., 0]).sum((1, 2)) / moved[..., 0].sum((1, 2)) for axis in (rows, columns)]
    offsets = np.array(middle) - 13.5
    assert np.abs(offsets.mean(axis=1)).max() < 0.4, "no direction is preferred"
    assert 2 < np.abs(offsets).max() < 4
    assert np.median(moved.sum((1, 2, 3)) / pixels.sum((1, 2, 3))) == pytest.approx(1, abs=0.1), "ink is kept"


def test_no_distortion_at_all_gives_the_image_back(images: Images) -> None:
    pixels = images[:10, ..., None].astype(np.float32) / 255
    still = RandomAffine(rotation=0, shear=0, zoom=0, shift=0, seed=1)(pixels, training=True)
    np.testing.assert_allclose(still, pixels, atol=1e-5)


def test_the_temperature_undoes_an_overconfidence_of_three() -> None:
    random = np.random.default_rng(1)
    honest = random.normal(0, 1.5, (20_000, 10))
    labels = np.array([random.choice(10, p=row) for row in softmax(honest, 1)])
    assert fit_temperature(3 * honest, labels) == pytest.approx(3, rel=0.03)


def test_wilson_interval_is_the_published_one() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_evaluation_counts_what_is_right_and_how_sure_it_was() -> None:
    probabilities = np.full((4, 10), 0.02)
    probabilities[[0, 1, 2, 3], [1, 1, 2, 3]] = 0.82
    found = evaluate(probabilities, np.array([1, 7, 2, 3]))
    assert found.accuracy == 0.75
    assert (found.confusion[1][1], found.confusion[7][1], found.confusion[7][7]) == (1, 1, 0)
    assert found.calibration_error == pytest.approx(0.82 - 0.75)
    assert found.negative_log_likelihood == pytest.approx(-(3 * np.log(0.82) + np.log(0.02)) / 4)


def test_an_export_is_lean_and_answers_as_keras_does(network: keras.Sequential, images: Images, tmp_path: Path) -> None:
    model = export(network, 1.7, {"recipe": "none"})
    operations = [node.op_type for node in model.graph.node]
    assert not {"Shape", "Gather", "BatchNormalization", "Div"} & set(operations), "the graph should be folded"
    assert operations.count("Cast") == 1
    assert {entry.key: entry.value for entry in model.metadata_props} == {"contract": "1", "recipe": "none"}
    onnx.save(model, tmp_path / "model.onnx")
    assert verify(Exported(tmp_path / "model.onnx"), network, 1.7, images).largest_difference < 1e-5


def test_verification_notices_another_network_and_another_temperature(
    network: keras.Sequential, images: Images, tmp_path: Path
) -> None:
    onnx.save(export(network, 1.7, {}), tmp_path / "model.onnx")
    with pytest.raises(VerificationError, match="0 of 1000 digits differ, probabilities by up to"):
        verify(Exported(tmp_path / "model.onnx"), network, 1.8, images)
    other = keras.models.clone_model(network)
    with pytest.raises(VerificationError, match="digits differ"):
        verify(Exported(tmp_path / "model.onnx"), other, 1.7, images)


def test_verification_looks_at_the_logits_too(network: keras.Sequential, images: Images, tmp_path: Path) -> None:
    model = export(network, 1.7, {})
    negate_logits(model)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VerificationError, match="logits differ"):
        verify(Exported(tmp_path / "model.onnx"), network, 1.7, images)


def test_a_version_that_is_not_what_it_says_of_itself_is_refused(
    bundled: ModelVersion, mnist_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path), "--data", str(mnist_path)]) == 1
    assert "can't be loaded" in capsys.readouterr().err
    model = onnx.load(bundled.path)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, entries | {"test_accuracy": "0.9999"})
    onnx.save(model, tmp_path / "model.onnx")
    assert main(["verify", str(tmp_path), "--data", str(mnist_path)]) == 1
    assert "is no version that `digits-train run` made" in capsys.readouterr().err
    shutil.copy(bundled.path.with_name("model.keras"), tmp_path)
    assert main(["verify", str(tmp_path), "--data", str(mnist_path)]) == 1
    assert "says of itself that its test accuracy is 0.9999" in capsys.readouterr().err


def test_versions_always_grow(tmp_path: Path) -> None:
    (tmp_path / "30000101000000").mkdir()
    (tmp_path / "notes").mkdir()
    assert pipeline._next_version(tmp_path) == 30000101000001


def test_what_fails_verification_is_not_published(
    drawings: tuple[Images, Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Examples(*drawings)

    def fail(*_: object) -> None:
        raise VerificationError("not the same")

    monkeypatch.setattr(pipeline, "verify", fail)  # an export that is really wrong can't be had by asking for one
    with pytest.raises(VerificationError):
        pipeline.run(RECIPES["convnet"], Dataset(drawn, drawn, "none"), 0, 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "convnett"]) == 2
    assert "no recipe 'convnett'; there are: convnet, convnet-affine" in capsys.readouterr().err
    assert main(["run", "convnet", "--data", str(tmp_path / "none.npz")]) == 1
    assert "digits-train: cannot read MNIST" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["run", "convnet", "--epochs", "0"])
    assert ended.value.code == 2
    assert main(["list"]) == 0
    assert "convnet-affine" in capsys.readouterr().out


def test_the_bundled_model_reads_at_least_994_in_a_thousand_and_agrees_with_keras_on_all_ten_thousand(
    bundled: ModelVersion, model: Model, mnist_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundled.path.parent), "--data", str(mnist_path)]) == 0
    said = capsys.readouterr().out
    assert f"test accuracy {model.test_accuracy:.4f}" in said, "measured as the model says of itself"
    assert model.test_accuracy >= 0.994
    assert "ONNX agrees with Keras on all 10,000 images at batch 1, 7, 32, 128" in said


def test_mnist_is_what_keras_ships(mnist_path: Path) -> None:
    mnist = load_mnist(mnist_path)
    assert (mnist.train.images.shape, mnist.test.images.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert mnist.train.images.dtype == mnist.train.labels.dtype == np.uint8
    assert mnist.sha256 == dataset.MNIST_SHA256
    assert np.bincount(mnist.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
