"""Batches of one epoch: shuffled labelled images, or a mixture with drawn digits and rubbish."""

import keras
import numpy as np

from training.dataset import Examples
from training.synthesis.mixture import Bank, Distortions, Mixture, Teacher, mix


class Batches(keras.utils.PyDataset):  # type: ignore[misc]  # keras ships no types
    """Batches of images and labels, shuffled for each epoch by the seed and the epoch number alone.

    Args:
        examples: training images and labels.
        batch_size: images per batch; the last batch of an epoch may be smaller.
        seed: of the shuffling.
        steps: maximum number of batches per epoch; None uses all.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int, steps: int | None = None):
        super().__init__()
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        batches = -(-len(examples) // batch_size)
        self.steps = min(steps or batches, batches)
        self.begin(0)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return self.examples.images[chosen], self.examples.labels[chosen]

    def begin(self, epoch: int) -> None:
        """Shuffles for `epoch`. Keras' own hook `on_epoch_end` is unsuitable: it is called twice after some epochs."""
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples))


class MixedBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of a mixture; the seed and the epoch number alone determine an epoch's images.

    Args:
        mixture: numbers and shares of the images.
        examples: digits of the data set.
        distortions: builds the layers that vary the handwriting; None leaves it as it is.
        teacher: answers that are mixed into the targets; None uses the labels alone.
        batch_size: images per batch; images that fill no batch are left out.
        seed: of the drawn images and of every epoch.
    """

    def __init__(
        self,
        mixture: Mixture,
        examples: Examples,
        distortions: Distortions | None,
        teacher: Teacher | None,
        batch_size: int,
        seed: int,
    ):
        super().__init__()
        self.mixture = mixture
        self.examples = examples
        self.distortions = distortions
        self.teacher = teacher
        self.batch_size = batch_size
        self.seed = seed
        self._bank: Bank | None = None
        self._epoch: int | None = None

    def __len__(self) -> int:
        return self.mixture.updates(self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return self.images[chosen], self.targets[chosen]

    def begin(self, epoch: int) -> None:
        """Makes the images of `epoch`; the first call also draws the bank."""
        if epoch == self._epoch:
            return
        self._epoch = epoch
        if self._bank is None:
            self._bank = Bank(self.mixture, self.examples, self.seed)
        random = np.random.default_rng([self.seed, 2, epoch])
        self.images, self.targets = mix(self.mixture, self._bank, self.distortions, self.teacher, random)
        self.order = np.concatenate([random.permutation(len(self.images)) for _ in range(self.mixture.passes)])
