"""Table of what framing makes of crops, kind by kind: `python -m tests.benchmarks.framing [--source OTHER_CHECKOUT]`.

Draws crops of each kind, frames them, and reads them with the newest bundled model at the default certified error rate. A
crop is rejected where it can't be decoded, where framer or model find no ink or no whole digit, or where it is read below
the threshold. Digits come from MNIST's test images where DIGITS_DATA names a copy, else from the bundled samples.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
SEED = 7
TARGET_ERROR_RATE = 0.005  # the service's default


@dataclass(frozen=True)
class Outcome:
    """What became of one crop.

    Attributes:
        content: the file.
        truth: the digit, or None where the crop shows no single digit.
        digit: the digit that was accepted, or None for a rejection.
        whole: the framer found one whole digit.
        image: (28, 28) uint8, as the model saw it.
    """

    content: bytes
    truth: int | None
    digit: int | None
    whole: bool
    image: NDArray[np.uint8]


def load_framer(source: Path) -> Callable[[bytes], Any]:
    """Returns `frame_crop` of a checkout, whose packages are imported from then on."""
    sys.path.insert(0, str(source.resolve()))
    with_crop = (source / "serving" / "imaging" / "crop.py").exists()  # `frame_crop` was in decode.py before
    framer: Callable[[bytes], Any] = import_module(f"serving.imaging.{'crop' if with_crop else 'decode'}").frame_crop
    return framer


def frame_all(frame_crop: Callable[[bytes], Any], contents: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Frames n crops; one that is refused is blank. Returns images, (n, 28, 28), and whether each is a whole digit, (n,)."""
    images = np.zeros((len(contents), 28, 28), np.uint8)
    whole = np.ones(len(contents), bool)
    for index, content in enumerate(contents):
        try:
            framed = frame_crop(content)
        except Exception as error:
            if type(error).__name__ != "CropError":
                raise
            continue
        if isinstance(framed, tuple):
            images[index], whole[index] = framed
        else:  # checkouts before `whole`
            images[index] = framed
    return images, whole & images.any(axis=(1, 2))


def accepted_digits(model: Any, images: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Reads images, (n, 28, 28), as the service of the checkout does; returns digits, (n,), -1 for a rejection."""
    from serving.answers.decision import Decision
    from serving.inference import classifier
    from serving.recognition.policy import choose, decide

    rows, threshold = model.classify(images), choose(model.metadata.thresholds, TARGET_ERROR_RATE)
    if hasattr(classifier, "SHOWS"):
        decisions = decide(rows[:, classifier.CONFIDENCE], rows[:, classifier.SHOWS].astype(np.uint8), threshold)
        return np.where(decisions == Decision.ACCEPT, rows[:, classifier.DIGIT], -1).astype(np.intp)
    confident = rows[:, 21] >= np.float64(threshold.confidence if threshold else np.inf)
    return np.where(confident, rows[:, 20], -1).astype(np.intp)  # the columns of checkouts before `whole`


def recognize_kind(
    draw: Any, count: int, source: Any, model: Any, frame_crop: Callable[[bytes], Any], truths: bool
) -> list[Outcome]:
    """Draws `count` crops of one kind and reads them."""
    random = np.random.default_rng(SEED)
    pictures, labels = source
    contents = [draw(pictures[index % len(pictures)], random) for index in range(count)]
    images, whole = frame_all(frame_crop, contents)
    digits = np.where(whole, accepted_digits(model, images), -1)
    return [
        Outcome(
            content,
            int(labels[index % len(labels)]) if truths else None,
            int(digits[index]) if digits[index] >= 0 else None,
            bool(whole[index]),
            images[index],
        )
        for index, content in enumerate(contents)
    ]


def main(arguments: list[str] | None = None) -> dict[str, list[Outcome]]:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.framing", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--source", type=Path, default=ROOT, help="checkout whose serving/ frames and reads")
    parser.add_argument("--count", type=int, default=200, help="crops of each kind")
    parser.add_argument("--kinds", default="", help="only kinds whose name holds this text")
    options = parser.parse_args(arguments)
    frame_crop = load_framer(options.source)

    from serving.inference.model import open_model
    from serving.repository import versions
    from tests.imaging.digit_crops import DIGIT_KINDS
    from tests.imaging.other_crops import MARK_KINDS, OTHER_KINDS
    from tests.imaging.source_digits import load_digits

    version = versions.latest(options.source.resolve() / "serving" / "models")
    model = open_model(version.path.read_bytes(), str(version.number))
    source = load_digits(options.count, SEED)
    outcomes: dict[str, list[Outcome]] = {}
    for title, kinds, truths in (
        ("one digit", DIGIT_KINDS, True),
        ("no digit", OTHER_KINDS, False),
        ("marks", MARK_KINDS, False),
    ):
        print(f"\n| {title} | n | read right | rejected | of these by framing | accepted wrongly |")
        print("|---|---:|---:|---:|---:|---:|")
        for name, draw in kinds.items():
            if options.kinds in name:
                outcomes[name] = recognize_kind(draw, options.count, source, model, frame_crop, truths)
                print(row(name, outcomes[name]), flush=True)
        shown = [row for name in kinds for row in outcomes.get(name, [])]
        if shown:
            print(row("all", shown))
    return outcomes


def row(name: str, outcomes: list[Outcome]) -> str:
    """Returns one row of the table."""
    n = len(outcomes)
    right = sum(one.digit is not None and one.digit == one.truth for one in outcomes)
    rejected = sum(one.digit is None for one in outcomes)
    unsure = sum(not one.whole for one in outcomes)
    shares = [f"{100 * count / n:.1f} %" for count in (right, rejected, unsure, n - right - rejected)]
    return f"| {name} | {n} | {' | '.join(shares)} |"


if __name__ == "__main__":
    main()
