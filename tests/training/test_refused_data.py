import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.own_data import idx, write_pictures
from training.__main__ import main
from training.dataset import DatasetError
from training.sources import load_dataset

Drawings = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda x, y: (x.reshape(-1, 784), y),
            r"images is uint8 \(1000, 784\), .* reshape it with `x.reshape\(-1, 28, 28\)`",
        ),
        (lambda x, y: (x[..., None], y), r"reshape it with"),
        (lambda x, y: (x[:, :20, :20], y), r"uint8 \(1000, 20, 20\), .* give other sizes as a folder of pictures"),
        (
            lambda x, y: (x / 255, y),
            r"float64 .* 0 to 255 with `np.round\(x\).astype\('uint8'\)`, and .* 0 to 1 with `np.round\(255 \* x\)",
        ),
        (lambda x, y: (x > 128, y), r"bool .* convert with `x.astype\('uint8'\) \* 255`"),
        (lambda x, y: (x.astype(np.int64), y), r"int64 .* values from 0 to 255 with `x.astype\('uint8'\)`"),
        (lambda x, y: (x.astype(object), y), r"object .* convert numbers with `x.astype\(float\)`"),
        (lambda x, y: ((x > 128).astype(np.uint8), y), r"no pixel is above 1, .* multiply by 255"),
        (lambda x, y: (x // 16, y), r"no pixel is above 15, .* multiply by 17"),
        (lambda x, y: (255 - x, y), r"1,000 of 1,000 images are mostly bright, .* invert them with `255 - x`"),
        (lambda x, y: (x * (y > 0)[:, None, None].astype(np.uint8), y), "100 images are blank, the first is number 0"),
        (lambda x, y: (x.transpose(0, 2, 1), y), "transposed: .* add --transposed"),
        (lambda x, y: (x[:, ::-1, ::-1], y), "seem to be upside down: .* turn them back"),
        (lambda x, y: (np.rot90(x, 1, (1, 2)), y), "turned counterclockwise by 90 degrees"),
        (lambda x, y: (x, y[:-1]), "has 1,000 images but 999 labels"),
        (lambda x, y: (x, np.eye(10)[y]), r"expected \(N,\) digits: use `y.argmax\(axis=1\)`"),
        (lambda x, y: (x, y + 17), "labels from 17 to 26, expected the digits 0 to 9. Letters can't be learned"),
        (lambda x, y: (x, y + 1), "labels from 1 to 10, .* If 10 stands for the digit 0, use `y % 10`"),
        (lambda x, y: (x, y.astype(int) - 1), "labels from -1 to 8, .* use `y \\+ 1`"),
        (lambda x, y: (np.roll(x, 8, axis=(1, 2)), y), "training images do not look like framed digits: .* centre of mass"),
        (lambda x, y: (x, y.astype(float)), r"labels is float64 \(1000,\), expected integers"),
        (lambda x, y: (x[:0], y[:0]), "has 0 entries, expected 1 to 1,000,000"),
        (lambda x, y: (x, np.array([str(label) for label in y], object)), "labels is object"),
    ],
)
def test_arrays_that_are_no_framed_digits_are_refused_with_the_remedy(
    change: Callable[[Any, Any], tuple[Any, Any]], complaint: str, drawings: Drawings, tmp_path: Path
) -> None:
    images, labels = change(*drawings)
    np.savez(tmp_path / "own.npz", images=images, labels=labels)
    with pytest.raises(DatasetError, match=complaint):
        load_dataset(str(tmp_path / "own.npz"))


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        (
            {"x": np.zeros(3)},
            "has the arrays x; expected `x_train`, `y_train`, `x_test` and `y_test`, or `images` and `labels`",
        ),
        ({"writers": np.arange(9)}, r"writers is int64 \(9,\), expected integers or short strings \(1000,\)"),
        ({"writers": np.array(["w" * 65] * 1000)}, "expected integers or short strings"),
    ],
)
def test_other_arrays_are_refused(arrays: dict[str, Any], complaint: str, drawings: Drawings, tmp_path: Path) -> None:
    own = {} if "x" in arrays else {"images": drawings[0], "labels": drawings[1]}
    np.savez(tmp_path / "own.npz", allow_pickle=False, **own, **arrays)
    with pytest.raises(DatasetError, match=complaint):
        load_dataset(str(tmp_path / "own.npz"))


