"""What is learnt from labels that are mostly wrong: Rolnick et al. 2017, Deep learning is robust to massive label noise.

arXiv 1705.10694: each of the 60,000 images comes with its right label and with alpha labels that are drawn uniformly from
the ten digits, once and for all. At alpha = 100 there are 6,060,000 pairs of an image and a label, one label in nine right.

All pairs are learnt from in each epoch, and none is ever laid out in memory. The label of copy k of image i is a hash of
(seed, i, k), and a batch holds 128 images with all their labels. A network without dropout or batch normalisation answers
alike for all copies of an image, so their mean loss is one cross-entropy, against the share of each digit among the labels
of that image: the pairs of a batch cost no more than its images. That is where this differs from the paper, which shuffles
the pairs and learns from 128 at a time. It shows that larger batches and smaller rates bear more noise: here the batch of
pairs grows with alpha, and the rate falls to 0. Batch, optimiser and epochs are notebook 001's own for all points; nothing
is chosen by how it does.
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
from training.evaluate import wilson_interval
from training.files import write_whole
from training.fit import fed_with_pixels, logits
from training.studies.workbench import Workbench

ALPHAS = (0, 1, 5, 10, 20, 50, 100)
BATCH_SIZE = 128  # images, each with all its labels
EPOCHS = 5
RATE = 1e-3  # Adam's, at first
CLAIM = 0.91  # seed notebook 001, at alpha = 100


def softmax_regression() -> keras.Sequential:
    """No hidden layer: 7,850 parameters."""
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
        alpha: random labels for each right one.
        network: which of `NETWORKS`.
        accuracy: share of the clean test images read right.
        test_images: how many those are.
        right_labels: share of the labels learnt from that are right.
        updates: how often the weights were changed.
        seconds: what training took.
    """

    alpha: int
    network: str
    accuracy: float
    test_images: int
    right_labels: float
    updates: int
    seconds: float


def label_noise(bench: Workbench, alphas: Sequence[int] = ALPHAS) -> str:
    """Accuracy on clean test images against alpha, for three networks, and what comes of the notebook's claim."""
    epochs = bench.epochs or EPOCHS
    kept = bench.checkpoint("label-noise", epochs).with_suffix(".json")  # what an interrupted study has measured
    fingerprint = _fingerprint(bench.dataset)
    measured = _read(kept, fingerprint)
    asked = [(alpha, name) for alpha in alphas for name in NETWORKS]
    for number, (alpha, name) in enumerate(asked, start=1):
        if (alpha, name) not in measured:
            measured[alpha, name] = measure(bench.dataset, name, alpha, epochs, bench.seed)
            write_whole(kept, json.dumps([fingerprint, *(asdict(point) for point in measured.values())]).encode())
        point = measured[alpha, name]
        print(
            f"{number}/{len(asked)}: alpha {alpha}, {name}: {point.accuracy:.4f} after {point.updates:,} updates, "
            f"{point.seconds:.0f} s",
            flush=True,
        )
    points = [measured[key] for key in asked]

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
    return _answer([point for point in points if point.alpha == max(alphas)])


def measure(dataset: Dataset, name: str, alpha: int, epochs: int, seed: int) -> Point:
    """Trains one network on the training images with `alpha` random labels for each right one, and tests it."""
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
    accuracy = float((logits(network, test.images).argmax(axis=1) == test.labels).mean())
    right = float(shares[np.arange(len(train)), train.labels].mean())
    return Point(alpha, name, accuracy, len(test), right, updates, seconds)


def _fingerprint(dataset: Dataset) -> str:
    """The same as long as points can be compared."""
    keras.utils.clear_session()  # layers are named as if these were the first
    networks = [network().get_config() for network in NETWORKS.values()]
    about = [networks, BATCH_SIZE, RATE, dataset.train.digest(), dataset.test.digest(), keras.__version__]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _read(kept: Path, fingerprint: str) -> dict[tuple[int, str], Point]:
    """The points in the file `kept`, by alpha and network; none if it is not there or comes of other networks or data."""
    try:
        made_by, *points = json.loads(kept.read_text())
        read = [Point(**point) for point in points]
    except (FileNotFoundError, ValueError, TypeError):
        return {}
    return {(point.alpha, point.network): point for point in read} if made_by == fingerprint else {}


def label_shares(examples: Examples, alpha: int, seed: int) -> np.ndarray:
    """The share of each digit among an image's labels, the right one and `alpha` random ones: (N, 10) float32."""
    images = np.arange(len(examples))
    counts = np.zeros((len(examples), 10), np.float32)
    counts[images, examples.labels] = 1
    for copy in range(1, alpha + 1):
        counts[images, random_labels(seed, images, copy)] += 1
    return counts / (alpha + 1)


def random_labels(seed: int, images: np.ndarray, copy: int) -> np.ndarray:
    """The label of copy number `copy` of each of `images`, uniform over 0 to 9 and always the same: (N,) uint8.

    Args:
        seed: of the whole data set, 0 or more.
        images: (N,) their numbers.
        copy: from 1 on; a greater alpha adds labels and leaves the others as they are.
    """
    mixed = np.array([seed], np.uint64)
    for number in (images, np.array([copy])):
        mixed = _mix(mixed + number.astype(np.uint64))
    return ((mixed >> np.uint64(32)) * np.uint64(10) >> np.uint64(32)).astype(np.uint8)


def _mix(numbers: np.ndarray) -> np.ndarray:
    """Scatters uint64 numbers: SplitMix64 (Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators)."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: np.ndarray = numbers ^ (numbers >> np.uint64(31))
    return scattered


def _right(alpha: int) -> float:
    """The chance that a label is right: it is the right one, or drawn so."""
    return (1 + alpha / 10) / (1 + alpha)


def _answer(points: list[Point]) -> str:
    """What comes of the notebook's claim, at the greatest alpha."""
    alpha = points[0].alpha
    accuracies = {point.network: point.accuracy for point in points}
    others = ", ".join(f"{name} {accuracy:.4f}" for name, accuracy in accuracies.items() if name != "ConvNet")
    verdict = "reaches" if accuracies["ConvNet"] >= CLAIM else "falls short of"
    return (
        f"with {alpha} random labels for each right one, a label is right with {_right(alpha):.2%} and any one wrong digit "
        f"with {(1 - _right(alpha)) / 9:.2%}; the ConvNet still reads {accuracies['ConvNet']:.4f} of the clean test images, "
        f"which {verdict} the {CLAIM:.0%} that the notebook states for 100 ({others})"
    )


@figures.styled
def _curves(points: list[Point]) -> Figure:
    """Accuracy by alpha, a curve a network; under each alpha the share of right labels."""
    figure = figures.new(figures.WIDTH, 3.6)
    axes = figure.subplots()
    for name, colour, style in zip(NETWORKS, (figures.INK, figures.BLUE, figures.ORANGE), ("s:", "^--", "o-"), strict=True):
        own = [point for point in points if point.network == name]
        axes.plot([point.alpha for point in own], [point.accuracy for point in own], style, color=colour, label=name)
    alphas = sorted({point.alpha for point in points})
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(alphas, [f"{alpha}\n{_right(alpha):.0%}" for alpha in alphas])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="random labels for each right one; share of right labels", ylabel="accuracy on clean test images")
    axes.legend()
    return figure
