import csv
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.__main__ import main
from training.studies import darknet, study, yolov3
from training.studies.darknet import Head
from training.studies.detection import decode, read_photo, suppress
from training.studies.workbench import DetectionError

HEAD = "[yolo]\nmask=0\nanchors=1,1\nclasses=1"  # takes six channels
RANDOM = np.random.default_rng(1)


def weights_file(path: Path, numbers: NDArray[np.float64] | list[float]) -> Path:
    header = np.array([0, 2, 5], "<i4").tobytes() + np.array([32_013_312], "<i8").tobytes()
    path.write_bytes(header + np.asarray(numbers, "<f4").tobytes())
    return path


def answer(tmp_path: Path, layers: str, image: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a network of `layers` makes of an image (rows, columns, channels): the six channels before its head."""
    height, width, channels = image.shape
    net = f"[net]\nheight={height}\nwidth={width}\nchannels={channels}\n"
    detector = darknet.build(f"{net}{layers}\n{HEAD}")
    darknet.load_weights(detector, weights_file(tmp_path / "some.weights", numbers))
    (result,) = keras.tree.flatten(detector.network(image[None].astype(np.float32)))
    values: NDArray[np.float64] = np.asarray(result)[0]
    return values


def test_yolov3_has_the_parameters_that_the_notebook_states() -> None:
    network = darknet.build(yolov3.cfg()).network
    assert network.count_params() == 62_001_757
    averages = sum(int(np.prod(weight.shape)) for weight in network.non_trainable_weights)
    assert averages == 52_608  # the notebook's count has the averages of batch normalisation in it
    assert [head.shape[1:] for head in network.outputs] == [(13, 13, 255), (26, 26, 255), (52, 52, 255)]


def test_a_normalised_convolution_takes_its_numbers_in_darknets_order(tmp_path: Path) -> None:
    biases, scales, means, variances = (np.arange(6) - 3.0, np.arange(6) + 1.0, np.full(6, 0.5), np.full(6, 4.0))
    filters = np.array([[1, 0], [0, 1], [1, 1], [2, -1], [-1, -1], [0, 0]])  # of both channels, for each of six
    image = np.array([[[3.0, 5.0]]])
    layers = "[convolutional]\nbatch_normalize=1\nfilters=6\nsize=1\npad=1\nactivation=leaky"
    numbers = np.concatenate([biases, scales, means, variances, filters.ravel()])
    sums = np.array([3, 5, 8, 1, -8, 0])
    normalised = scales * (sums - 0.5) / 2 + biases
    expected = np.where(normalised > 0, normalised, 0.1 * normalised)
    assert (expected < 0).any()
    np.testing.assert_allclose(answer(tmp_path, layers, image, numbers)[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(("groups", "depth"), [(1, 3), (3, 3), (1, 1), (2, 4)], ids=["all", "depthwise", "grey", "groups"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_padded_alike_on_all_sides(tmp_path: Path, stride: int, groups: int, depth: int) -> None:
    image, biases = RANDOM.normal(size=(6, 4, depth)), RANDOM.normal(size=6)
    kernels = RANDOM.normal(size=(6, depth // groups, 3, 3))
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    expected = np.empty((6 // stride, 4 // stride, 6))
    for row, column, kernel in np.ndindex(expected.shape):
        first = kernel // (6 // groups) * (depth // groups)  # channel of the filter's group
        window = padded[row * stride :, column * stride :, first : first + depth // groups][:3, :3]
        expected[row, column, kernel] = (window * kernels[kernel].transpose(1, 2, 0)).sum() + biases[kernel]
    layers = f"[convolutional]\nfilters=6\nsize=3\nstride={stride}\npad=1\ngroups={groups}\nactivation=linear"
    numbers = np.concatenate([biases, kernels.ravel()])
    np.testing.assert_allclose(answer(tmp_path, layers, image, numbers), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "stride", "before"), [(2, 1, 0), (2, 2, 0), (3, 2, 1), (5, 1, 2)])
def test_pooling_pads_as_darknet_does_and_never_counts_the_padding(
    tmp_path: Path, size: int, stride: int, before: int
) -> None:
    image = RANDOM.normal(size=(6, 4, 6)) - 10  # a zero that is counted would win
    padded = np.pad(image, ((before, size), (before, size), (0, 0)), constant_values=-np.inf)
    expected = np.array(
        [
            [padded[row:, column:][:size, :size].max(axis=(0, 1)) for column in range(0, 4, stride)]
            for row in range(0, 6, stride)
        ]
    )
    layers = f"[maxpool]\nsize={size}\nstride={stride}"
    np.testing.assert_allclose(answer(tmp_path, layers, image, np.empty(0)), expected, rtol=1e-6)


def test_routes_shortcuts_and_upsampling_join_the_layers_that_they_name(tmp_path: Path) -> None:
    image = RANDOM.normal(size=(2, 2, 6))
    layers = (
        "[dropout]\n"  # 0: the image
        "[route]\nlayers=0\ngroups=2\ngroup_id=1\n"  # 1: its last three channels
        "[route]\nlayers=-1,1\n"  # 2: those twice
        "[shortcut]\nfrom=-3\nactivation=relu\n"  # 3: and the image added
        "[upsample]\nstride=2"
    )
    late = image[..., 3:]
    expected = np.maximum(np.concatenate([late, late], axis=-1) + image, 0).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(answer(tmp_path, layers, image, np.empty(0)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", r"does not begin with \[net\]"),
        ("\x7fELF\x02", "line 1: .* is neither"),
        ("[net]\nwidth=4\n" + HEAD, r"line 1, \[net\]: height= is missing"),
        ("[net]\nwidth=4\nheight=4.5\n" + HEAD, "height=4.5, expected a whole number from 1 on"),
        ("[net]\nwidth=4\nheight=four\n" + HEAD, "height=four, expected numbers"),
        ("[net]\nwidth=4\nheight=4\nchannels=6\n", r"no \[yolo\] layer"),
        ("[net]\nwidth=4\nheight=4\n[lstm]\n" + HEAD, r"line 4, \[lstm\]: is no layer that is known here"),
        ("[net]\nwidth=4\nheight=4\n[convolutional]\nfilters=6\ndilation=2\n" + HEAD, "dilation=2 is not known here"),
        (
            "[net]\nwidth=4\nheight=4\n[convolutional]\nfilters=6\nactivation=elu\n" + HEAD,
            "activation=elu is not known here",
        ),
        ("[net]\nwidth=4\nheight=4\n[convolutional]\nfilters=6\nsize=9\nactivation=linear\n" + HEAD, r"\[convolutional\]: "),
        ("[net]\nwidth=4\nheight=4\n[route]\nlayers=-1\n" + HEAD, "refers to layer -1, and there are 0 before it"),
        ("[net]\nwidth=4\nheight=4\n" + HEAD, "1 anchors and 1 classes take 6 channels, not 3"),
        ("[net]\nwidth=4\nheight=4\nchannels=6\n[yolo]\nmask=1\nanchors=1,1\nclasses=1", "mask=1 chooses from 1 anchors"),
    ],
)
def test_a_cfg_that_is_broken_or_not_known_is_refused_with_the_place(text: str, error: str) -> None:
    with pytest.raises(DetectionError, match=error):
        darknet.build(text)


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        (np.zeros(41), "holds 41 numbers, and the network 42: the file is cut short, or of another network"),
        (np.zeros(43), "holds 43 numbers, and the network 42: the file is too long, or of another network"),
        (np.full(42, np.nan), "no finite numbers"),
    ],
)
def test_weights_must_be_as_many_as_the_network_has(tmp_path: Path, numbers: NDArray[np.float64], error: str) -> None:
    layers = "[convolutional]\nfilters=6\nactivation=linear"
    with pytest.raises(DetectionError, match=error):
        answer(tmp_path, layers, np.zeros((2, 2, 6)), numbers)


def test_a_weights_file_without_even_a_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.weights").touch()
    detector = darknet.build("[net]\nwidth=4\nheight=4\n[convolutional]\nfilters=6\n" + HEAD)
    with pytest.raises(DetectionError, match="holds 0 numbers, and the network 24: the file is cut short"):
        darknet.load_weights(detector, tmp_path / "empty.weights")


def test_a_heads_numbers_are_read_as_its_paper_says() -> None:
    values = np.zeros((1, 2, 6))
    values[0, 1] = [np.log(3), 0, np.log(2), 0, 0, np.log(3)]  # of the right one of two cells
    head = Head(np.array([[8.0, 16.0]]), classes=1, scale=1.0)
    boxes, probabilities = decode(values, head, height=32, width=64)
    centre, width, height = (1.75 / 2, 0.5), 2 * 8 / 64, 16 / 32
    expected = [centre[0] - width / 2, centre[1] - height / 2, centre[0] + width / 2, centre[1] + height / 2]
    np.testing.assert_allclose(boxes[1], expected)
    np.testing.assert_allclose(probabilities, [[0.25], [0.5 * 0.75]])
    wider, _ = decode(values, Head(head.anchors, 1, scale=1.2), height=32, width=64)
    np.testing.assert_allclose(wider[1] - boxes[1], [0.2 * 0.25 / 2, 0, 0.2 * 0.25 / 2, 0], atol=1e-12)


def test_of_boxes_that_overlap_only_the_most_probable_is_reported() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [6, 0, 16, 10], [0, 20, 10, 30], [50, 0, 60, 10]], float)
    probabilities = np.array([0.8, 0.9, 0.7, 0.3, 0.2])  # the first is nearly the second, the third shares a third with it
    assert suppress(boxes, probabilities) == [1, 2, 3]  # and the last is not probable enough


@pytest.fixture
def detector(tmp_path: Path) -> list[str]:
    """Options for a detector of red pixels: its objectness is 10 where a pixel is red, and -10 where it is black."""
    cfg = "[net]\nwidth=4\nheight=4\n[convolutional]\nfilters=7\nactivation=linear\n[yolo]\nmask=0\nanchors=1,1\nclasses=2\n"
    (tmp_path / "red.cfg").write_text(cfg)
    kernels = np.zeros((7, 3))
    kernels[4] = [20, -20, -20]
    weights_file(tmp_path / "red.weights", np.concatenate([[0, 0, 0, 0, -10, -10, 10], kernels.ravel()]))
    (tmp_path / "red.names").write_text("bus\ncar\n")
    return [f"--{name}={tmp_path / f'red.{name}'}" for name in ("cfg", "weights", "names")]


def detect(tmp_path: Path, detector: list[str], photo: NDArray[np.uint8]) -> list[list[str]]:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    out = tmp_path / "out"
    assert main(["study", "detection", f"--photo={tmp_path / 'photo.png'}", *detector, f"--out={out}"]) == 0
    with Image.open(out / "detection.png") as drawn:
        assert drawn.size == photo.shape[1::-1]
        assert (np.asarray(drawn) != photo).any()
    with (out / "detection.csv").open() as file:
        return list(csv.reader(file))[1:]


def test_a_thing_is_found_where_it_is(tmp_path: Path, detector: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    photo = np.zeros((4, 4, 3), np.uint8)
    photo[1, 2] = [255, 0, 0]
    assert detect(tmp_path, detector, photo) == [["car", "0.9999", "2.0", "1.0", "3.0", "2.0"]]
    assert "finds in photo.png: car 1; of the notebook's cars and buses: 1 car and 0 bus" in capsys.readouterr().out


@pytest.mark.parametrize(("letter_box", "bottom"), [(False, "1.0"), (True, "2.0")])
def test_boxes_are_of_the_photo_whether_it_was_stretched_or_set_between_bars(
    tmp_path: Path, detector: list[str], letter_box: bool, bottom: str
) -> None:
    cfg = tmp_path / "red.cfg"
    cfg.write_text(cfg.read_text().replace("[net]", f"[net]\nletter_box={letter_box:d}"))
    photo = np.zeros((4, 8, 3), np.uint8)
    photo[0, 0] = [255, 0, 0]
    assert detect(tmp_path, detector, photo) == [["car", "0.9999", "0.0", "0.0", "2.0", bottom]]


def test_what_is_missing_broken_or_does_not_fit_is_said(
    tmp_path: Path, detector: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(photo)
    asked = ["study", "detection", f"--photo={photo}", *detector, f"--out={tmp_path / 'out'}"]

    assert main(["study", "detection", f"--photo={photo}", f"--out={tmp_path / 'out'}"]) == 2
    assert "study detection needs --weights, --names" in capsys.readouterr().err

    photo.write_bytes(photo.read_bytes()[:40])
    assert main(asked) == 1
    assert f"cannot read a photo from {photo}" in capsys.readouterr().err

    Image.new("RGB", (8, 8)).save(photo)
    (tmp_path / "red.names").write_text("bus\n")
    assert main(asked) == 1
    assert "red.names names 1 class(es), the network has 2" in capsys.readouterr().err

    (tmp_path / "red.cfg").write_text("[net]\nwidth")
    assert main(asked) == 1
    assert "red.cfg: line 2: 'width' is neither" in capsys.readouterr().err
    assert not (tmp_path / "out" / "detection.png").exists()


def test_all_studies_leave_detection_out_where_there_is_no_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "STUDIES", {"detection": study.STUDIES["detection"]})  # the others take long
    assert main(["study", "all", f"--out={tmp_path}"]) == 0
    assert "left out: it needs --photo, --weights, --names" in capsys.readouterr().out


def test_a_file_that_is_no_photo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DetectionError, match=r"cannot read a photo from .*none\.jpg: No such file"):
        read_photo(tmp_path / "none.jpg")


@pytest.fixture
def yolo() -> Path:
    """Darknet's own files, named by $DIGITS_YOLO."""
    if "DIGITS_YOLO" not in os.environ:
        pytest.skip("needs yolo-fastest-1.1-xl, yolov3-tiny.cfg, coco.names and dog.jpg: set DIGITS_YOLO to their directory")
    return Path(os.environ["DIGITS_YOLO"])


def test_yolov3_tiny_has_as_many_parameters_as_its_weights_file_has_numbers(yolo: Path) -> None:
    assert darknet.build((yolo / "yolov3-tiny.cfg").read_text()).network.count_params() == 8_858_734


def test_a_real_detector_finds_the_dog_the_bicycle_and_the_car(yolo: Path, tmp_path: Path) -> None:
    network = yolo / "yolo-fastest-1.1-xl"
    files = [f"--cfg={network}.cfg", f"--weights={network}.weights", f"--names={yolo / 'coco.names'}"]
    assert main(["study", "detection", f"--photo={yolo / 'dog.jpg'}", *files, f"--out={tmp_path}"]) == 0
    with (tmp_path / "detection.csv").open() as file:
        found = {
            row["class"]: [float(row[edge]) for edge in ("left", "top", "right", "bottom")] for row in csv.DictReader(file)
        }
    middles = {name: ((left + right) / 2, (top + bottom) / 2) for name, (left, top, right, bottom) in found.items()}
    for name, (x, y) in {"dog": (225, 380), "bicycle": (345, 275), "car": (575, 125)}.items():  # as seen by eye
        np.testing.assert_allclose(middles[name], (x, y), atol=40)
