import errno
import os
from pathlib import Path

import pytest

from serving.repository.skipped import skipped
from serving.repository.versions import ModelMissing, RepositoryError, latest, scan
from tests.support.model_files import place


def test_models_and_versions_are_found_by_name_and_number(tmp_path: Path) -> None:
    for name, version in (("digits", 1), ("digits", 20), ("digits", 3), ("post", 4)):
        place(tmp_path, version, name).write_bytes(b"")
    (tmp_path / "post" / "routing.toml").write_text("stable = 4")
    found = scan(tmp_path)
    assert {name: sorted(directory.versions) for name, directory in found.items()} == {"digits": [1, 3, 20], "post": [4]}
    assert (found["digits"].routing, found["post"].routing) == ("", "stable = 4")
    assert latest(tmp_path).path == tmp_path / "digits" / "20" / "model.onnx"


@pytest.mark.parametrize("name", ["latest", "01", "-1", "1.0", "\u0661", "1 "])
def test_a_directory_that_is_not_a_whole_number_is_no_version(tmp_path: Path, name: str) -> None:
    place(tmp_path, 2).write_bytes(b"")
    place(tmp_path, 2).parent.with_name(name).mkdir()
    (tmp_path / "digits" / name / "model.onnx").write_bytes(b"")
    assert list(scan(tmp_path)["digits"].versions) == [2]


@pytest.mark.parametrize("name", [".hidden", "two\nlines"])
def test_a_directory_whose_name_fits_no_label_is_no_model(tmp_path: Path, name: str) -> None:
    place(tmp_path, 1, name).write_bytes(b"")
    assert scan(tmp_path) == {}


def test_a_rewritten_file_has_another_fingerprint(tmp_path: Path) -> None:
    place(tmp_path, 1).write_bytes(b"one")
    before = latest(tmp_path)
    assert latest(tmp_path) == before
    place(tmp_path, 1).write_bytes(b"three")
    assert latest(tmp_path) != before


def test_a_routing_that_is_not_text_is_an_error_of_its_model_only(tmp_path: Path) -> None:
    for name in ("digits", "post"):
        place(tmp_path, 1, name).write_bytes(b"")
    (tmp_path / "post" / "routing.toml").write_bytes(b"\xff")
    found = scan(tmp_path)
    assert (found["digits"].routing_error, found["post"].routing_error) == ("", "it is not UTF-8 text")


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE])
def test_a_directory_on_a_bad_disk_hides_no_other(tmp_path: Path, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bad", "digits"):
        place(tmp_path, 1, name).write_bytes(b"")
    (tmp_path / "digits" / "x").mkdir()
    stat = Path.stat

    def fail(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if self.name == "bad":
            raise OSError(error, os.strerror(error))
        return stat(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", fail)
    assert list(scan(tmp_path)) == ["digits"]
    assert list(skipped(tmp_path)) == [tmp_path / "digits" / "x"]


def test_an_empty_or_unreadable_repository_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=f"no model in {tmp_path}: expected {tmp_path}/digits/VERSION/model.onnx"):
        latest(tmp_path)
    with pytest.raises(RepositoryError, match="nowhere cannot be read: No such file or directory"):
        latest(tmp_path / "nowhere")


def test_the_latest_version_is_the_highest_number_that_has_a_file(tmp_path: Path) -> None:
    for name in ("9", "10", "2", "draft", ".tmp"):
        file = tmp_path / "digits" / name / "model.onnx"
        file.parent.mkdir(parents=True)
        file.touch()
    (tmp_path / "digits" / "11").mkdir()  # still without its file
    assert latest(tmp_path).number == 10
