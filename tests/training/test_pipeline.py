import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from serving.repository.versions import ModelVersion
from serving.settings import BUNDLED
from training import dataset, pipeline
from training.__main__ import main
from training.augmentation import RandomBlur, RandomFading, RandomNoise, RandomStrokeWidth, RandomWarp
from training.dataset import Dataset, DatasetError, Examples, hold_out, load_mnist
from training.export import ExportError
from training.recipes import RECIPES
from training.verify import VerificationError

Images = NDArray[np.uint8]


def test_the_recipes_have_the_parameters_that_their_sources_state() -> None:
    counts = {name: recipe.network().count_params() for name, recipe in RECIPES.items()}
    assert counts == {
        "cnn8": 11_776,
        "fcn512": 669_706,
        "fcn512-b32": 669_706,
        "fcn512-b10000": 669_706,
        "bncnn": 597_738,
        "dense512": 407_050,
        "convnet": 93_322,
        "cnn6k": 304_906,
        "mlp128-raw": 118_282,
        "mlp128": 118_282,
        "lenet5": 44_426,
        "lenet5-adam": 44_426,
        "cnn3264": 1_199_882,
        "cnn3264-adam": 1_199_882,
        "flagship": 325_034,
        "flagship-small": 93_802,
    }
    assert counts["flagship-small"] <= 100_000
    untrained = RECIPES["bncnn"].network().non_trainable_weights
    assert sum(weight.shape.num_elements() for weight in untrained) == 1_408


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


def numbered(count: int, writers: NDArray[np.int16] | None = None) -> Dataset:
    """Training images that show nothing but their own number."""
    images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    examples = Examples(images, np.zeros(count, np.uint8))
    return Dataset(examples, examples, "none", writers)


def test_holding_out_splits_without_overlap_and_repeatably() -> None:
    dataset = numbered(100)
    kept, held = hold_out(dataset, 30, seed=1)
    assert (len(kept), len(held)) == (70, 30)
    assert sorted([*kept.images[:, 0, 0], *held.images[:, 0, 0]]) == list(range(100))
    np.testing.assert_array_equal(hold_out(dataset, 30, seed=1)[1].images, held.images)
    assert (hold_out(dataset, 30, seed=2)[1].images != held.images).any()
    kept, held = hold_out(dataset, 0, seed=1)
    assert (kept.images[:, 0, 0].tolist(), len(held)) == (list(range(100)), 0)


@pytest.mark.parametrize("seed", range(5))
def test_where_the_writers_are_known_none_is_in_both_parts(seed: int) -> None:
    writers = np.random.default_rng(0).choice([-3, 7, 8, 1000, 2000, 2001], 200).astype(np.int16)
    kept, held = hold_out(numbered(200, writers), 70, seed)
    assert len(held) == 70
    kept_writers, held_writers = (set(writers[part.images[:, 0, 0]]) for part in (kept, held))
    assert not kept_writers & held_writers
    assert len(kept_writers | held_writers) == 6
    cut = max(np.sum(writers == writer) for writer in held_writers)
    assert 130 - cut <= len(kept) <= 130, "at most what one writer wrote is left out"


def test_too_few_writers_to_hold_some_out_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"too few, 1: with 30 images .* held out, 0 of 70 are left to learn from"):
        hold_out(numbered(100, np.zeros(100, np.int16)), 30, seed=1)


def test_a_recipe_learns_from_the_first_images_that_are_not_held_out() -> None:
    recipe = replace(RECIPES["cnn6k"], training_images=30, validation_images=20)
    kept, held = hold_out(numbered(100), 20, seed=1)
    train, validation = recipe.split(numbered(100), seed=1)
    np.testing.assert_array_equal(train.images, kept.images[:30])
    np.testing.assert_array_equal(validation.images, held.images)
    assert (
        len(RECIPES["cnn6k"].split(Dataset(Examples(np.zeros((6_100, 28, 28)), np.zeros(6_100)), kept, "none"), 0)[0])
        == 6_000
    )


