import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from serving.samples.draw import draw_many
from training import catalogue, pipeline
from training.augmentation import RandomWarp
from training.dataset import Dataset, Examples
from training.fit import Batches, Fit, fingerprint, fit, logits
from training.recipes import RECIPES, Recipe

EPOCHS = 5

Images = NDArray[np.uint8]


@pytest.fixture(scope="module")
def some() -> Examples:
    return Examples(*draw_many(300, seed=2))


def small(name: str = "flagship-small", **changes: object) -> Recipe:
    """A recipe made for three hundred images: distortions, dropout, running averages and all."""
    return replace(RECIPES[name], **{"batch_size": 32, "validation_images": 0} | changes)  # type: ignore[arg-type]


def same(one: Fit, other: Fit) -> bool:
    return all(np.allclose(a, b, atol=1e-6) for a, b in zip(one.network.weights, other.network.weights, strict=True))


def test_the_same_seed_gives_the_same_weights_and_another_seed_gives_others(some: Examples) -> None:
    runs = [fit(small(), some, some[:0], seed, 2) for seed in (1, 1, 2)]
    assert same(runs[0], runs[1])
    assert runs[0].history == runs[1].history
    assert not same(runs[0], runs[2])


def test_a_run_killed_in_the_middle_goes_on_and_ends_as_an_unbroken_one(some: Examples, tmp_path: Path) -> None:
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


def test_a_run_that_was_finished_is_not_trained_again(
    some: Examples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fit(small(), some, some[:0], 1, 2, tmp_path / "checkpoint.npz")
    capsys.readouterr()
    again = fit(small(), some, some[:0], 1, 2, tmp_path / "checkpoint.npz")
    said = capsys.readouterr().out
    assert "resume     after epoch 2" in said
    assert "Epoch" not in said
    assert (again.history, again.seconds) == (first.history, first.seconds)
    np.testing.assert_allclose(
        again.network.predict(pixels(some), verbose=0), first.network.predict(pixels(some), verbose=0)
    )


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-2000]), "can't be read"),
        (lambda file: file.write_bytes(b""), "can't be read"),
        (lambda file: np.savez(file, about=np.array('{"history": {}}')), "can't be read"),
    ],
)
def test_a_spoilt_checkpoint_is_not_trusted(
    some: Examples, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], reason: str
) -> None:
    checkpoint = tmp_path / "checkpoint.npz"
    whole = fit(small(), some, some[:0], 1, 1, checkpoint)
    spoil(checkpoint)
    again = fit(small(), some, some[:0], 1, 1, checkpoint)
    assert reason in capsys.readouterr().err
    assert same(whole, again)


