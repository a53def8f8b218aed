"""Counts the non-digits that models accept, while they are developed: `python -m tests.benchmarks.reading MODEL.onnx...`.

`digits-train report` measures the same for a finished version. Needs MNIST: --data or DIGITS_DATA, as in training.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from training.dataset import Examples, load_mnist
from training.evaluate import score
from training.non_digits import Kind, count_accepted, evaluation_kinds, table
from training.report import NON_DIGITS, SEED
from training.verify import Exported


def measure(path: Path, test: Examples, kinds: list[Kind]) -> None:
    """Prints what a model reads and accepts of the test digits, and what it accepts of each kind."""
    exported = Exported(path, threads=1)
    whole_threshold = float(exported.metadata.get("whole_threshold", 0))
    thresholds = {rate: found["threshold"] for rate, found in json.loads(exported.metadata["thresholds"]).items()}
    _, probabilities, whole = exported.outputs(test.images)
    confidence, correct = score(probabilities, test.labels)
    print(f"\n{path}: {correct.mean():.2%} of the test digits are read correctly")
    if whole is not None:
        print(f"{(whole < whole_threshold).mean():.2%} are refused as no digit")
        confidence = np.where(whole >= whole_threshold, confidence, 0)
    for rate, threshold in thresholds.items():
        accepted = confidence >= threshold
        print(f"at {float(rate):.1%}: {accepted.mean():.2%} accepted, {(accepted & ~correct).sum()} wrong")
    print(table(count_accepted(lambda images: exported.outputs(images)[1:], kinds, thresholds, whole_threshold)))


def main() -> None:
    """Measures all models on the same images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", help="ONNX files")
    parser.add_argument("--data", type=Path, default=os.environ.get("DIGITS_DATA"), help="mnist.npz")
    parser.add_argument("--images", type=int, default=NON_DIGITS, help="per kind (default: %(default)s)")
    options = parser.parse_args()
    test = load_mnist(options.data).test
    kinds = evaluation_kinds(test, SEED, options.images)
    for path in options.models:
        measure(path, test, kinds)


if __name__ == "__main__":
    main()
