"""Runs the learning loop once: `make loop`. It needs MNIST, and takes as long as training `folded`.

A service runs the bundled `digits` and gets mail unlike its training data: the UCI digits from scikit-learn, with
thickened strokes. Rejected images are keyed, accepted ones are audited, and both kinds are captured. `digits-train` trains
on these images and compares the two versions. If the new version is not worse, it becomes a canary beside the old one, and
later mail shows the accuracy of both. This mail is captured, too. `digits-train` certifies the new version on it: the
thresholds of its training were certified on MNIST. The certified version then answers alone.

A trial as short as this one audits every accepted answer. At an audit rate of 1 %, a hundred times the mail would be needed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import grey_dilation

from serving.client import DigitClient, Recognition
from serving.imaging.framing import frame
from serving.repository import versions
from serving.settings import BUNDLED
from tests.support.service import Service, service

FIRST = 600  # images of the mail before the training; the rest comes after it
AUDIT_RATE = 1.0
RISK = 0.1  # instead of 0.001: the mail after the training has only 1,197 images
TRAIN = (sys.executable, "-m", "training")


def mail() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns thick digits, (1797, 28, 28) uint8, framed as MNIST frames them, and their labels, in random order."""
    from training.robustness import second_source  # only here: the training package is not needed for --help

    examples = second_source()
    order = np.random.default_rng(0).permutation(len(examples))
    broad = grey_dilation(examples.images[order], (1, 3, 3))
    return np.stack([frame(image / 255) for image in broad]), examples.labels[order]


def split_into_fives(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], list[str]]]:
    """Yields five images at a time, with their digits as text."""
    for start in range(0, len(images), 5):
        yield images[start : start + 5], [str(label) for label in labels[start : start + 5].tolist()]


def process_mail(client: DigitClient, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Sends the mail to the service, keys the rejected images, and audits the ones marked for audit."""
    counts = {"correct": 0, "rejected": 0, "audited": 0}
    for batch, digits in split_into_fives(images, labels):
        answers = client.recognize_batch(batch)
        truths: dict[str, list[tuple[Recognition, str]]] = {"keying": [], "audit": []}
        for answer, digit in zip(answers, digits, strict=True):
            counts["correct"] += str(answer.digit) == digit
            if answer.audit:
                truths["audit"].append((answer, digit))
            elif answer.decision.name != "ACCEPT":
                truths["keying"].append((answer, digit))
        for source, reported in truths.items():
            if reported:
                client.report_truth(reported, source)
        counts["rejected"] += len(truths["keying"])
        counts["audited"] += len(truths["audit"])
    accuracy = counts["correct"] / len(images)
    print(
        f"mail       {len(images):,} images, accuracy {accuracy:.4f}; "
        f"{counts['rejected']} rejected and keyed, {counts['audited']} audited"
    )


def route(server: Service, model: Path, routing: str, version: str, role: str) -> None:
    """Writes routing.toml and waits until `version` has the role `role`, "stable" or "canary"."""
    draft = model / ".routing"
    draft.write_text(routing)
    draft.rename(model / "routing.toml")
    end = time.monotonic() + 60
    while not server.scrape("digits_model_role", version=version, role=role):
        if time.monotonic() > end:
            sys.exit(f"version {version} did not become {role} within 60 seconds; see the service's log for a refusal")
        time.sleep(0.1)


def compare_live(server: Service, images: NDArray[np.uint8], labels: NDArray[np.uint8], names: dict[str, str]) -> None:
    """Sends more mail to both versions, reports its truth, and prints the accuracy in /metrics."""
    with DigitClient(server.address, 60) as client:
        for number, (batch, truth) in enumerate(split_into_fives(images, labels)):
            answers = client.recognize_batch(batch, key=f"piece {number}")
            client.report_truth(list(zip(answers, truth, strict=True)), "replay")
    for version, name in names.items():
        selected = {"version": version, "source": "replay"}
        accepted = server.scrape("digits_truth_total", decision="accept", **selected)
        wrong = server.scrape("digits_truth_total", decision="accept", outcome="wrong", **selected)
        count, accuracy = server.scrape("digits_truth_total", **selected), server.scrape("digits_accuracy_ratio", **selected)
        print(
            f"{name:10} {count:,.0f} images, accuracy {accuracy:.4f}; "
            f"{accepted / count:.2%} accepted, {wrong:.0f} of these wrong"
        )


def digits_train(*arguments: str) -> str:
    """Runs a `digits-train` command and prints its output; exits if it fails.

    Returns:
        The number of the version that the command has published; "" if it publishes none.
    """
    print(f"$ digits-train {' '.join(arguments)}", flush=True)
    with subprocess.Popen([*TRAIN, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
    if process.returncode:
        sys.exit(process.returncode)
    return "".join(re.findall(r"published +\S+/(\d+)$", "".join(lines), re.MULTILINE))


def main() -> None:
    """Runs the loop once and prints the results of each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="folded", help="recipe to train (default: %(default)s)")
    parser.add_argument("--epochs", help="passes over the training images; fewer make a quick version of low accuracy")
    options = parser.parse_args()
    images, labels = mail()
    with tempfile.TemporaryDirectory() as directory:
        store, model = f"sqlite:///{directory}/captured.db", Path(directory) / "models" / "digits"
        bundled = versions.scan(BUNDLED)["digits"].versions
        old = str(min(bundled))  # the float32 version; the new one is float32 too
        shutil.copytree(bundled[int(old)].path.parent, model / old)
        (model / "routing.toml").write_text(f"stable = {old}\n")  # without it, the new version would serve at once
        flags = ("--models", str(model.parent), "--capture", store, "--audit-rate", str(AUDIT_RATE), "--workers", "1")
        with service(*flags) as server:
            with DigitClient(server.address, 60) as client:
                process_mail(client, images[:FIRST], labels[:FIRST])
            for record in ("image", "truth"):
                print(f"captured   {server.scrape('digits_captured_total', record=record, outcome='stored'):.0f} {record}s")
            epochs = ("--epochs", options.epochs) if options.epochs else ()
            new = digits_train(
                *("run", options.recipe, *epochs, "--models", str(model.parent), "--captured", store),
                "--replace",  # routing.toml decides what answers
            )
            digits_train("compare", str(model / old), str(model / new), "--captured", store)
            route(server, model, f"stable = {old}\n[canary]\nversion = {new}\npercent = 50\n", new, "canary")
            print(f"canary     {new} answers half of the calls, {old} the other half")
            compare_live(server, images[FIRST:], labels[FIRST:], {old: "stable", new: "canary"})
            capture = ("--captured", store, "--audit-rate", str(AUDIT_RATE))
            certified = digits_train("certify", str(model / new), *capture, "--risk", str(RISK), "--replace")
            route(server, model, f"stable = {certified}\n", certified, "stable")
            print(f"stable     {certified}, the network of {new} with thresholds certified on this mail, answers alone")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # must be set before TensorFlow is loaded
    main()
