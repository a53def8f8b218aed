import numpy as np
import pytest

from training.certify import certify
from training.whole import WHOLE_LOSS, fix_whole_threshold, is_whole, split_heads


def test_outputs_of_ten_columns_have_no_second_head() -> None:
    outputs = np.ones((3, 10), np.float32)
    logits, whole = split_heads(outputs)
    assert logits is outputs
    assert whole is None


def test_the_eleventh_column_is_the_logit_of_one_whole_digit() -> None:
    outputs = np.zeros((3, 11), np.float32)
    outputs[:, 10] = [0, np.log(3), -1000]
    logits, whole = split_heads(outputs)
    assert logits.shape == (3, 10)
    assert whole is not None
    assert whole.dtype == np.float32
    assert whole == pytest.approx([0.5, 0.75, 0])


@pytest.mark.parametrize(("digits", "refused"), [(10_000, 10), (1_999, 1), (50, 1)])
def test_the_whole_threshold_refuses_its_share_of_the_digits(digits: int, refused: int) -> None:
    assert WHOLE_LOSS == 0.001
    whole = np.random.default_rng(1).permutation(np.linspace(0.2, 0.9, digits, dtype=np.float32))
    threshold = fix_whole_threshold(whole)
    assert (whole < threshold).sum() == refused
    last = np.sort(whole)[refused - 1]
    assert last < threshold <= last + 1.1e-6, "the threshold depends on the last refused digit alone"


def test_a_head_that_is_sure_of_every_digit_refuses_none() -> None:
    sure = np.ones(1_000, np.float32)
    assert fix_whole_threshold(sure) == 1
    assert is_whole(sure, fix_whole_threshold(sure)).all()


def test_a_probability_is_compared_with_the_threshold_as_it_is() -> None:
    assert is_whole(np.array([0.1, 0.7], np.float32), 0.1).tolist() == [True, True]
    assert is_whole(np.array([0.7], np.float32), 0.7).tolist() == [False], "the nearest float32 is below 0.7"


def test_thresholds_certified_on_the_same_images_keep_their_promise() -> None:
    # Digits that the head doubts are wrong more often. What is accepted must have an error of at most 5 %, in 90 % of draws.
    random, draws, broken = np.random.default_rng(1), 500, 0
    for _ in range(draws):
        whole, confidence = random.random((2, 1_000)).astype(np.float32)
        correct = random.random(1_000) >= 0.2 * (1 - confidence) * (2 - whole)
        kept = whole >= fix_whole_threshold(whole)
        found = certify(np.where(kept, confidence, np.float32(0)), correct, 0.05, 0.1)
        if found:  # above a threshold t, with whole uniform from the threshold to 1
            mean_doubt = 2 - (1 + fix_whole_threshold(whole)) / 2
            broken += 0.2 * (1 - found.threshold) / 2 * mean_doubt > 0.05
    assert broken / draws <= 0.1 + 3 * (0.1 * 0.9 / draws) ** 0.5
