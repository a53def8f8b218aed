"""Measures models in development on non-digits, other sources and damage: `python -m tests.benchmarks.reading MODEL.onnx`.

`digits-train report` measures the same for a finished version. Needs MNIST: --data or DIGITS_DATA, as in training.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from training.damage import SEVERE
from training.dataset import Examples
from training.evaluate import score
from training.exported import Exported
from training.non_digits import Kind, count_accepted, evaluation_kinds, table
from training.report import NON_DIGITS, SEED
from training.robustness import mean_accuracy, robustness, sources
from training.sources import load_dataset

FIELD = 5  # digits


def measure(path: Path, test: Examples, kinds: list[Kind], others: list[tuple[str, Examples]], damaged: bool) -> None:
    """Prints what a model reads and accepts of each source and each kind and, if `damaged`, of damaged test images."""
    exported = Exported(path, threads=1)
    thresholds = {rate: found["threshold"] for rate, found in json.loads(exported.metadata["thresholds"]).items()}
    print(f"\n{path}")
    for name, source in [("test images", test), *others]:
        probabilities, confidence, whole = exported.decisions(source.images)
        _, correct = score(probabilities, source.labels)
        print(f"{name}: {correct.mean():.2%} of {len(source):,} read correctly, {(~whole).mean():.2%} refused as no digit")
        for rate, threshold in thresholds.items():
            accepted = confidence >= np.float64(threshold)
            print(f"  at {float(rate):.1%}: {accepted.mean():.2%} accepted, {(accepted & ~correct).sum()} wrong")
    print(table(count_accepted(exported.decisions, kinds, thresholds)))
    print_fields(exported, test, kinds)
    if damaged:
        rows = robustness(lambda images: exported.answers(images)[1], test, SEED)
        for row in rows:
            print(f"{row['damage']:20}{row['amount']:20}{row['accuracy']:9.2%}")
        print(f"{'mean of all kinds of damage':40}{mean_accuracy(rows):9.2%}")
        print(f"{'mean of the severe kinds':40}{mean_accuracy(rows, SEVERE):9.2%}")


def print_fields(exported: Exported, test: Examples, kinds: list[Kind]) -> None:
    """Prints the share of fields that are accepted although one of their five pieces is no digit, by group of kinds."""
    certified = json.loads(exported.metadata["field_thresholds"])[str(FIELD)]
    random = np.random.default_rng(SEED)
    digits = exported.decisions(test.images).confidence.astype(np.float64)
    for group in dict.fromkeys(kind.group for kind in kinds):
        rubbish = exported.decisions(np.concatenate([kind.images for kind in kinds if kind.group == group])).confidence
        fields = rubbish * digits[random.integers(len(digits), size=(len(rubbish), FIELD - 1))].prod(axis=1)
        shares = ", ".join(
            f"{(fields >= found['threshold']).mean():.1%} at {float(rate):.1%}" for rate, found in certified.items()
        )
        print(f"fields of {FIELD} accepted with one piece of a kind that is {group}: {shares}")


def main() -> None:
    """Measures all models on the same images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", help="ONNX files")
    parser.add_argument("--data", default=os.environ.get("DIGITS_DATA"), help="mnist.npz")
    parser.add_argument("--images", type=int, default=NON_DIGITS, help="per kind (default: %(default)s)")
    parser.add_argument("--damage", action="store_true", help="also measure the accuracy under damage, which takes minutes")
    options = parser.parse_args()
    test = load_dataset(options.data).test
    kinds = evaluation_kinds(test, SEED, options.images)
    others = sources(test)
    for path in options.models:
        measure(path, test, kinds, others, options.damage)


if __name__ == "__main__":
    main()
