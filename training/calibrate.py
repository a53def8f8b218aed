"""Temperature scaling: makes a network's confidence agree with its accuracy."""

import numpy as np


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Finds the temperature T for which softmax(logits / T) gives `labels` the highest likelihood.

    Division by one number changes no predicted digit, and brings the average confidence in line with the accuracy. The
    search is a golden-section search over log T between 0.1 and 10; the likelihood has a single peak in 1 / T.

    Args:
        logits: (N, 10) float32, for images that the network was not trained on.
        labels: (N,) true digits.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599.
    """

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(softmax(logits, np.exp(log_temperature)), labels)

    ratio = (5**0.5 - 1) / 2
    low, high = np.log(0.1), np.log(10.0)
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Returns calibrated probabilities, (N, 10) float64."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean over the images of -log p(true digit), in nats; lower is better."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-30)).mean())