def test_a_checkpoint_of_other_data_is_not_gone_on_from(
    some: Examples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint.npz"
    fit(small(), some, some[:0], 1, 1, checkpoint)
    fit(small(), some[:290], some[:0], 1, 1, checkpoint)
    assert "is of other data or settings: starting anew" in capsys.readouterr().err


def test_a_fingerprint_tells_runs_apart_that_would_train_otherwise(some: Examples) -> None:
    def identity(recipe: Recipe, train: Examples = some, held: Examples = some[:50], seed: int = 1, epochs: int = 2) -> str:
        return fingerprint(recipe, train, held, seed, epochs)

    slower = small(optimiser=lambda updates: keras.optimizers.AdamW(1e-5))
    straight = small(augmentation=lambda seed: [RandomWarp(12, 0.25, 0.12, 2, 0, seed)])
    runs = [
        *(identity(recipe) for recipe in (small(), slower, straight, small(batch_size=16), small(patience=1))),
        *(identity(small(network=RECIPES["convnet"].network)), identity(small(), epochs=3), identity(small(), seed=2)),
        *(identity(small(), some[:299]), identity(small(), held=some[:49])),
    ]
    assert len(set(runs)) == len(runs)
    assert identity(small()) == runs[0]


def test_what_is_watched_is_what_is_left_even_of_a_short_run(some: Examples) -> None:
    """Weights are averaged: neither may the average lag behind, nor the figures be those of other weights."""
    fitted = fit(small(), some, some, 1, 6)
    read = logits(fitted.network, some.images).argmax(axis=1) == some.labels
    assert read.mean() > 0.9
    assert read.mean() == pytest.approx(fitted.history["val_accuracy"][-1], abs=0.005)


def test_only_a_finished_run_of_another_backend_is_taken_up(
    some: Examples, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "checkpoint.npz"
    finished = fit(small(), some, some[:0], 1, 2, checkpoint)
    elsewhere(checkpoint, epochs=2)
    again = fit(small(), some, some[:0], 1, 2, checkpoint)
    assert (again.backend, again.history) == ("jax", finished.history)
    elsewhere(checkpoint, epochs=1)
    anew = fit(small(), some, some[:0], 1, 2, checkpoint)
    assert "was begun on jax: starting anew" in capsys.readouterr().err
    assert (anew.backend, len(anew.history["loss"])) == ("tensorflow", 2)


def test_patience_ends_a_run_when_the_validation_loss_no_longer_falls(some: Examples) -> None:
    wrong = Examples(some.images[:50], (some.labels[:50] + 1) % 10)  # the better it reads, the worse it looks
    stopped = fit(small("cnn8", patience=2), some, wrong, 1, 40)
    losses = stopped.history["val_loss"]
    best = int(np.argmin(losses))
    assert len(losses) == best + 3 < 40
    assert len(fit(small("cnn8", patience=2), some, some[:50], 1, 4).history["loss"]) == 4


def test_an_epoch_is_a_shuffle_of_its_own_and_of_as_many_steps_as_asked_for(some: Examples) -> None:
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


def test_a_disk_that_is_full_ends_a_run_with_a_message_and_keeps_the_last_checkpoint(some: Examples, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.npz"
    fit(small(), some, some[:0], 1, 1, checkpoint)
    before = checkpoint.read_bytes()
    (tmp_path / ".checkpoint.npz.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        fit(small(), some, some[:0], 1, 2, checkpoint)
    assert checkpoint.read_bytes() == before


def test_tensorboard_gets_its_logs_when_asked_for(some: Examples, tmp_path: Path) -> None:
    fit(small(), some, some[:50], 1, 1, logs=tmp_path)
    assert {file.parent.name for file in tmp_path.rglob("events.out.tfevents.*")} == {"train", "validation"}


@pytest.mark.slow
def test_a_catalogue_makes_each_run_once_and_tells_what_came_of_it(
    some: Examples, drawings: tuple[Images, Images], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    run = pipeline.run

    def watched(recipe: Recipe, dataset: Dataset, seed: int, epochs: int, models: Path) -> Path:
        made.append(seed)
        return run(recipe, dataset, seed, epochs, models)

    monkeypatch.setattr(pipeline, "run", watched)
    dataset = Dataset(some, Examples(*drawings), "none: drawn")
    recipes = [small("dense512", epochs=4), small("convnet", epochs=2)]
    catalogue.catalogue(recipes, ["convnet"], dataset, 1, tmp_path)
    text = catalogue.catalogue(recipes, ["dense512"], dataset, 1, tmp_path)
    assert made == [0, 0]
    assert "`convnet`" in text, "what was there stays in the table"
    text = catalogue.catalogue(recipes, ["dense512", "convnet"], dataset, 2, tmp_path)
    assert made == [0, 0, 1, 1], "what was there is not made again"
    assert (tmp_path / "catalogue.md").read_text() == text
    rows = [[cell.strip(" `*") for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert [row[0] for row in rows[2:]] == ["dense512", "convnet"]
    dense = dict(zip(rows[0], rows[2], strict=True))
    low, high = map(float, dense["lowest to highest"].split(" to "))
    assert 0.5 < low <= float(dense["accuracy, mean"]) <= high <= 1
    assert (dense["claimed"], dense["expected"], dense["parameters"]) == ("0.9817", "0.9787 to 0.9847", "407,050")
    assert dense["in range"] == ("yes" if 0.9787 <= float(dense["accuracy, mean"]) <= 0.9847 else "no")


def elsewhere(checkpoint: Path, epochs: int) -> None:
    """Makes a checkpoint say that it comes from another backend, after so many epochs."""
    with np.load(checkpoint) as saved:
        arrays = dict(saved)
    about = json.loads(str(arrays["about"]))
    about |= {"backend": "jax", "history": {name: values[:epochs] for name, values in about["history"].items()}}
    np.savez(checkpoint, **arrays | {"about": np.array(json.dumps(about))})


def pixels(examples: Examples) -> NDArray[np.float32]:
    return examples.images[..., None].astype(np.float32)


def epochs_in(checkpoint: Path) -> int:
    with np.load(checkpoint) as saved:
        return len(json.loads(str(saved["about"]))["history"]["loss"])


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


def test_ctrl_c_ends_a_run_with_what_to_do_and_publishes_nothing(mnist_path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training", "run", "cnn6k", "--epochs", "200", "--models", str(tmp_path)]
    command += ["--data", str(mnist_path)]

    def heed_interrupts() -> None:  # which a shell switches off for what runs in its background
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as run:
        checkpoint = tmp_path / "digits" / ".cnn6k-seed0-epochs200.npz"
        wait_for(checkpoint.exists)
        run.send_signal(signal.SIGINT)
        _, complaint = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "digits-train: interrupted; the same command goes on after the last whole epoch" in complaint
    assert "Traceback" not in complaint
    assert [file.name for file in (tmp_path / "digits").iterdir()] == [checkpoint.name]