def test_a_file_that_does_not_hold_the_writers_is_refused(mnist_path: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot read the writers from .*none.npz: No such file"):
        load_mnist(mnist_path, tmp_path / "none.npz")
    (tmp_path / "text.npz").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match="does not hold the writers"):
        load_mnist(mnist_path, tmp_path / "text.npz")
    np.save(tmp_path / "bare.npy", np.arange(60_000))
    with pytest.raises(DatasetError, match="no npz file with an array `train`"):
        load_mnist(mnist_path, tmp_path / "bare.npy")
    np.savez(tmp_path / "few.npz", train=np.arange(10))
    with pytest.raises(DatasetError, match=r"`train` is int64 \(10,\), not integers \(60000,\)"):
        load_mnist(mnist_path, tmp_path / "few.npz")


def test_a_warp_moves_and_bends_training_images_about_their_middle_and_leaves_others_alone(images: Images) -> None:
    pixels = images[:200, ..., None].astype(np.float32)
    layer = RandomWarp(rotation=12, shear=0.2, zoom=0.12, shift=2, bend=1.2, seed=1)
    np.testing.assert_array_equal(layer(pixels, training=False), pixels)
    moved = np.asarray(layer(pixels, training=True))
    assert moved.shape == pixels.shape
    assert (np.abs(moved - pixels).mean(axis=(1, 2, 3)) > 1).all()
    assert moved.min() >= 0
    assert moved.max() <= 255
    rows, columns = np.indices((28, 28))
    middle = [(axis * moved[..., 0]).sum((1, 2)) / moved[..., 0].sum((1, 2)) for axis in (rows, columns)]
    offsets = np.array(middle) - 13.5
    assert np.abs(offsets.mean(axis=1)).max() < 0.4, "no direction is preferred"
    assert 2 < np.abs(offsets).max() < 5
    assert np.median(moved.sum((1, 2, 3)) / pixels.sum((1, 2, 3))) == pytest.approx(1, abs=0.1), "ink is kept"


def test_a_warp_of_nothing_gives_the_image_back(images: Images) -> None:
    pixels = images[:10, ..., None].astype(np.float32)
    still = RandomWarp(rotation=0, shear=0, zoom=0, shift=0, bend=0, seed=1)(pixels, training=True)
    np.testing.assert_allclose(still, pixels, atol=0.01)


def test_a_shift_alone_is_read_between_pixels_and_lets_paper_in() -> None:
    pixels = np.full((50, 28, 28, 1), 200, np.float32)
    moved = np.asarray(RandomWarp(rotation=0, shear=0, zoom=0, shift=3, bend=0, seed=1)(pixels, training=True))[..., 0]
    assert moved[:, 4:-4, 4:-4] == pytest.approx(200), "inside nothing changes"
    lost = 28 - moved[:, 14].sum(axis=1) / 200  # columns of paper that came in
    assert lost.max() == pytest.approx(3, abs=0.3)
    assert len(np.unique(lost.round(2))) > 40, "no two images are moved alike"


def test_pens_grow_broader_and_finer_by_a_pixel_at_most() -> None:
    stroke = np.zeros((200, 28, 28, 1), np.float32)
    stroke[:, :, 12:16] = 255  # four pixels wide
    assert np.array_equal(RandomStrokeWidth(1, 1, 1)(stroke, training=False), stroke)
    widths = (
        np.asarray(RandomStrokeWidth(broader=1, finer=0.5, seed=1)(stroke, training=True))[:, 14, :, 0].sum(axis=1) / 255
    )
    assert widths.min() == pytest.approx(3, abs=0.1)
    assert widths.max() == pytest.approx(6, abs=0.1)


