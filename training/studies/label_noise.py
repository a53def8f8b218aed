"""Learning from labels that are mostly wrong, after Rolnick et al. 2017, Deep learning is robust to massive label noise.

In arXiv 1705.10694, each of the 60,000 images has its right label and alpha labels drawn uniformly from the ten digits,
fixed before training. At alpha = 100 there are 6,060,000 pairs of an image and a label, one label in nine right.

Each epoch trains on all pairs, but they never exist in memory together. The label of copy k of image i is a hash of
(seed, i, k), and a batch holds 128 images with all their labels. A network without dropout or batch normalisation gives the
same output for all copies of an image. Their mean loss is therefore one cross-entropy against the share of each digit among
the image's labels, and the pairs of a batch cost no more than its images.

This differs from the paper, which shuffles the pairs and trains on 128 at a time, and which shows that larger batches and
smaller rates tolerate more noise. Here the batch of pairs grows with alpha, and the rate falls to 0. Batch size, optimiser
and epochs are notebook 001's for all points; no choice depends on the results.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers
from matplotlib.figure import Figure

from training import architectures, figures
from training.dataset import Dataset, Examples
from training.evaluate import predict_logits, wilson_interval
from training.files import write_whole
from training.fit import fed_with_pixels
from training.studies.workbench import Workbench

ALPHAS = (0, 1, 5, 10, 20, 50, 100)
BATCH_SIZE = 128  # images, each with all its labels
EPOCHS = 5
RATE = 1e-3  # Adam's initial rate
CLAIM = 0.91  # accuracy that seed notebook 001 claims at alpha = 100


def softmax_regression() -> keras.Sequential:
    """Returns a network without a hidden layer: 7,850 parameters."""
    return keras.Sequential([keras.Input((28, 28, 1)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(10)])


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "softmax regression": softmax_regression,
    "MLP": architectures.dense512,
    "ConvNet": architectures.convnet,
}


@dataclass(frozen=True)
class Point:
    """One network, trained at one level of noise.

    Attributes:
        alpha: number of random labels per right label.
        network: name of the network in `NETWORKS`.
        accuracy: accuracy on the clean test images.
        test_images: number of test images.
        right_labels: share of the training labels that are right.
        updates: number of weight updates.
        seconds: training time.
    """

    alpha: int
    network: str
    accuracy: float
    test_images: int
    right_labels: float
    updates: int
    seconds: float


def label_noise(bench: Workbench, alphas: Sequence[int] = ALPHAS) -> str:
    """Measures the accuracy on clean test images against alpha, for three networks, and tests the notebook's claim."""
    epochs = bench.epochs or EPOCHS
    checkpoint = bench.checkpoint("label-noise", epochs).with_suffix(".json")  # the points of an interrupted study
    fingerprint = _fingerprint(bench.dataset)
    measured = _read(checkpoint, fingerprint)
    keys = [(alpha, name) for alpha in alphas for name in NETWORKS]
    for number, (alpha, name) in enumerate(keys, start=1):
        if (alpha, name) not in measured:
            measured[alpha, name] = measure(bench.dataset, name, alpha, epochs, bench.seed)
            write_whole(checkpoint, json.dumps([fingerprint, *(asdict(point) for point in measured.values())]).encode())
        point = measured[alpha, name]
        print(
            f"{number}/{len(keys)}: alpha {alpha}, {name}: {point.accuracy:.4f} after {point.updates:,} updates, "
            f"{point.seconds:.0f} s",
            flush=True,
        )
    points = [measured[key] for key in keys]

    bench.picture("label-noise", _curves(points))
    bench.table(
        "label-noise",
        ["alpha", "network", "accuracy", "low", "high", "right_labels", "updates", "batch_pairs", "seconds"],
        [
            [
                *(point.alpha, point.network, point.accuracy),
                *(f"{bound:.4f}" for bound in wilson_interval(round(point.accuracy * point.test_images), point.test_images)),
                *(f"{point.right_labels:.4f}", point.updates, BATCH_SIZE * (point.alpha + 1), f"{point.seconds:.1f}"),
            ]
            for point in points
        ],
    )
    return _finding([point for point in points if point.alpha == max(alphas)])


