"""Time to decode and frame one crop, by kind, size and format: `python -m tests.benchmarks.crops [--source OTHER_CHECKOUT]`.

Prints the mean over crops of each crop's best round, on one core; and the rate of two threads over that of one.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.benchmarks.framing import load_framer

ROOT = Path(__file__).parents[2]
ROUNDS = 15
COUNT = 60


def measure(frame_crop: Callable[[bytes], Any], crops: Sequence[bytes]) -> float:
    """Returns microseconds a crop: the mean of each crop's best round, which other processes disturb least."""
    best = [float("inf")] * len(crops)
    for _ in range(ROUNDS):
        for index, crop in enumerate(crops):
            began = time.perf_counter()
            frame_crop(crop)
            best[index] = min(best[index], time.perf_counter() - began)
    return sum(best) / len(best) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.crops", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--source", type=Path, default=ROOT, help="checkout whose serving/ is measured")
    options = parser.parse_args()
    frame_crop = load_framer(options.source)

    from serving.imaging.decode import decode
    from tests.imaging.digit_crops import DIGIT_KINDS
    from tests.imaging.source_digits import load_digits

    images, _ = load_digits(COUNT, 1)
    print("| crops | size | bytes | decoding, µs | decoding and framing, µs |\n|---|---|---:|---:|---:|")
    for kind in (
        "plain",
        "box",
        "ruled paper",
        "squared paper",
        "dark strips",
        "lamp",
        "light ink on dark paper",
        "coloured ink and paper",
    ):
        for (width, height), form in (((100, 130), ".png"), ((100, 130), ".jpg"), ((300, 400), ".png")):
            if (form != ".png" and kind != "plain") or (height == 400 and kind not in ("plain", "box")):
                continue
            random = np.random.default_rng(1)
            crops = []
            for image in images:
                pixels = cv2.imdecode(np.frombuffer(DIGIT_KINDS[kind](image, random), np.uint8), cv2.IMREAD_UNCHANGED)
                crops.append(
                    cv2.imencode(form, cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))[1].tobytes()
                )
            decoding = measure(lambda crop: decode(crop, 80), crops)
            both = measure(frame_crop, crops)
            size = f"{width}x{height} {form[1:].upper()}"
            print(
                f"| {kind} | {size} | {np.mean([len(crop) for crop in crops]):,.0f} | {decoding:.0f} | {both:.0f} |",
                flush=True,
            )
    rates = []
    for threads in (1, 2):
        with ThreadPoolExecutor(threads) as pool:
            began = time.perf_counter()
            list(pool.map(frame_crop, crops * 20))
            rates.append(len(crops) * 20 / (time.perf_counter() - began))
    print(f"\nTwo threads frame {rates[1] / rates[0]:.2f} times the crops of one.")


if __name__ == "__main__":
    main()
