"""Fixtures of the reports: a version, and the record, logits and page of a completed report."""

import copy
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training.calibrate import softmax
from training.dataset import Dataset
from training.evaluate import evaluate
from training.report import page


@pytest.fixture(scope="session")
def made(drawn: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version of low accuracy, with too few validation images to certify a threshold."""
    from training import pipeline
    from training.recipes import RECIPES

    recipe = replace(RECIPES["cnn8"], validation_images=100)
    return pipeline.run(recipe, drawn, 0, 2, tmp_path_factory.mktemp("models"))


@pytest.fixture
def version(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "version"))


@pytest.fixture(scope="session")
def logits(drawn: Dataset) -> NDArray[np.float64]:
    """Logits for the test images that are mostly correct, and sometimes confident of a wrong digit."""
    noise = np.random.default_rng(1).normal(0, 2.5, (len(drawn.test), 10))
    result: NDArray[np.float64] = noise + 6 * np.eye(10)[drawn.test.labels]
    return result


@pytest.fixture(scope="session")
def reported(made: Path, drawn: Dataset, logits: NDArray[np.float64]) -> dict[str, Any]:
    """The record of a version with these logits, as a report completes it."""
    tested = asdict(evaluate(softmax(logits, 1.25), drawn.test.labels))
    few = {"test_fields": 40, "test_accuracy": 0.975, "test_confidence": 0.9876}
    certified = {"threshold": 0.75, "coverage": 0.91, "errors": 3, "by_writer": 0.0123}
    certified |= {"test_coverage": 0.923, "test_error": 0.004, "test_errors": 1}
    return {
        **json.loads((made / "run.json").read_text()),
        "temperature": 1.25,
        "test": tested,
        "thresholds": {"0.01": certified, "0.005": certified, "0.002": {**certified, "test_error": 0.0}, "0.001": None},
        "fields": {"5": {**few, "thresholds": {"0.05": certified, "0.02": None}}},
        "robustness": [
            {"damage": "none", "amount": "", "accuracy": tested["accuracy"], "images": 200},
            {"damage": "shift", "amount": "2 px", "accuracy": 0.6543, "images": 200},
        ],
        "damage_mean": {"all": 0.6543, "severe": 0.6543},
        "sources": [
            {
                "name": "another hand",
                "images": 1234,
                "accuracy": 0.4567,
                "interval": [0.4, 0.5],
                "accuracy_by_digit": [0.321] * 9 + [None],
                "rate": "0.005",
                "accepted": 617,
                "wrong": 123,
            },
            {
                "name": "thick pens",
                "images": 100,
                "accuracy": 0.98,
                "interval": [0.93, 0.99],
                "accuracy_by_digit": [0.98] * 10,
                "rate": "0.005",
                "accepted": 0,
                "wrong": 0,
            },
        ],
    }


@pytest.fixture
def record(reported: dict[str, Any]) -> dict[str, Any]:
    """A copy of the record that a test may change."""
    return copy.deepcopy(reported)


@pytest.fixture(scope="session")
def content(reported: dict[str, Any], drawn: Dataset, logits: NDArray[np.float64]) -> str:
    """The page of this record."""
    return page(reported, drawn.test, logits)