def test_noise_falls_on_its_share_of_the_images_and_stays_grey() -> None:
    pixels = np.full((400, 28, 28, 1), 128, np.float32)
    assert np.array_equal(RandomNoise(0.25, 40, 1)(pixels, training=False), pixels)
    noisy = np.asarray(RandomNoise(factor=0.25, limit=40, seed=1)(pixels, training=True))
    strength = noisy.std(axis=(1, 2, 3))
    assert 60 < (strength > 0).sum() < 140
    assert 30 < strength.max() < 42
    assert (noisy.min() >= 0, noisy.max() <= 255) == (True, True)


def test_blur_is_what_scipy_blurs_and_each_image_has_its_own(images: Images) -> None:
    pixels = images[:4, ..., None].astype(np.float32)
    deviations = np.array([0.01, 0.5, 1, 2], np.float32)
    blurred = np.asarray(RandomBlur(1, 2, 1).damage(pixels, deviations.reshape(4, 1, 1, 1)))
    for image, deviation, result in zip(pixels[..., 0], deviations, blurred[..., 0], strict=True):
        expected = ndimage.gaussian_filter(image, deviation, mode="constant", truncate=12)
        np.testing.assert_allclose(result, expected, atol=0.001)
    same = np.repeat(pixels[:1], 400, axis=0)
    drawn = np.asarray(RandomBlur(factor=0.25, limit=2, seed=1)(same, training=True))
    whole = (drawn == same).all(axis=(1, 2, 3))
    assert 260 < whole.sum() < 340
    assert len(np.unique(drawn[~whole].max(axis=(1, 2, 3)))) > 40


def test_faded_ink_keeps_its_shape(images: Images) -> None:
    pixels = np.repeat(images[:1, ..., None], 400, axis=0).astype(np.float32)
    faded = np.asarray(RandomFading(factor=0.5, limit=0.8, seed=1)(pixels, training=True))
    share = faded.sum(axis=(1, 2, 3)) / pixels.sum(axis=(1, 2, 3))
    np.testing.assert_allclose(faded, pixels * share.reshape(-1, 1, 1, 1), atol=0.01)
    assert 160 < (share < 1).sum() < 240
    assert 0.2 < share.min() < 0.25


def test_a_version_that_is_not_what_it_says_of_itself_is_refused(
    bundled: ModelVersion, mnist_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def verify_says() -> str:
        assert main(["verify", str(tmp_path), "--data", str(mnist_path)]) == 1
        return capsys.readouterr().err

    assert "is no version that `digits-train run` made: run.json: No such file" in verify_says()
    record = json.loads(bundled.path.with_name("run.json").read_text())
    record["test"]["accuracy"] = 0.9999
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert "model.keras can't be loaded: it is not there" in verify_says()
    shutil.copy(bundled.path.with_name("model.keras"), tmp_path)
    assert "model.onnx can't be loaded" in verify_says()
    model = onnx.load(bundled.path)
    onnx.save(model, tmp_path / "model.onnx")
    assert "by run.json temperature and test accuracy are" in verify_says()
    entries = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, entries | {"test_accuracy": "0.9999"})
    onnx.save(model, tmp_path / "model.onnx")
    assert "says of itself that its test accuracy is 0.9999" in verify_says()
    onnx.helper.set_model_props(model, {"precision": "int8"})
    onnx.save(model, tmp_path / "model.onnx")
    assert "is no version that `digits-train run` made: 'temperature'" in verify_says()


