from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.training_runs import epochs_in, fit, interrupted_in_the_second_epoch, same, small, tiny, tiny_network
from training.dataset import Examples


class Taught:
    """A teacher by its checksum."""

    sha256 = "1"

    def __call__(self, images: NDArray[np.uint8], /) -> NDArray[np.float32]:
        raise NotImplementedError


def test_equal_seeds_give_equal_weights_and_other_seeds_do_not(some: Examples) -> None:
    recipe = small(network=tiny_network)  # every distortion, each with a random generator of its own
    runs = [fit(recipe, some, some[:0], seed, 2) for seed in (1, 1, 2)]
    assert same(runs[0], runs[1])
    assert runs[0].history == runs[1].history
    assert not same(runs[0], runs[2])


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


def test_a_mixture_trains_both_heads_and_resumes_to_the_same_network(some: Examples, tmp_path: Path) -> None:
    from training.batches import MixedBatches
    from training.evaluate import predict_heads
    from training.synthesis.mixture import Mixture

    recipe = small("folded", mixture=Mixture(images=600, passes=2, rubbish=0.3, teacher=0, bank=100), augmentation=None)
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


def test_tensorboard_logs_are_written_on_request(some: Examples, tmp_path: Path) -> None:
    fit(tiny(), some, some[:50], 1, 1, logs=tmp_path)
    assert {file.parent.name for file in tmp_path.rglob("events.out.tfevents.*")} == {"train", "validation"}


@pytest.mark.parametrize("rate", [1e30, 1e38], ids=["huge", "no number"])
def test_a_training_that_diverges_ends_as_such(some: Examples, tmp_path: Path, rate: float) -> None:
    import keras

    from training.progress import DivergedError

    checkpoint = tmp_path / "checkpoint.npz"
    steep = tiny(optimiser=lambda updates: keras.optimizers.SGD(rate))
    with pytest.raises(DivergedError, match=r"the training diverged: its loss is .* after epoch 1; lower the learning rate"):
        fit(steep, some, some[:0], 1, 2, checkpoint)
    assert not checkpoint.exists()
