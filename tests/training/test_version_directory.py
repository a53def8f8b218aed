import json
from pathlib import Path

import pytest

from training.version_directory import VersionError, _next, find, read_record


def leave(directory: Path, **record: object) -> Path:
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps({"fingerprint": "this", "precision": "fp32"} | record))
    return directory


def test_versions_always_grow(tmp_path: Path) -> None:
    (tmp_path / "30000101000000").mkdir()
    (tmp_path / "notes").mkdir()
    assert _next(tmp_path) == 30000101000001


def test_the_newest_version_of_a_run_is_found_wherever_it_lies(tmp_path: Path) -> None:
    assert find(tmp_path, "this") is None
    leave(tmp_path / "digits" / "9")
    newest = leave(tmp_path / "deeper" / "letters" / "10")
    assert find(tmp_path, "this") == newest
    assert find(tmp_path, "that") is None


def test_what_is_no_version_of_the_run_is_not_taken_for_one(tmp_path: Path) -> None:
    leave(tmp_path / "digits" / "11", precision="int8")
    leave(tmp_path / "digits" / "12", fingerprint="that")
    leave(tmp_path / "digits" / ".8iekilje" / "13")
    leave(tmp_path / "digits" / "draft")
    (leave(tmp_path / "digits" / "14") / "run.json").write_text("[]")
    (leave(tmp_path / "digits" / "15") / "run.json").write_text("another program's")
    assert find(tmp_path, "this") is None


@pytest.mark.parametrize(
    ("content", "reason"), [("[]", "run.json is no object"), ("{", "run.json: Expecting"), (None, "run.json: No such file")]
)
def test_a_record_that_is_none_is_refused_with_the_reason(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(VersionError, match=f"{tmp_path.name} is no version that .* made: {reason}"):
        read_record(tmp_path)
