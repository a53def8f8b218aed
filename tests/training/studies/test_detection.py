import csv
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.__main__ import main

HEAD = "[yolo]\nmask=0\nanchors=1,1\nclasses=1"  # needs six channels
RANDOM = np.random.default_rng(1)


def weights_file(path: Path, numbers: NDArray[np.float64] | list[float]) -> Path:
    header = np.array([0, 2, 5], "<i4").tobytes() + np.array([32_013_312], "<i8").tobytes()
    path.write_bytes(header + np.asarray(numbers, "<f4").tobytes())
    return path


def answer(tmp_path: Path, layers: str, image: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """The output of a network of `layers` for an image (rows, columns, channels): the six channels before its head."""
    import keras

    from training.studies import darknet

    height, width, channels = image.shape
    net = f"[net]\nheight={height}\nwidth={width}\nchannels={channels}\n"
    detector = darknet.build(f"{net}{layers}\n{HEAD}")
    darknet.load_weights(detector, weights_file(tmp_path / "some.weights", numbers))
    (result,) = keras.tree.flatten(detector.network(image[None].astype(np.float32)))
    values: NDArray[np.float64] = np.asarray(result)[0]
    return values


def test_yolov3_has_the_parameters_that_the_notebook_states() -> None:
    from training.studies import darknet, yolov3

    network = darknet.build(yolov3.cfg()).network
    assert network.count_params() == 62_001_757
    averages = sum(int(np.prod(weight.shape)) for weight in network.non_trainable_weights)
    assert averages == 52_608  # the notebook's count includes the moving averages of batch normalisation
    assert [head.shape[1:] for head in network.outputs] == [(13, 13, 255), (26, 26, 255), (52, 52, 255)]


def test_a_normalised_convolution_loads_weights_in_darknets_order(tmp_path: Path) -> None:
    biases, scales, means, variances = (np.arange(6) - 3.0, np.arange(6) + 1.0, np.full(6, 0.5), np.full(6, 4.0))
    filters = np.array([[1, 0], [0, 1], [1, 1], [2, -1], [-1, -1], [0, 0]])  # weights of both channels, for six filters
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
def test_a_convolution_is_padded_equally_on_all_sides(tmp_path: Path, stride: int, groups: int, depth: int) -> None:
    image, biases = RANDOM.normal(size=(6, 4, depth)), RANDOM.normal(size=6)
    kernels = RANDOM.normal(size=(6, depth // groups, 3, 3))
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    expected = np.empty((6 // stride, 4 // stride, 6))
    for row, column, kernel in np.ndindex(expected.shape):
        first = kernel // (6 // groups) * (depth // groups)  # first channel of the filter's group
        window = padded[row * stride :, column * stride :, first : first + depth // groups][:3, :3]
        expected[row, column, kernel] = (window * kernels[kernel].transpose(1, 2, 0)).sum() + biases[kernel]
    layers = f"[convolutional]\nfilters=6\nsize=3\nstride={stride}\npad=1\ngroups={groups}\nactivation=linear"
    numbers = np.concatenate([biases, kernels.ravel()])
    np.testing.assert_allclose(answer(tmp_path, layers, image, numbers), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "stride", "before"), [(2, 1, 0), (2, 2, 0), (3, 2, 1), (5, 1, 2)])
def test_pooling_pads_like_darknet_and_the_padding_never_wins(tmp_path: Path, size: int, stride: int, before: int) -> None:
    image = RANDOM.normal(size=(6, 4, 6)) - 10  # a padding of 0 would win
    padded = np.pad(image, ((before, size), (before, size), (0, 0)), constant_values=-np.inf)
    expected = np.array(
        [
            [padded[row:, column:][:size, :size].max(axis=(0, 1)) for column in range(0, 4, stride)]
            for row in range(0, 6, stride)
        ]
    )
    layers = f"[maxpool]\nsize={size}\nstride={stride}"
    np.testing.assert_allclose(answer(tmp_path, layers, image, np.empty(0)), expected, rtol=1e-6)


def test_routes_shortcuts_and_upsampling_use_the_layers_they_name(tmp_path: Path) -> None:
    image = RANDOM.normal(size=(2, 2, 6))
    layers = (
        "[dropout]\n"  # 0: the image
        "[route]\nlayers=0\ngroups=2\ngroup_id=1\n"  # 1: its last three channels
        "[route]\nlayers=-1,1\n"  # 2: these channels twice
        "[shortcut]\nfrom=-3\nactivation=relu\n"  # 3: plus the image
        "[upsample]\nstride=2"
    )
    late = image[..., 3:]
    expected = np.maximum(np.concatenate([late, late], axis=-1) + image, 0).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(answer(tmp_path, layers, image, np.empty(0)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", r"does not start with \[net\]"),
        ("\x7fELF\x02", "line 1: .* is neither"),
        ("[net]\nwidth=4\n" + HEAD, r"line 1, \[net\]: height= is missing"),
        ("[net]\nwidth=4\nheight=4.5\n" + HEAD, "height=4.5, expected a whole number of at least 1"),
        ("[net]\nwidth=4\nheight=four\n" + HEAD, "height=four, expected numbers"),
        ("[net]\nwidth=4\nheight=4\nchannels=6\n", r"no \[yolo\] layer"),
        ("[net]\nwidth=4\nheight=4\n[lstm]\n" + HEAD, r"line 4, \[lstm\]: unsupported kind of layer"),
        ("[net]\nwidth=4\nheight=4\n[convolutional]\nfilters=6\ndilation=2\n" + HEAD, "dilation=2 is not supported"),
        (
            "[net]\nwidth=4\nheight=4\n[convolutional]\nfilters=6\nactivation=elu\n" + HEAD,
            "activation=elu is not supported",
        ),
        ("[net]\nwidth=4\nheight=4\n[convolutional]\nfilters=6\nsize=9\nactivation=linear\n" + HEAD, r"\[convolutional\]: "),
        ("[net]\nwidth=4\nheight=4\n[route]\nlayers=-1\n" + HEAD, "refers to layer -1, but there are 0 layers before it"),
        ("[net]\nwidth=4\nheight=4\n" + HEAD, "1 anchors and 1 classes need 6 channels, got 3"),
        (
            "[net]\nwidth=4\nheight=4\nchannels=6\n[yolo]\nmask=1\nanchors=1,1\nclasses=1",
            "mask=1 must be indices, from 0, of the 1 anchors",
        ),
    ],
)
def test_a_malformed_or_unsupported_cfg_is_refused_with_the_position(text: str, error: str) -> None:
    from training.studies import darknet
    from training.studies.workbench import DetectionError

    with pytest.raises(DetectionError, match=error):
        darknet.build(text)


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        (np.zeros(41), "holds 41 numbers, but the network has 42 parameters: the file is truncated, or belongs to another"),
        (np.zeros(43), "holds 43 numbers, but the network has 42 parameters: the file is too long, or belongs to another"),
        (np.full(42, np.nan), "values that are not finite"),
    ],
)
def test_a_weights_file_of_the_wrong_size_is_refused(tmp_path: Path, numbers: NDArray[np.float64], error: str) -> None:
    from training.studies.workbench import DetectionError

    layers = "[convolutional]\nfilters=6\nactivation=linear"
    with pytest.raises(DetectionError, match=error):
        answer(tmp_path, layers, np.zeros((2, 2, 6)), numbers)


def test_an_empty_weights_file_is_refused(tmp_path: Path) -> None:
    from training.studies import darknet
    from training.studies.workbench import DetectionError

    (tmp_path / "empty.weights").touch()
    detector = darknet.build("[net]\nwidth=4\nheight=4\n[convolutional]\nfilters=6\n" + HEAD)
    with pytest.raises(DetectionError, match="holds 0 numbers, but the network has 24 parameters: the file is truncated"):
        darknet.load_weights(detector, tmp_path / "empty.weights")


def test_a_heads_map_is_decoded_as_in_the_paper() -> None:
    from training.studies.darknet import Head
    from training.studies.detection import decode

    values = np.zeros((1, 2, 6))
    values[0, 1] = [np.log(3), 0, np.log(2), 0, 0, np.log(3)]  # of the right-hand cell of two
    head = Head(np.array([[8.0, 16.0]]), classes=1, scale=1.0)
    boxes, probabilities = decode(values, head, height=32, width=64)
    centre, width, height = (1.75 / 2, 0.5), 2 * 8 / 64, 16 / 32
    expected = [centre[0] - width / 2, centre[1] - height / 2, centre[0] + width / 2, centre[1] + height / 2]
    np.testing.assert_allclose(boxes[1], expected)
    np.testing.assert_allclose(probabilities, [[0.25], [0.5 * 0.75]])
    wider, _ = decode(values, Head(head.anchors, 1, scale=1.2), height=32, width=64)
    np.testing.assert_allclose(wider[1] - boxes[1], [0.2 * 0.25 / 2, 0, 0.2 * 0.25 / 2, 0], atol=1e-12)


def test_only_the_most_probable_of_overlapping_boxes_is_reported() -> None:
    from training.studies.detection import suppress

    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [6, 0, 16, 10], [0, 20, 10, 30], [50, 0, 60, 10]], float)
    probabilities = np.array([0.8, 0.9, 0.7, 0.3, 0.2])  # the first nearly equals the second; the third overlaps by a third
    assert suppress(boxes, probabilities) == [1, 2, 3], "the last is not probable enough"


@pytest.fixture
def detector(tmp_path: Path) -> list[str]:
    """Options for a detector of red pixels, whose objectness is 10 at a red pixel and -10 at a black one."""
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


def test_an_object_is_detected_at_its_position(
    tmp_path: Path, detector: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    photo = np.zeros((4, 4, 3), np.uint8)
    photo[1, 2] = [255, 0, 0]
    assert detect(tmp_path, detector, photo) == [["car", "0.9999", "2.0", "1.0", "3.0", "2.0"]]
    assert "detects in photo.png: car 1; of the notebook's cars and buses: 1 car and 0 bus" in capsys.readouterr().out


@pytest.mark.parametrize(("letter_box", "bottom"), [(False, "1.0"), (True, "2.0")])
def test_boxes_refer_to_the_photo_when_stretched_or_letter_boxed(
    tmp_path: Path, detector: list[str], letter_box: bool, bottom: str
) -> None:
    cfg = tmp_path / "red.cfg"
    cfg.write_text(cfg.read_text().replace("[net]", f"[net]\nletter_box={letter_box:d}"))
    photo = np.zeros((4, 8, 3), np.uint8)
    photo[0, 0] = [255, 0, 0]
    assert detect(tmp_path, detector, photo) == [["car", "0.9999", "0.0", "0.0", "2.0", bottom]]


def test_missing_damaged_or_mismatched_files_are_named(
    tmp_path: Path, detector: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(photo)
    command = ["study", "detection", f"--photo={photo}", *detector, f"--out={tmp_path / 'out'}"]

    assert main(["study", "detection", f"--photo={photo}", f"--out={tmp_path / 'out'}"]) == 2
    assert "study detection needs --weights, --names" in capsys.readouterr().err

    photo.write_bytes(photo.read_bytes()[:40])
    assert main(command) == 1
    assert f"cannot read a photo from {photo}" in capsys.readouterr().err

    Image.new("RGB", (8, 8)).save(photo)
    (tmp_path / "red.names").write_text("bus\n")
    assert main(command) == 1
    assert "red.names names 1 class(es), but the network has 2" in capsys.readouterr().err

    (tmp_path / "red.cfg").write_text("[net]\nwidth")
    assert main(command) == 1
    assert "red.cfg: line 2: 'width' is neither" in capsys.readouterr().err
    assert not (tmp_path / "out" / "detection.png").exists()


def test_study_all_skips_detection_without_a_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from training.studies import study

    monkeypatch.setattr(study, "STUDIES", {"detection": study.STUDIES["detection"]})  # the others take long
    assert main(["study", "all", f"--out={tmp_path}"]) == 0
    assert "skipped: it needs --photo, --weights, --names" in capsys.readouterr().out


def test_a_missing_photo_is_refused(tmp_path: Path) -> None:
    from training.studies.detection import read_photo
    from training.studies.workbench import DetectionError

    with pytest.raises(DetectionError, match=r"cannot read a photo from .*none\.jpg: No such file"):
        read_photo(tmp_path / "none.jpg")


@pytest.fixture
def yolo() -> Path:
    """The directory with Darknet's files, from $DIGITS_YOLO."""
    if "DIGITS_YOLO" not in os.environ:
        pytest.skip("needs yolo-fastest-1.1-xl, yolov3-tiny.cfg, coco.names and dog.jpg: set DIGITS_YOLO to their directory")
    return Path(os.environ["DIGITS_YOLO"])


def test_yolov3_tiny_has_the_size_of_its_weights_file(yolo: Path) -> None:
    from training.studies import darknet

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
    for name, (x, y) in {"dog": (225, 380), "bicycle": (345, 275), "car": (575, 125)}.items():  # located by eye
        np.testing.assert_allclose(middles[name], (x, y), atol=40)
