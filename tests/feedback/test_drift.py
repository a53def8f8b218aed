import json
import math
import subprocess
import venv
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client import Metric

from serving.client import DigitClient
from serving.feedback.drift import WINDOW, DriftCollector, stability_index
from serving.imaging.framing import frame, measure
from serving.inference.metadata import parse_drift_reference
from serving.pb.digits.v1 import digit_service_pb2 as pb
from serving.pb.digits.v1.digit_service_pb2_grpc import DigitServiceStub
from serving.samples.draw import draw
from serving.telemetry.histograms import CENTRE, INK
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
from tests.support.calls import TIMEOUT
from tests.support.servers import StartServer
from tests.support.service import service
from training.drift_reference import drift_reference

VERSION = ("digits", "20261121")
counts = st.lists(st.integers(0, 1000), min_size=10, max_size=10).filter(any)


def stated(**other: object) -> str:
    even = np.linspace(13.5, 14.5, 101).tolist()
    whole = {"digit": [0.1] * 10, "ink": np.linspace(0.05, 0.25, 101).tolist(), "row": even, "column": even}
    return json.dumps(whole | other)


def test_measure_gives_the_ink_share_and_the_centre_of_mass() -> None:
    images = np.zeros((70, 28, 28), np.uint8)  # more than one block of `measure`
    images[:, 14, 14] = 255
    images[1, 10:12, 20] = (255, 51)
    images[1, 14, 14] = 0
    ink, centres = measure(images)
    assert ink == pytest.approx([1 / 784, 1.2 / 784, *[1 / 784] * 68])
    assert centres[1] == pytest.approx([(10 + 11 * 0.2) / 1.2, 20])
    assert (np.delete(centres, 1, axis=0) == 14).all()


@pytest.mark.parametrize("number", range(10))
def test_a_framed_digit_is_centred_within_half_a_pixel(number: int) -> None:
    _, centres = measure(frame(draw(number) / 255)[None])
    assert np.abs(centres - 14).max() <= 0.5


def test_a_reference_gives_the_share_of_each_bin() -> None:
    shares = parse_drift_reference(stated(digit=[0.05] * 5 + [0.15] * 5))
    assert {feature: sum(parts.values()) for feature, parts in shares.items()} == pytest.approx(dict.fromkeys(shares, 1.0))
    assert (shares["digit"]["4"], shares["digit"]["5"]) == (0.05, 0.15)
    assert len(shares["ink"]) == len(INK) + 1
    assert len(shares["row"]) == len(CENTRE) + 1
    assert shares["ink"]["0.05"] == 0
    assert shares["ink"]["0.08"] == pytest.approx(0.15)
    assert shares["column"]["14.4"] == pytest.approx(0.2)
    assert shares["column"]["15.0"] == shares["column"]["+Inf"] == 0


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "no JSON",
        stated(digit=[0.1] * 9),
        stated(digit=[0.2] * 10),
        stated(digit=[-0.1, 0.3] + [0.1] * 8),
        stated(digit=None),
        stated(ink=[0.2, 0.1]),
        stated(row=[0.1]),
        stated(column=[0.1, math.nan]),
        stated(column=["x", "y"]),
        stated(column=3),
    ],
)
def test_an_invalid_reference_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not |^Expecting|could not convert"):
        parse_drift_reference(text)


@given(counts, counts)
def test_the_index_is_nonnegative_symmetric_and_finite(one: list[int], other: list[int]) -> None:
    index = stability_index(one, other)
    assert index >= 0
    assert math.isfinite(index)
    assert index == pytest.approx(stability_index(other, one))
    assert stability_index(one, [10.0 * count for count in one]) == pytest.approx(0)


def test_the_index_of_a_worked_example() -> None:
    expected = (0.5 - 0.2) * math.log(0.5 / 0.2) + (0.3 - 0.3) * 0 + (0.2 - 0.5) * math.log(0.2 / 0.5)
    assert stability_index([50, 30, 20], [200, 300, 500]) == pytest.approx(expected)


