from pathlib import Path

import pytest

from serving.repository.skipped import SkippedDirectories, skipped


def make(models: Path, *versions: str) -> None:
    for version in versions:
        (models / version).mkdir(parents=True)
        (models / version / "model.onnx").touch()


def test_each_directory_that_is_skipped_has_a_reason(tmp_path: Path) -> None:
    make(tmp_path, "digits/0002", "digits/v3", "digits/-1", "digits/٣", "digits/99991231235959", "bad\nname/1")
    make(tmp_path, "digits/2", "digits/0", "digits/20261130101529", "digits/123456", "digits/.tmp", ".hidden/v1")
    (tmp_path / "digits" / "7").mkdir()
    (tmp_path / "digits" / "routing.toml").touch()
    found = {str(path.relative_to(tmp_path)): reason for path, reason in skipped(tmp_path).items()}
    assert found == {
        "digits/0002": "is skipped: its name is not a whole number without leading zeros",
        "digits/v3": "is skipped: its name is not a whole number without leading zeros",
        "digits/-1": "is skipped: its name is not a whole number without leading zeros",
        "digits/٣": "is skipped: its name is not a whole number without leading zeros",
        "digits/99991231235959": "is dated in the future: it is preferred to every version that is trained until then",
        "digits/7": "is skipped: it holds no model.onnx",
        "bad\nname": "is skipped: no request can carry its name",
    }


def test_a_skipped_directory_is_logged_once_and_again_when_it_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "digits/v3")
    directories = SkippedDirectories(tmp_path)
    directories.poll()
    assert not caplog.text, "it may still be written"
    for _ in range(3):
        directories.poll()
    assert caplog.text.count("v3 is skipped: its name is not a whole number without leading zeros") == 1
    (tmp_path / "digits" / "v3").rename(tmp_path / "digits" / "3")
    directories.poll()
    (tmp_path / "digits" / "3").rename(tmp_path / "digits" / "v3")
    for _ in range(3):
        directories.poll()
    assert caplog.text.count("v3 is skipped: its name is not a whole number without leading zeros") == 2


def test_a_repository_that_is_gone_is_no_error(tmp_path: Path) -> None:
    assert skipped(tmp_path / "missing") == {}
