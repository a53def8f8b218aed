"""The learning loop, once and whole: `make loop`, which takes as long as training `flagship-small`, and MNIST.

Mail of a kind that it has not learnt comes to a service that runs the bundled `digits-small`: the UCI digits, which come
with scikit-learn, as if written with a broad pen. What it rejects is keyed, half of what it accepts is audited, and both are
captured. `digits-train` learns from that, and compares the two versions; where the new one is not worse, it is rolled out
as a canary beside the old one, and the mail that comes then says how well both read it.
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

FIRST = 1200  # images that come before the training; the others come after it
AUDIT_RATE = 0.5
TRAIN = (sys.executable, "-m", "training")


def mail() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Digits in broad strokes, (1797, 28, 28) uint8, framed as MNIST frames them, and what they are, in an order by lot."""
    from training.robustness import second_source  # loads Keras

    examples = second_source()
    order = np.random.default_rng(0).permutation(len(examples))
    broad = grey_dilation(examples.images[order], (1, 3, 3))
    return np.stack([frame(image / 255) for image in broad]), examples.labels[order]


def in_fives(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], list[str]]]:
    """A few images after the other, with what they are in words."""
    for start in range(0, len(images), 5):
        yield images[start : start + 5], [str(label) for label in labels[start : start + 5].tolist()]


def work_off(client: DigitClient, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    """Has the mail read, keys what is rejected, and audits what is to be audited."""
    counts = {"right": 0, "rejected": 0, "audited": 0}
    for shown, digits in in_fives(images, labels):
        answers = client.recognize_batch(shown)
        truths: dict[str, list[tuple[Recognition, str]]] = {"keying": [], "audit": []}
        for answer, digit in zip(answers, digits, strict=True):
            counts["right"] += str(answer.digit) == digit
            if answer.audit:
                truths["audit"].append((answer, digit))
            elif answer.decision.name != "ACCEPT":
                truths["keying"].append((answer, digit))
        for source, reported in truths.items():
            if reported:
                client.report_truth(reported, source)
        counts["rejected"] += len(truths["keying"])
        counts["audited"] += len(truths["audit"])
    share = counts["right"] / len(images)
    told = f"{counts['rejected']} rejected and keyed, {counts['audited']} audited"
    print(f"mail       {len(images):,} images, {share:.4f} read right; {told}")


def roll_out(server: Service, model: Path, old: str, new: str) -> None:
    """Gives the new version half of the calls, as a canary."""
    draft = model / ".routing"
    draft.write_text(f"stable = {old}\n[canary]\nversion = {new}\npercent = 50\n")
    draft.rename(model / "routing.toml")
    end = time.monotonic() + 60
    while not server.scrape("digits_model_role", version=new, role="canary"):
        if time.monotonic() > end:
            sys.exit(f"version {new} has not become the canary; is it refused?")
        time.sleep(0.1)
    print(f"canary     {new} answers half of the calls, {old} the others")


def compare_live(server: Service, images: NDArray[np.uint8], labels: NDArray[np.uint8], names: dict[str, str]) -> None:
    """Has more mail read, by either version, and says what /metrics makes of its truth."""
    with DigitClient(server.address, 60) as client:
        for number, (shown, truth) in enumerate(in_fives(images, labels)):
            answers = client.recognize_batch(shown, key=f"piece {number}")
            client.report_truth(list(zip(answers, truth, strict=True)), "replay")
    for version, name in names.items():
        seen = {"version": version, "source": "replay"}
        accepted = server.scrape("digits_truth_total", decision="accept", **seen)
        wrong = server.scrape("digits_truth_total", decision="accept", outcome="wrong", **seen)
        count, accuracy = server.scrape("digits_truth_total", **seen), server.scrape("digits_accuracy_ratio", **seen)
        told = f"{accuracy:.4f} read right; {accepted / count:.2%} accepted, {wrong:.0f} of these wrong"
        print(f"{name:10} {count:,.0f} images, {told}")


def trained(*arguments: str) -> str:
    """What a command of `digits-train` prints, which is shown as well; one that fails ends the loop."""
    print(f"$ digits-train {' '.join(arguments)}", flush=True)
    with subprocess.Popen([*TRAIN, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
    if process.returncode:
        sys.exit(process.returncode)
    return "".join(lines)


def main() -> None:
    """Goes round once and prints what comes of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="flagship-small")
    parser.add_argument("--epochs", help="fewer than the recipe's own make a quick, bad version")
    options = parser.parse_args()
    images, labels = mail()
    with tempfile.TemporaryDirectory() as place:
        store, model = f"sqlite:///{place}/captured.db", Path(place) / "models" / "digits"
        bundled = versions.scan(BUNDLED)["digits-small"].versions
        old = str(min(bundled))  # the one in 32 bits, as the new one will be
        shutil.copytree(bundled[int(old)].path.parent, model / old)
        (model / "routing.toml").write_text(f"stable = {old}\n")  # or the new version would serve as soon as it is there
        flags = ("--models", str(model.parent), "--capture", store, "--audit-rate", str(AUDIT_RATE), "--workers", "1")
        with service(*flags) as server:
            with DigitClient(server.address, 60) as client:
                work_off(client, images[:FIRST], labels[:FIRST])
            for record in ("image", "truth"):
                print(f"captured   {server.scrape('digits_captured_total', record=record, outcome='stored'):.0f} {record}s")
            epochs = ("--epochs", options.epochs) if options.epochs else ()
            said = trained("run", options.recipe, *epochs, "--models", str(model.parent), "--captured", store)
            new = re.findall(r"published +\S+/(\d+)$", said, re.MULTILINE)[0]
            trained("compare", str(model / old), str(model / new), "--captured", store)
            roll_out(server, model, old, new)
            compare_live(server, images[FIRST:], labels[FIRST:], {old: "stable", new: "canary"})


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is loaded
    main()