def header(shape: str, descr: str = "|u1") -> bytes:
    """The beginning of an .npy file that states a shape."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_an_npz_bomb_is_refused_by_its_header_alone(tmp_path: Path) -> None:
    for shape, complaint in (("(10**12, 28, 28)", "damaged"), ("(1000000000000, 28, 28)", "1,000,000,000,000 entries")):
        with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", header(shape) + bytes(10_000_000))
            archive.writestr("labels.npy", header("(10,)"))
        with pytest.raises(DatasetError, match=complaint):
            load_dataset(str(tmp_path / "bomb.npz"))


@pytest.mark.parametrize("end", [0.2, 0.99])
def test_an_npz_file_that_was_cut_off_is_refused(end: float, drawings: Drawings, tmp_path: Path) -> None:
    file = tmp_path / "own.npz"
    np.savez(file, images=drawings[0], labels=drawings[1])
    content = file.read_bytes()
    file.write_bytes(content[: int(end * len(content))])
    with pytest.raises(DatasetError, match=r"is not an .npz file, or was cut off; expected an .npz file, a folder of IDX"):
        load_dataset(str(file))


def test_a_damaged_npz_file_is_refused(drawings: Drawings, tmp_path: Path) -> None:
    content = io.BytesIO()
    np.savez(content, images=drawings[0], labels=drawings[1])
    damaged = bytearray(content.getvalue())
    damaged[200_000] ^= 1
    (tmp_path / "own.npz").write_bytes(damaged)
    with pytest.raises(DatasetError, match="is damaged: Bad CRC-32"):
        load_dataset(str(tmp_path / "own.npz"))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("train-images.idx3-ubyte", b"\x00\x00\x0d\x03", "begins with type 13, dimensions 3"),
        ("train-images.idx3-ubyte", b"\x00\x00\x08", "was cut off: 3 bytes where 4 are expected"),
        ("train-images.idx3-ubyte", b"\x00\x00\x08\x03" + b"\xff" * 4 + b"\x00\x00\x00\x1c" * 2, "4,294,967,295 entries"),
        ("train-images.idx3-ubyte", idx(np.zeros((1000, 32, 32), np.uint8)), r"uint8 \(1000, 32, 32\)"),
        ("train-labels.idx1-ubyte", idx(np.zeros(999, np.uint8)), "has 1,000 images but 999 labels"),
        ("train-labels.idx1-ubyte", None, "has no IDX file with the labels of the train part"),
        ("t10k-images.idx3-ubyte", idx(np.zeros((9, 28, 28), np.uint8)), "has no IDX file with the labels of the test part"),
    ],
)
def test_idx_files_that_do_not_fit_are_refused(
    name: str, content: bytes | None, complaint: str, drawings: Drawings, tmp_path: Path
) -> None:
    (tmp_path / "train-images.idx3-ubyte").write_bytes(idx(drawings[0]))
    (tmp_path / "train-labels.idx1-ubyte").write_bytes(idx(drawings[1]))
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=complaint):
        load_dataset(str(tmp_path))


def test_a_folder_of_other_things_is_refused(drawings: Drawings, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has 0 files in folders 0 to 9"):
        load_dataset(str(tmp_path))
    write_pictures(tmp_path, drawings[0][:40], drawings[1][:40])
    for number in range(15):
        (tmp_path / "2" / f"scan{number}.png").write_bytes(b"no picture")
    with pytest.raises(
        DatasetError, match=r"15 of 55 pictures can't be used, which is more than 25%: 2/scan0.png \(neither"
    ):
        load_dataset(str(tmp_path))
    (tmp_path / "A").mkdir()
    with pytest.raises(DatasetError, match="has 'A'; expected folders named by their digit, 0 to 9, and `none`"):
        load_dataset(str(tmp_path))


def test_what_is_no_data_ends_a_command_with_the_forms_of_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forms = "expected an .npz file, a folder of IDX files, a folder of pictures by digit, or the URL of a capture database"
    (tmp_path / "text.npz").write_text("something else")
    for data, complaint in (("none.npz", "No such file or directory"), ("text.npz", "is not an .npz file, or was cut off")):
        assert main(["run", "convnet", "--data", str(tmp_path / data), "--models", str(tmp_path / "models")]) == 1
        error = capsys.readouterr().err
        assert complaint in error
        assert forms in error
    assert not (tmp_path / "models").exists()


def test_pictures_cannot_be_transposed(drawings: Drawings, tmp_path: Path) -> None:
    write_pictures(tmp_path, drawings[0][:20], drawings[1][:20])
    with pytest.raises(DatasetError, match=r"--transposed is for .npz and IDX files"):
        load_dataset(str(tmp_path), transposed=True)


def test_a_test_part_that_is_turned_alone_is_refused(drawings: Drawings, tmp_path: Path) -> None:
    images, labels = drawings
    turned = images[1::2].transpose(0, 2, 1)
    np.savez(tmp_path / "own.npz", x_train=images[::2], y_train=labels[::2], x_test=turned, y_test=labels[1::2])
    with pytest.raises(DatasetError, match=r"test images seem to be transposed: .* the training images are not: turn them"):
        load_dataset(str(tmp_path / "own.npz"))


def test_data_without_a_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "convnet", "--data", ""]) == 1
    assert "--data is empty; expected an .npz file" in capsys.readouterr().err
