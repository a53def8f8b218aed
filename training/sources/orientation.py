"""Notices images that are transposed, turned or mirrored, as EMNIST's files are."""

from collections.abc import Callable

import numpy as np

from training.dataset import Dataset, DatasetError, Examples

# Mean image of each digit of MNIST's training images, in 7x7 cells of 4x4 pixels: 10 x 49 grey levels in hexadecimal. By the
# most similar mean image, 79 % of MNIST's test images are read correctly, and 48 % of scikit-learn's digits. Turned or
# mirrored, at most 42 % and 21 % of the same images are.
_MEANS = bytes.fromhex(
    "000000010100000002247a862900001480786c7604004680133080080067622173580300369e9b5f0f0000010607010000"
    "000000000000000000043f480d00000003714f0300000004a71b00000000229b0a00000006436510010000000405010000"
    "0000040b060100000d5088711700000e2a357525000008295e751702013c8ca779390901327357452a0400000101010000"
    "0000010201000000135888651100010f2a617f16000004469d7f130002131823792c000332788c69100000041012040000"
    "0000000000000000051a192b2102001464316e2b0100339b65a22101001b4d7f7211000001144c3b08000000050d090100"
    "00000000010000000322535a3b0a000b6570412609001079774b0e0000182539611f0100206d7d550f0000010d11050000"
    "00000514180500000220634109000007525f190c000013856b7d440400169c8d8a410200043e733e070000000000000000"
    "00000000000000000718221e080004348487a631000114212692160000030e6d5c060000022a74220100000527330e0100"
    "0000000000000000032771702602000e6961764305000752b2711101000b6b83500e0000167b8a500b0000011118060000"
    "000000000000000001104336070000117765851f0000237d6fa11200000933696607000001165a3a070000011324160400"
)
_SAMPLE = 10_000  # images; more would not change the result
_SIGMAS = 4  # of the difference of two shares
_LEAST = 0.3  # share read correctly that makes an orientation plausible, far below the shares above

_TRANSPOSED = "transposed"
_UPRIGHT: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # by what happened to the images, how to undo it
    _TRANSPOSED: lambda images: images.transpose(0, 2, 1),
    "turned clockwise by 90 degrees": lambda images: np.rot90(images, 1, (1, 2)),
    "upside down": lambda images: np.rot90(images, 2, (1, 2)),
    "turned counterclockwise by 90 degrees": lambda images: np.rot90(images, 3, (1, 2)),
    "mirrored": lambda images: images[:, :, ::-1],
    "mirrored and upside down": lambda images: images[:, ::-1],
    "mirrored and turned": lambda images: np.rot90(images.transpose(0, 2, 1), 2, (1, 2)),
}


def require_upright(dataset: Dataset) -> None:
    """Checks that the images of both parts look more like digits as they are than turned or mirrored.

    Each image is read as the digit whose mean image is most similar. The images are refused if significantly more of them
    are read correctly in another orientation.

    Raises:
        DatasetError: they are; the message names the orientation and the remedy. Where hardly any image is read correctly in
            that orientation either, the images are framed otherwise, and the message says so.
    """
    for part, examples in (("training", dataset.train), ("test", dataset.test)):
        _require_upright(f"{dataset.name}: the {part} images", examples, alone=part == "test")


def _require_upright(name: str, examples: Examples, alone: bool) -> None:
    """Checks one part. `alone` is True if the other part is upright."""
    step = max(1, len(examples) // _SAMPLE)
    images, labels = examples.images[::step], examples.labels[::step]
    upright = _read_correctly(images, labels)
    correct = {turn: _read_correctly(apply(images), labels) for turn, apply in _UPRIGHT.items()}
    turn = max(correct, key=lambda name: int(correct[name].sum()))
    difference = correct[turn].astype(int) - upright
    if difference.sum() > _SIGMAS * np.sqrt(np.abs(difference).sum()):
        shares = f"{correct[turn].mean():.0%} of them {{}}, and {upright.mean():.0%} as they are"
        compared = "a simple comparison with MNIST's digits reads"
        if correct[turn].mean() < _LEAST:
            raise DatasetError(
                f"{name} do not look like framed digits: {compared} {shares.format(turn)}. Expected digits in 20x20 pixels, "
                "with the centre of mass in the middle; a folder of pictures is framed when it is read"
            )
        remedy = "EMNIST's files are: add --transposed" if turn == _TRANSPOSED else "turn them back"
        remedy = "the training images are not: turn them alike" if alone else remedy
        raise DatasetError(f"{name} seem to be {turn}: {compared} {shares.format('so')}; {remedy}")


def _read_correctly(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Tests for each image if the digit with the most similar mean image, by correlation, is its label: (N,) bool."""
    means = _normalised(np.frombuffer(_MEANS, np.uint8).reshape(10, 49))
    cells = images.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4), dtype=np.float32).reshape(-1, 49)
    read: np.ndarray = (_normalised(cells) @ means.T).argmax(axis=1) == labels
    return read


def _normalised(cells: np.ndarray) -> np.ndarray:
    centred = cells - cells.mean(axis=1, keepdims=True, dtype=np.float32)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    normalised: np.ndarray = centred / np.maximum(lengths, 1e-6)
    return normalised
