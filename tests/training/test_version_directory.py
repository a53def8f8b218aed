import json
from pathlib import Path

import pytest

from serving.settings import BUNDLED
from tests.support.run_records import write_record
from training.version_directory import VersionError, _next, find, read_record, require_replaceable


def write_version(directory: Path, **record: object) -> Path:
    return write_record(directory, **{"fingerprint": "this", "precision": "fp32"} | record)


def test_the_next_version_number_exceeds_every_existing_one(tmp_path: Path) -> None:
    (tmp_path / "30000101000000").mkdir()
    (tmp_path / "notes").mkdir()
    assert _next(tmp_path) == 30000101000001


def test_the_newest_version_of_a_run_is_found_at_any_depth(tmp_path: Path) -> None:
    assert find(tmp_path, "this") is None
    write_version(tmp_path / "digits" / "9")
    newest = write_version(tmp_path / "deeper" / "letters" / "10")
    assert find(tmp_path, "this") == newest
    assert find(tmp_path, "that") is None


def test_other_versions_drafts_and_foreign_files_are_not_found(tmp_path: Path) -> None:
    write_version(tmp_path / "digits" / "11", precision="int8")
    write_version(tmp_path / "digits" / "12", fingerprint="that")
    write_version(tmp_path / "digits" / ".8iekilje" / "13")
    write_version(tmp_path / "digits" / "draft")
    (write_version(tmp_path / "digits" / "14") / "run.json").write_text("[]")
    (write_version(tmp_path / "digits" / "15") / "run.json").write_text("another program's")
    assert find(tmp_path, "this") is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [("[]", "run.json is not a JSON object"), ("{", "run.json: Expecting"), (None, "run.json: No such file")],
)
def test_a_malformed_record_is_refused_with_the_reason(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(VersionError, match=f"{tmp_path.name} is not a version that .* made: {reason}"):
        read_record(tmp_path)


ACCEPTS = {"thresholds": {"0.01": {"threshold": 0.5}, "0.005": {"threshold": 0.9}}}
ACCEPTS_NOTHING = {"thresholds": {"0.01": {"threshold": 0.5}, "0.005": None}}


def test_the_newest_version_decides_if_it_may_be_replaced(tmp_path: Path) -> None:
    require_replaceable(tmp_path)
    write_version(tmp_path / "9", **ACCEPTS_NOTHING)
    (tmp_path / "notes").mkdir()
    require_replaceable(tmp_path)
    write_version(tmp_path / "10", **ACCEPTS)
    advice = "--hold-out 10000.* more mail .*--replace, a service .* rejects every digit"
    with pytest.raises(VersionError, match=rf"replace .*/10, which accepts digits\. .*{advice}"):
        require_replaceable(tmp_path)
    write_version(tmp_path / "11", thresholds={})
    require_replaceable(tmp_path)


def test_a_version_of_another_release_is_refused_with_the_remedy(tmp_path: Path) -> None:
    version = write_version(tmp_path / "9")
    record = json.loads((version / "run.json").read_text())
    del record["risk"]
    (version / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        VersionError, match=r"/9 is not a version of this release .*: no risk in run.json; run the recipe again"
    ):
        read_record(version)
    assert find(tmp_path, "this") is None


@pytest.mark.parametrize("file", sorted(BUNDLED.glob("*/*/run.json")), ids=lambda file: "/".join(file.parts[-3:-1]))
def test_every_bundled_version_is_of_this_release(file: Path) -> None:
    assert read_record(file.parent)["accepts_by_default"]
