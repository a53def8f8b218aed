"""The loss of eleven outputs, by hand."""

import numpy as np
import pytest

from training.objective import WholeDigit, accuracy, whole_targets


def test_the_loss_is_that_of_the_digit_plus_that_of_whole() -> None:
    outputs = np.zeros((2, 11), np.float32)
    outputs[:, 10] = 2
    targets = np.stack([whole_targets(np.array([3]))[0], np.zeros(11, np.float32)])
    digit, rubbish = np.asarray(WholeDigit().call(targets, outputs))
    assert digit == pytest.approx(np.log(10) + np.log(1 + np.exp(-2)))
    assert rubbish == pytest.approx(np.log(1 + np.exp(2))), "rubbish has no digit to be wrong about"


def test_accuracy_counts_read_digits_and_refused_rubbish() -> None:
    outputs = np.zeros((4, 11), np.float32)
    outputs[0, 3] = outputs[1, 4] = 5
    outputs[:, 10] = [-1, 1, -1, 1]
    targets = np.concatenate([whole_targets(np.array([3, 3])), np.zeros((2, 11), np.float32)])
    np.testing.assert_array_equal(np.asarray(accuracy(targets, outputs)), [1, 0, 1, 0])
