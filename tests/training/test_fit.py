import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.drawings import draw_many
from training.dataset import Dataset, Examples

if TYPE_CHECKING:
    import keras

    from training.batches import Batches
    from training.fit import Fit
    from training.recipes import Recipe

EPOCHS = 5

Images = NDArray[np.uint8]


class Taught:
    """A teacher by its checksum."""

    sha256 = "1"

    def __call__(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        raise NotImplementedError


@pytest.fixture(scope="module")
def some() -> Examples:
    return Examples(*draw_many(300, seed=2))


def fit(*arguments: Any, **named: Any) -> "Fit":
    from training.fit import fit

    return fit(*arguments, **named)


def small(name: str = "flagship-small", **changes: Any) -> "Recipe":
    """A recipe for three hundred images, with distortions, dropout, batch normalisation and averaged weights."""
    from training.recipes import RECIPES

    return replace(RECIPES[name], **{"batch_size": 32, "validation_images": 0} | changes)


def tiny(**changes: Any) -> "Recipe":
    """A recipe with every kind of state that `small` has, in a network that is built and trained in a moment."""
    from training.augmentation import RandomNoise

    return small(network=tiny_network, augmentation=lambda seed: [RandomNoise(0.5, 20, seed)], **changes)


def tiny_network() -> "keras.Sequential":
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *(layers.Rescaling(1 / 255), layers.Conv2D(8, 5, strides=3, use_bias=False)),
            *(layers.BatchNormalization(momentum=0.9), layers.ReLU(), layers.Flatten()),
            *(layers.Dropout(0.2), layers.Dense(10)),
        ]
    )


@pytest.fixture(scope="module")
def finished(some: Examples, tmp_path_factory: pytest.TempPathFactory) -> "tuple[Fit, Path]":
    """A finished run of `tiny` over one epoch with seed 1, and its checkpoint."""
    checkpoint = tmp_path_factory.mktemp("finished") / "checkpoint.npz"
    return fit(tiny(), some, some[:0], 1, 1, checkpoint), checkpoint


@pytest.fixture
def checkpoint(finished: "tuple[Fit, Path]", tmp_path: Path) -> Path:
    """A copy of its checkpoint."""
    return Path(shutil.copy(finished[1], tmp_path))


def same(one: "Fit", other: "Fit") -> bool:
    return all(np.allclose(a, b, atol=1e-6) for a, b in zip(one.network.weights, other.network.weights, strict=True))


def test_equal_seeds_give_equal_weights_and_other_seeds_do_not(some: Examples) -> None:
    recipe = small(network=tiny_network)  # every distortion, each with a random generator of its own
    runs = [fit(recipe, some, some[:0], seed, 2) for seed in (1, 1, 2)]
    assert same(runs[0], runs[1])
    assert runs[0].history == runs[1].history
    assert not same(runs[0], runs[2])


