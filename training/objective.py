"""The objective of a network with eleven outputs: which digit it is, and whether it is one whole digit at all.

Targets are (N, 11): the weight of each digit, which is its probability where there is a digit, then 1 for one whole digit,
else 0.
Outputs are (N, 11): the logits of the digits, then the logit of `whole`.
"""

import keras
import numpy as np
from keras import ops


class WholeDigit(keras.losses.Loss):  # type: ignore[misc]  # keras ships no types
    """Cross-entropy of the digits, by the weights in the targets, plus the cross-entropy of `whole`."""

    def call(self, targets: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the loss of each image, (N,), in nats."""
        digit = -ops.sum(targets[:, :10] * ops.log_softmax(outputs[:, :10]), axis=-1)
        whole = outputs[:, 10]
        return digit + ops.softplus(whole) - targets[:, 10] * whole


def accuracy(targets: keras.KerasTensor, outputs: keras.KerasTensor) -> keras.KerasTensor:
    """Returns 1 where the right digit is the most probable one, or where rubbish is refused, else 0, (N,)."""
    digit = ops.equal(ops.argmax(targets[:, :10], axis=-1), ops.argmax(outputs[:, :10], axis=-1))
    return ops.cast(ops.where(targets[:, 10] > 0.5, digit, outputs[:, 10] < 0), "float32")


def whole_targets(labels: np.ndarray) -> np.ndarray:
    """Returns the targets of whole digits, (N, 11) float32, for their labels, (N,)."""
    targets = np.zeros((len(labels), 11), np.float32)
    targets[np.arange(len(labels)), labels] = 1
    targets[:, 10] = 1
    return targets


def no_digit_targets(count: int, doubt: float) -> np.ndarray:
    """Returns the targets of images without a whole digit, (count, 11) float32.

    Args:
        count: number of images.
        doubt: weight of equal probabilities of all digits.
    """
    targets = np.zeros((count, 11), np.float32)
    targets[:, :10] = doubt / 10
    return targets