def measure(dataset: Dataset, name: str, alpha: int, epochs: int, seed: int) -> Point:
    """Trains one network on the training images with `alpha` random labels per right label, and tests it."""
    train, test = dataset.train, dataset.test
    shares = label_shares(train, alpha, seed)
    keras.utils.set_random_seed(seed)
    network = NETWORKS[name]()
    trainer = fed_with_pixels(network)
    updates = epochs * -(-len(train) // BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(RATE, updates)
    trainer.compile(keras.optimizers.Adam(rate), keras.losses.CategoricalCrossentropy(from_logits=True))
    began = time.monotonic()
    trainer.fit(train.images, shares, batch_size=BATCH_SIZE, epochs=epochs, verbose=1 if sys.stdout.isatty() else 0)
    seconds = time.monotonic() - began
    accuracy = float((predict_logits(network, test.images).argmax(axis=1) == test.labels).mean())
    right = float(shares[np.arange(len(train)), train.labels].mean())
    return Point(alpha, name, accuracy, len(test), right, updates, seconds)


def _fingerprint(dataset: Dataset) -> str:
    """Returns a hash that is equal for comparable points."""
    keras.utils.clear_session()  # resets the layer names, which the hash includes
    networks = [network().get_config() for network in NETWORKS.values()]
    settings = [networks, BATCH_SIZE, RATE, dataset.train.digest(), dataset.test.digest(), keras.__version__]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _read(checkpoint: Path, fingerprint: str) -> dict[tuple[int, str], Point]:
    """Reads the points of an earlier run, by alpha and network; empty if the file is missing or of other data."""
    try:
        made_by, *values = json.loads(checkpoint.read_text())
        points = [Point(**point) for point in values]
    except (FileNotFoundError, ValueError, TypeError):
        return {}
    return {(point.alpha, point.network): point for point in points} if made_by == fingerprint else {}


def label_shares(examples: Examples, alpha: int, seed: int) -> np.ndarray:
    """Returns the share of each digit among an image's labels, one right and `alpha` random ones: (N, 10) float32."""
    images = np.arange(len(examples))
    counts = np.zeros((len(examples), 10), np.float32)
    counts[images, examples.labels] = 1
    for copy in range(1, alpha + 1):
        counts[images, random_labels(seed, images, copy)] += 1
    return counts / (alpha + 1)


def random_labels(seed: int, images: np.ndarray, copy: int) -> np.ndarray:
    """Returns the label of copy number `copy` of each of `images`, uniform over 0 to 9 and reproducible: (N,) uint8.

    Args:
        seed: of the whole data set, 0 or more.
        images: (N,) image numbers.
        copy: copy number from 1; a larger alpha adds copies and leaves the existing ones unchanged.
    """
    mixed = np.array([seed], np.uint64)
    for number in (images, np.array([copy])):
        mixed = _mix(mixed + number.astype(np.uint64))
    return ((mixed >> np.uint64(32)) * np.uint64(10) >> np.uint64(32)).astype(np.uint8)


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Scatters uint64 numbers by SplitMix64 (Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators)."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: np.ndarray = numbers ^ (numbers >> np.uint64(31))
    return scattered


def _right(alpha: int) -> float:
    """Returns the probability that a label is right: it is the original one, or a random one that happens to be right."""
    return (1 + alpha / 10) / (1 + alpha)


def _finding(points: list[Point]) -> str:
    """Compares the accuracy at the largest alpha with the notebook's claim."""
    alpha = points[0].alpha
    accuracies = {point.network: point.accuracy for point in points}
    others = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in accuracies.items() if name != "ConvNet")
    verdict = "reaches" if accuracies["ConvNet"] >= CLAIM else "falls short of"
    return (
        f"with {alpha} random labels per right label, {_right(alpha):.2%} of the labels are right and "
        f"{(1 - _right(alpha)) / 9:.2%} are each wrong digit; the ConvNet still reaches an accuracy of "
        f"{accuracies['ConvNet']:.4f} on the clean test images, which {verdict} the {CLAIM:.0%} that the notebook claims "
        f"for 100 ({others})"
    )


@figures.styled
def _curves(points: list[Point]) -> Figure:
    """Plots accuracy by alpha, one curve per network, with the share of right labels below each alpha."""
    figure = figures.new(figures.WIDTH, 3.6)
    axes = figure.subplots()
    for name, colour, style in zip(NETWORKS, (figures.INK, figures.BLUE, figures.ORANGE), ("s:", "^--", "o-"), strict=True):
        own = [point for point in points if point.network == name]
        axes.plot([point.alpha for point in own], [point.accuracy for point in own], style, color=colour, label=name)
    alphas = sorted({point.alpha for point in points})
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(alphas, [f"{alpha}\n{_right(alpha):.0%}" for alpha in alphas])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="random labels per right label; share of right labels", ylabel="accuracy on clean test images")
    axes.legend()
    return figure
