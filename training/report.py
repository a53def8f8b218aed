"""The model card: what an operator should know before trusting a model, from the run record."""

from typing import Any


def model_card(record: dict[str, Any], source: str) -> str:
    """Markdown for people, from the run record that `pipeline.run` writes.

    After Mitchell et al. 2019, Model Cards for Model Reporting, arXiv 1810.03993.
    """
    test, verification = record["test"], record["verification"]
    low, high = test["interval"]
    worst = max(range(10), key=lambda digit: _errors(test["confusion"], digit))
    held_out = "of other writers" if record["validation_writers"] == "other" else "held out at random"
    calibration = (
        f"temperature {record['temperature']:.4f}, fitted on {record['validation_images']:,} training images {held_out}"
        if record["validation_images"]
        else "none: the recipe holds no images out, so take confidences as rough"
    )
    return f"""# {record["recipe"]}

Reads one handwritten digit from a 28x28 image framed as MNIST frames them: white ink (255) on black paper (0).

| | |
|---|---|
| recipe | `{record["recipe"]}` ({source}), seed {record["seed"]}, {record["epochs"]} epochs, batch {record["batch_size"]} |
| parameters | {record["parameters"]:,} |
| trained on | {record["training_images"]:,} MNIST training images (sha256 {record["dataset_sha256"][:8]}…) |
| test accuracy | **{test["accuracy"]:.4f}** on the {test["images"]:,} MNIST test images, 95 % interval {low:.4f} to {high:.4f} |
| most often misread | {worst}: {_errors(test["confusion"], worst)} of {sum(test["confusion"][worst])} |
| calibration | {calibration} |
| calibration error | {test["calibration_error"]:.4f} expected, negative log-likelihood {test["negative_log_likelihood"]:.4f} nats |
| ONNX against Keras | same digit on all {verification["images"]:,} images, largest probability difference {verification["largest_difference"]:.1e} |
| training time | {record["fit_seconds"]:,.0f} s on {record["machine"]} |
| code | commit {record["commit"]}, {record["created"]} |

The test images are judged once, after training, and the program chooses nothing by them: neither epoch, nor temperature,
nor anything else. The writers of MNIST were American
census workers and high-school students around 1990: other hands, pens, scanners and framings will be read less well, and
the confidence is calibrated for images like these only. Not meant for anything but digits: it answers with a digit
whatever it is shown.
"""


def _errors(confusion: list[list[int]], digit: int) -> int:
    return sum(confusion[digit]) - confusion[digit][digit]