# A program for an environment with frouros: reads pairs of samples, prints the index of each over bins of equal width.
FROUROS = """
import json, sys
import numpy
from frouros.detectors.data_drift import PSI
for reference, sample, bins in json.load(sys.stdin):
    detector = PSI(num_bins=bins)
    detector.fit(X=numpy.array(reference))
    print(detector.compare(X=numpy.array(sample))[0].distance)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_index_equals_that_of_frouros(tmp_path: Path) -> None:
    """Installs frouros into a separate environment, because it needs an older NumPy than this project."""
    python = tmp_path / "bin" / "python"
    venv.create(tmp_path, with_pip=True)
    installing = [str(python), "-m", "pip", "install", "--quiet", "frouros==0.9.0"]
    installed = subprocess.run(installing, capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"frouros can't be installed here: {installed.stderr.strip()[-200:]}")
    random = np.random.default_rng(0)
    other_mix = np.arange(1, 11) / 55
    samples = [
        (random.integers(0, 10, 10_000), random.integers(0, 10, 2000), 10),
        (random.integers(0, 10, 10_000), random.choice(10, 2000, p=other_mix), 10),
        (random.normal(0.13, 0.04, 10_000).clip(0.05, 0.25), random.normal(0.15, 0.04, 3000).clip(0.05, 0.25), 8),
    ]  # without empty bins, for which the two have different rules
    ours = []
    for expected, found, bins in samples:
        both = np.concatenate([expected, found])
        counts = [np.histogram(part, bins, (both.min(), both.max()))[0].tolist() for part in (found, expected)]
        ours.append(stability_index(*counts))
    given = json.dumps([(expected.tolist(), found.tolist(), bins) for expected, found, bins in samples])
    theirs = subprocess.run([python, "-c", FROUROS], input=given, capture_output=True, text=True, check=True).stdout
    assert ours == pytest.approx([float(line) for line in theirs.split()], rel=1e-9)
    assert ours[0] < 0.1 < 0.2 < ours[1]


class Served:
    """A version that answers, and the drift metrics that an operator sees."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.metrics.model_info.labels(*VERSION, "flagship", "0.9961", "1").set(1)
        for feature, shares in parse_drift_reference(stated()).items():
            for name, share in shares.items():
                self.metrics.drift_reference.labels(*VERSION, feature, name).set(share)
        self._version = VersionMetrics(self.metrics, *VERSION)
        self._collector = DriftCollector(self.metrics.registry)

    def answer(self, digits: list[int], confidence: float) -> None:
        no_images = np.empty((0, 784), np.uint8)
        self._version.count_predictions(
            no_images, np.array(digits, np.float32), np.full(len(digits), confidence, np.float32)
        )

    def show(self, images: NDArray[np.uint8]) -> None:
        self._version.measure(images.reshape(-1, 784))

    def scrape(self) -> dict[tuple[str, ...], float]:
        page: list[Metric] = [*self._collector.collect()]
        named = [metric for metric in page if metric.name in ("digits_drift_psi", "digits_estimated_accuracy_ratio")]
        return {
            (sample.name, sample.labels.get("feature", "")): sample.value for metric in named for sample in metric.samples
        }


PSI, ESTIMATE = ("digits_drift_psi", "digit"), ("digits_estimated_accuracy_ratio", "")