def test_what_fails_verification_is_not_published(drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise VerificationError("not the same")

    monkeypatch.setattr(pipeline, "verify", fail)  # an export that is really wrong can't be had by asking for one
    with pytest.raises(VerificationError):
        pipeline.run(RECIPES["convnet"], drawn, 0, 1, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".convnet-seed0-epochs1.npz"], "what was learnt is kept"


def test_what_was_trained_where_nothing_can_be_exported_is_exported_by_the_same_command_elsewhere(
    drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_tensorflow(name: str) -> str:
        if name in ("tensorflow", "tf2onnx"):
            raise PackageNotFoundError(name)
        return version(name)

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(keras.backend, "backend", lambda: "jax")
        elsewhere.setattr("training.pipeline.installed", without_tensorflow)
        elsewhere.setattr(platform, "machine", lambda: "abacus")
        with pytest.raises(ExportError, match=r"this is jax; .*\.convnet-seed0-epochs1\.npz keeps what was trained"):
            pipeline.run(RECIPES["convnet"], drawn, 0, 1, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [".convnet-seed0-epochs1.npz"]
    capsys.readouterr()
    published = pipeline.run(RECIPES["convnet"], drawn, 0, 1, tmp_path)
    assert "resume     after epoch 1" in capsys.readouterr().out
    record = json.loads((published / "run.json").read_text())
    assert (record["backend"], record["machine"].split(",")[0]) == ("jax", "abacus")
    assert [file.name for file in tmp_path.iterdir()] == [published.name]


def test_the_command_line_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path, mnist_path: Path) -> None:
    assert main(["run", "convnett"]) == 2
    assert "no recipe 'convnett'; there are: cnn8, fcn512," in capsys.readouterr().err
    assert main(["run", "convnet", "--data", str(tmp_path / "none.npz")]) == 1
    assert "digits-train: cannot read MNIST" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["run", "convnet", "--epochs", "0"])
    assert ended.value.code == 2
    (tmp_path / "file").touch()
    asked = ["run", "convnet", f"--models={tmp_path}", f"--tensorboard={tmp_path}/file"]
    assert main([*asked, f"--data={mnist_path}"]) == 1
    assert f"digits-train: cannot write to {tmp_path}/file" in capsys.readouterr().err
    assert main(["list"]) == 0
    assert "flagship-small" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", ".", "..", "../evil", "a/b", ".hidden", "-x", "a b", "ä"])
def test_a_models_name_is_that_of_one_directory_in_sight(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "convnet", f"--name={name}"])
    assert ended.value.code == 2
    assert "must be letters, digits, '.', '_' and '-'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backend", "status", "message"),
    [
        ("abacus", 2, "KERAS_BACKEND must be one of tensorflow, jax, torch, not 'abacus'"),
        ("torch", 1, "No module named 'torch'; training needs KERAS_BACKEND=torch installed"),
    ],
)
def test_a_backend_that_is_not_there_is_named(backend: str, status: int, message: str) -> None:
    if importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is here")
    command = [sys.executable, "-m", "training", "list"]
    ended = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": backend}, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (status, f"digits-train: {message}\n")


def test_a_list_that_is_read_no_further_ends_without_a_word() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "wb") as output:
        command = [sys.executable, "-m", "training", "study"]
        ended = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.parametrize(("name", "least"), [("digits", 0.996), ("digits-small", 0.995)])
def test_what_is_bundled_reads_as_well_as_it_says_and_answers_as_keras(
    name: str, least: float, mnist_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    all_of_them, nearly = "all 10,000", "all but [1-5] of 10,000"
    for made, agreement in zip(sorted((BUNDLED / name).iterdir()), (all_of_them, f"{all_of_them}|{nearly}"), strict=True):
        record = json.loads((made / "run.json").read_text())
        assert main(["verify", str(made), "--data", str(mnist_path)]) == 0, "measured as the model says of itself"
        said = capsys.readouterr().out
        assert f"test accuracy {record['test']['accuracy']:.4f}" in said
        assert record["test"]["accuracy"] >= least
        assert re.search(f"ONNX agrees with Keras on ({agreement}) images at batch 1, 7, 32, 128", said)


def test_mnist_is_what_keras_ships(mnist_path: Path) -> None:
    mnist = load_mnist(mnist_path)
    assert (mnist.train.images.shape, mnist.test.images.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert mnist.train.images.dtype == mnist.train.labels.dtype == np.uint8
    assert mnist.sha256 == dataset.MNIST_SHA256
    assert np.bincount(mnist.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