def test_a_killed_run_resumes_and_equals_an_uninterrupted_one(some: Examples, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.npz"
    code = f"""
from pathlib import Path
from tests.training.test_fit import draw_many, fit, small, Examples
some = Examples(*draw_many(300, seed=2))
fit(small(), some, some[:50], 1, {EPOCHS}, Path({str(checkpoint)!r}))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as killed:
        wait_for(lambda: checkpoint.exists() and epochs_in(checkpoint) >= 2)
        killed.send_signal(signal.SIGKILL)
    done = epochs_in(checkpoint)
    assert 2 <= done < EPOCHS, "it was not killed in the middle"

    resumed = fit(small(), some, some[:50], 1, EPOCHS, checkpoint)
    unbroken = fit(small(), some, some[:50], 1, EPOCHS)
    assert len(resumed.history["loss"]) == EPOCHS
    assert resumed.history["loss"] == pytest.approx(unbroken.history["loss"], rel=1e-5)
    assert resumed.history["val_loss"] == pytest.approx(unbroken.history["val_loss"], rel=1e-5)
    assert same(resumed, unbroken)


def test_a_finished_run_is_not_trained_again(
    some: Examples, finished: "tuple[Fit, Path]", checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = finished[0]
    capsys.readouterr()
    again = fit(tiny(), some, some[:0], 1, 1, checkpoint)
    output = capsys.readouterr().out
    assert "resume     after epoch 1" in output
    assert "Epoch" not in output
    assert (again.history, again.seconds) == (first.history, first.seconds)
    np.testing.assert_allclose(
        again.network.predict(pixels(some), verbose=0), first.network.predict(pixels(some), verbose=0)
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-2000]),
        lambda file: file.write_bytes(b""),
        lambda file: np.savez(file, about=np.array('{"history": {}}')),
    ],
    ids=["truncated", "empty", "incomplete"],
)
def test_a_damaged_checkpoint_is_ignored(
    some: Examples,
    finished: "tuple[Fit, Path]",
    checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
) -> None:
    damage(checkpoint)
    again = fit(tiny(), some, some[:0], 1, 1, checkpoint)
    assert "can't be read" in capsys.readouterr().err
    assert same(finished[0], again)


def test_a_checkpoint_of_other_data_is_ignored(some: Examples, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tiny(), some[:290], some[:0], 1, 1, checkpoint)
    assert "belongs to a run with other data or settings; starting from the beginning" in capsys.readouterr().err


def test_a_fingerprint_differs_between_runs_that_train_differently(some: Examples) -> None:
    import keras

    from training.augmentation import RandomWarp
    from training.fit import fingerprint
    from training.recipes import RECIPES, Recipe
    from training.synthesis.mixture import Mixture

    def identity(recipe: Recipe, train: Examples = some, held: Examples = some[:50], seed: int = 1, epochs: int = 2) -> str:
        return fingerprint(recipe, train, held, seed, epochs)

    slower = small(optimiser=lambda updates: keras.optimizers.AdamW(1e-5))
    straight = small(augmentation=lambda seed: [RandomWarp(12, 0.25, 0.12, 2, 0, seed)])
    runs = [
        *(identity(recipe) for recipe in (small(), slower, straight, small(batch_size=16), small(patience=1))),
        *(identity(small(network=RECIPES["convnet"].network)), identity(small(), epochs=3), identity(small(), seed=2)),
        *(identity(small(), some[:299]), identity(small(), held=some[:49])),
        *(identity(small("folded", mixture=Mixture(images=images))) for images in (100, 200)),
        fingerprint(small("folded"), some, some[:50], 1, 2, Taught()),
    ]
    assert len(set(runs)) == len(runs)
    assert identity(small()) == runs[0]


def test_validation_uses_the_published_weights_even_in_a_short_run(some: Examples) -> None:
    """Weights are averaged: the average must not lag behind, and the history must not belong to other weights."""
    from training.evaluate import predict_logits

    fitted = fit(small(), some, some, 1, 6)
    correct = predict_logits(fitted.network, some.images).argmax(axis=1) == some.labels
    assert correct.mean() > 0.9
    assert correct.mean() == pytest.approx(fitted.history["val_accuracy"][-1], abs=0.005)


def test_a_checkpoint_of_another_backend_is_used_only_if_finished(
    some: Examples,
    finished: "tuple[Fit, Path]",
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from training.batches import Batches

    pretend_jax(checkpoint)
    again = fit(tiny(), some, some[:0], 1, 1, checkpoint)
    assert (again.backend, again.history) == ("jax", finished[0].history)
    assert "Epoch" not in capsys.readouterr().out

    half = tmp_path / "half.npz"
    with monkeypatch.context() as patch:
        patch.setattr("training.fit.Batches.begin", interrupted_in_the_second_epoch(Batches.begin))
        with pytest.raises(KeyboardInterrupt):
            fit(tiny(), some, some[:0], 1, 2, half)
    assert epochs_in(half) == 1
    pretend_jax(half)
    restarted = fit(tiny(), some, some[:0], 1, 2, half)
    assert "was written by an unfinished run on jax, and this is tensorflow" in capsys.readouterr().err
    assert (restarted.backend, len(restarted.history["loss"])) == ("tensorflow", 2)
    assert same(restarted, fit(tiny(), some, some[:0], 1, 2)), "the restarted run began with weights of the checkpoint"


def test_a_mixture_trains_both_heads_and_resumes_to_the_same_network(some: Examples, tmp_path: Path) -> None:
    from training.batches import MixedBatches
    from training.evaluate import predict_heads
    from training.synthesis.mixture import Mixture

    recipe = small("folded", mixture=Mixture(images=600, passes=2, teacher=0, bank=100), augmentation=None)
    whole = fit(recipe, some, some[:50], 1, 3, tmp_path / "whole.npz")
    logits, is_whole = predict_heads(whole.network, some.images)
    assert (logits.argmax(axis=1) == some.labels).mean() > 0.9
    assert is_whole is not None
    noise = np.random.default_rng(0).integers(0, 256, (100, 28, 28)).astype(np.uint8)
    refused = predict_heads(whole.network, noise)[1]
    assert refused is not None
    assert is_whole.mean() > refused.mean() + 0.3

    half = tmp_path / "half.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.fit.MixedBatches.begin", interrupted_in_the_second_epoch(MixedBatches.begin))
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, some, some[:50], 1, 3, half)
    assert epochs_in(half) == 1
    assert same(whole, fit(recipe, some, some[:50], 1, 3, half))


def test_a_recipe_with_a_teacher_is_not_trained_without_it(some: Examples) -> None:
    with pytest.raises(ValueError, match="recipe folded takes a teacher"):
        fit(small("folded"), some, some[:0], 1, 1)


def test_patience_stops_a_run_whose_validation_loss_rises(some: Examples) -> None:
    wrong = Examples(some.images[:50], (some.labels[:50] + 1) % 10)  # as training improves, this loss rises
    stopped = fit(small("cnn8", patience=2), some, wrong, 1, 40)
    losses = stopped.history["val_loss"]
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 < 40
    assert len(fit(small("cnn8", patience=2), some, some[:50], 1, 4).history["loss"]) == 4


def test_each_epoch_has_its_own_shuffle_and_the_requested_steps(some: Examples) -> None:
    from training.batches import Batches

    batches = Batches(some, 64, seed=1)
    assert len(batches) == 5
    first = np.concatenate([batches[step][1] for step in range(5)])
    np.testing.assert_array_equal(np.sort(first), np.sort(some.labels))
    batches.begin(1)
    second = np.concatenate([batches[step][1] for step in range(5)])
    assert (first != second).any()
    later = Batches(some, 64, seed=1)
    later.begin(1)
    np.testing.assert_array_equal(later[4][0], batches[4][0])
    assert [len(Batches(some, 64, seed=1, steps=steps)) for steps in (4, 6)] == [4, 5]


def test_a_full_disk_ends_a_run_and_keeps_the_last_checkpoint(some: Examples, checkpoint: Path, tmp_path: Path) -> None:
    before = checkpoint.read_bytes()
    (tmp_path / ".checkpoint.npz.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        fit(tiny(), some, some[:0], 1, 2, checkpoint)
    assert checkpoint.read_bytes() == before


def test_tensorboard_logs_are_written_on_request(some: Examples, tmp_path: Path) -> None:
    fit(tiny(), some, some[:50], 1, 1, logs=tmp_path)
    assert {file.parent.name for file in tmp_path.rglob("events.out.tfevents.*")} == {"train", "validation"}


@pytest.mark.slow
def test_a_catalogue_makes_each_run_once_and_tabulates_the_results(
    some: Examples, drawings: tuple[Images, Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import catalogue, pipeline
    from training.recipes import Recipe

    made = []
    run = pipeline.run

    def recorded(recipe: Recipe, dataset: Dataset, seed: int, epochs: int, models: Path, **named: Any) -> Path:
        made.append(seed)
        return run(recipe, dataset, seed, epochs, models, **named)

    monkeypatch.setattr(pipeline, "run", recorded)
    dataset = Dataset(some, Examples(*drawings), "none: drawn")
    recipes = [small("dense512", epochs=4), small("convnet", epochs=2)]
    catalogue.catalogue(recipes, ["convnet"], dataset, 1, tmp_path)
    text = catalogue.catalogue(recipes, ["dense512"], dataset, 1, tmp_path)
    assert made == [0, 0]
    assert "`convnet`" in text, "existing rows stay in the table"
    text = catalogue.catalogue(recipes, ["dense512", "convnet"], dataset, 2, tmp_path)
    assert made == [0, 0, 1, 1], "existing versions are reused"
    assert (tmp_path / "catalogue.md").read_text() == text
    rows = [[cell.strip(" `*") for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert [row[0] for row in rows[2:]] == ["dense512", "convnet"]
    dense = dict(zip(rows[0], rows[2], strict=True))
    low, high = map(float, dense["lowest to highest"].split(" to "))
    assert 0.5 < low <= float(dense["accuracy, mean"]) <= high <= 1
    assert (dense["claimed"], dense["expected"], dense["parameters"]) == ("0.9817", "0.9787 to 0.9847", "407,050")
    assert dense["in range"] == ("yes" if 0.9787 <= float(dense["accuracy, mean"]) <= 0.9847 else "no")


def interrupted_in_the_second_epoch(begin: Callable[["Batches", int], None]) -> Callable[["Batches", int], None]:
    """Returns a `Batches.begin` that interrupts the run where the second epoch begins, as Ctrl-C does."""

    def begin_or_interrupt(batches: "Batches", epoch: int) -> None:
        if epoch == 1:
            raise KeyboardInterrupt
        begin(batches, epoch)

    return begin_or_interrupt


def pretend_jax(checkpoint: Path) -> None:
    """Rewrites a checkpoint as if another backend had written it."""
    with np.load(checkpoint) as saved:
        arrays = dict(saved)
    about = json.loads(str(arrays["about"]))
    about |= {"backend": "jax"}
    np.savez(checkpoint, **arrays | {"about": np.array(json.dumps(about))})


def pixels(examples: Examples) -> NDArray[np.float32]:
    return examples.images[..., None].astype(np.float32)


def epochs_in(checkpoint: Path) -> int:
    with np.load(checkpoint) as saved:
        return len(json.loads(str(saved["about"]))["history"]["loss"])


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 250
    while not condition():
        assert time.monotonic() < until, "the condition did not become true in 100 seconds"
        time.sleep(0.02)


def test_ctrl_c_ends_a_run_with_advice_and_publishes_nothing(mnist_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "run", "cnn6k", "--epochs", "200", "--models", str(tmp_path)]
    command += ["--data", str(mnist_path)]

    def handle_interrupts() -> None:  # a shell disables them for background processes
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=handle_interrupts
    ) as run:
        checkpoint = tmp_path / "digits" / ".cnn6k-seed0-epochs200.npz"
        wait_for(checkpoint.exists)
        run.send_signal(signal.SIGINT)
        _, complaint = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "digits-train: interrupted; run the same command again to resume after the last complete epoch" in complaint
    assert "Traceback" not in complaint
    assert [file.name for file in (tmp_path / "digits").iterdir()] == [checkpoint.name]