def test_a_full_window_ends_at_the_next_scrape() -> None:
    served = Served()
    mixed = list(range(10)) * (WINDOW // 10)
    served.answer(mixed[1:], 0.99)
    assert served.scrape() == {}, "one image is missing"
    served.answer([0], 0.99)
    seen = served.scrape()
    assert seen == {PSI: pytest.approx(0, abs=1e-9), ESTIMATE: pytest.approx(0.99)}
    served.answer([7] * (WINDOW - 1), 0.5)
    assert served.scrape() == seen, "the window that began is not full"
    served.answer([7] * 1000, 0.5)
    assert served.scrape() == {PSI: pytest.approx(stability_index([0] * 7 + [1, 0, 0], [0.1] * 10)), ESTIMATE: 0.5}
    served.answer(mixed, 0.98)
    assert served.scrape() == {PSI: pytest.approx(0, abs=1e-9), ESTIMATE: pytest.approx(0.98)}, (
        "the window before it does not count"
    )


def test_ink_and_centre_are_compared_bin_by_bin() -> None:
    served = Served()
    images = np.zeros((WINDOW, 28, 28), np.uint8)
    images[: WINDOW // 4, 14, 13:17] = 255  # a quarter lies half a pixel to the right
    images[WINDOW // 4 :, 14, 14] = 255
    served.show(images)
    expected = parse_drift_reference(stated())
    seen = served.scrape()
    for feature, bins in (("ink", {"0.02": 1.0}), ("row", {"14.0": 1.0}), ("column", {"14.0": 0.75, "14.6": 0.25})):
        counts = [bins.get(name, 0.0) for name in expected[feature]]
        index = stability_index(counts, [*expected[feature].values()])
        assert seen["digits_drift_psi", feature] == pytest.approx(index), feature


def test_an_unloaded_version_has_no_drift_metrics() -> None:
    served = Served()
    served.answer([3] * WINDOW, 0.9)
    assert len(served.scrape()) == 2
    served.metrics.model_info.labels(*VERSION, "flagship", "0.9961", "1").set(0)
    assert served.scrape() == {}


def test_drift_covers_the_images_of_all_workers(images: NDArray[np.uint8]) -> None:
    with service("--workers", "2") as server, ExitStack() as connections:
        clients = [connections.enter_context(DigitClient(server.address, TIMEOUT)) for _ in range(4)]

        def indices(shown: NDArray[np.uint8]) -> dict[str, float]:
            for client in clients:
                client.recognize_batch(shown[:500])
            features = ("digit", "ink", "row", "column")
            return {feature: server.scrape("digits_drift_psi", model="digits", feature=feature) for feature in features}

        before = indices(images)
        after = indices(np.roll(images, 2, axis=1))
        assert server.scrape("digits_mass_centre_pixels_count", axis="row") == 4000, "all images, of either worker"
        assert 0 < server.scrape("digits_estimated_accuracy_ratio", model="digits") < 1
    assert all(index > 0 for index in before.values()), "drawn digits are not MNIST's"
    assert after["row"] > before["row"] + 5
    assert after["column"] == pytest.approx(before["column"])


def test_blank_images_take_no_memory() -> None:
    version = VersionMetrics(Metrics(), *VERSION)
    for _ in range(100):
        version.measure(np.zeros((0, 784), np.uint8))
    assert not version._unmeasured


def thickened(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Makes strokes broader by a pixel on every side. This moves the centre of mass, too: images are not framed again."""
    for axis in (1, 2):
        images = np.maximum.reduce([np.roll(images, step, axis=axis) for step in (-1, 0, 1)])
    return images


SHIFTS: dict[str, tuple[Callable[[NDArray[np.uint8]], NDArray[np.uint8]], set[str]]] = {
    "inverted": (lambda images: 255 - images, {"ink", "row", "column"}),
    "moved down by two pixels": (lambda images: np.roll(images, 2, axis=1), {"row"}),
    "moved to the right by three": (lambda images: np.roll(images, 3, axis=2), {"column"}),
    "thickened": (thickened, {"ink", "row", "column"}),
}


async def test_shifted_test_images_raise_indices_and_lower_the_estimate(start_server: StartServer, mnist_path: Path) -> None:
    with np.load(mnist_path) as arrays:
        images = arrays["x_test"]
    server = await start_server()
    collector = DriftCollector(server.metrics.registry)

    async def drift(shown: NDArray[np.uint8]) -> tuple[set[str], float]:
        """Returns the features with an index above 0.2 for these images, and the estimated accuracy."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            request = pb.RecognizeBatchRequest(images=shown.tobytes())
            await DigitServiceStub(channel).RecognizeBatch(request, timeout=TIMEOUT)
        page = {metric.name: metric.samples for metric in collector.collect()}
        indices = {sample.labels["feature"]: sample.value for sample in page["digits_drift_psi"]}
        assert set(indices) == {"digit", "ink", "row", "column"}
        [estimate] = page["digits_estimated_accuracy_ratio"]
        return {feature for feature, index in indices.items() if index > 0.2}, estimate.value

    moved, unshifted = await drift(images)
    assert not moved
    assert unshifted == pytest.approx(0.996, abs=0.0015), "the accuracy on the test images"
    for name, (shift, expected) in SHIFTS.items():
        moved, estimate = await drift(shift(images))
        assert moved == expected, name
        assert estimate < unshifted - 0.001, name
    moved, estimate = await drift(images)
    assert not moved, "the indices fall again once the images are as before"
    assert estimate == pytest.approx(unshifted)


def test_a_reference_describes_the_images_with_ink() -> None:
    images = np.stack([draw(number) for number in (1, 1, 1, 7)] + [np.zeros((28, 28), np.uint8)])
    probabilities = np.eye(10)[[1, 1, 1, 7, 0]]
    made = drift_reference(images, probabilities)
    assert made["digit"] == [0, 0.75, 0, 0, 0, 0, 0, 0.25, 0, 0]
    ink, _ = measure(images[:4])
    assert made["ink"][0] == pytest.approx(ink.min(), abs=1e-4)
    assert made["ink"][100] == pytest.approx(ink.max(), abs=1e-4)
    assert parse_drift_reference(json.dumps(made))["digit"]["7"] == 0.25
