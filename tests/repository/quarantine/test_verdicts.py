import os
import threading
from pathlib import Path

import pytest

from serving.repository.quarantine import verdicts
from serving.repository.quarantine.examination import Verdict
from serving.repository.quarantine.verdicts import Verdicts
from serving.settings import Settings

SOUND, CRASHED = Verdict("", ""), Verdict("crashed", "crashed the process that tried it: SIGFPE")
A, B, C, D = (letter * 64 for letter in "abcd")


def kept(models: Path) -> Verdicts:
    """Returns the verdicts as a process finds them that has just started."""
    return Verdicts(Settings(models=models), "conditions")


def test_two_verdicts_written_at_once_are_not_swapped(
    tmp_path: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both_written, first_renamed = threading.Barrier(2, timeout=10), threading.Event()
    replace = Path.replace

    def replace_in_order(self: Path, target: Path) -> Path:
        if target.is_relative_to(private):
            both_written.wait()
            if target.name.startswith(B):
                first_renamed.wait(10)
        renamed = replace(self, target)
        first_renamed.set()
        return renamed

    monkeypatch.setattr(Path, "replace", replace_in_order)
    one_process = kept(tmp_path)
    threads = [threading.Thread(target=one_process.keep, args=entry) for entry in ((A, CRASHED), (B, SOUND))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (kept(tmp_path).find(A, 0), kept(tmp_path).find(B, 0)) == (CRASHED, SOUND)


def test_a_link_planted_in_the_repository_overwrites_no_file(tmp_path: Path) -> None:
    refused, foreign = tmp_path / ".refused", tmp_path / "foreign"
    foreign.write_text("precious")
    refused.mkdir()
    kept(tmp_path).keep(A, CRASHED)
    names = [f".{os.getpid()}.new", *(file.name for file in refused.iterdir())]
    for name in names:
        (refused / name).unlink(missing_ok=True)
        (refused / name).symlink_to(foreign)
    kept(tmp_path).keep(A, CRASHED)
    assert foreign.read_text() == "precious"
    assert kept(tmp_path).find(A, 0) == CRASHED


def test_a_verdict_renamed_to_another_content_does_not_count(tmp_path: Path, private: Path) -> None:
    kept(tmp_path).keep(B, SOUND)
    (file,) = private.rglob("*.json")
    file.rename(file.with_name(file.name.replace(B, A)))
    assert kept(tmp_path).find(A, 0) is None


def test_a_full_directory_loses_its_oldest_verdicts_and_no_foreign_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "_MOST_KEPT", 2)
    refused = tmp_path / ".refused"
    refused.mkdir()
    foreign = ["package.lock", "notes.json", f"{A}x.json"]
    for name in foreign:
        (refused / name).touch()
        os.utime(refused / name, (0, 0))
    for age, digest in enumerate((A, B, C, D)):
        kept(tmp_path).keep(digest, CRASHED)
        for file in refused.glob(f"{digest}-*"):
            os.utime(file, (1000 + age, 1000 + age))
    names = {file.name.split("-")[0] for file in refused.iterdir()}
    assert names == {*foreign, C, D}


def test_a_refusal_can_be_read_by_the_user_of_another_machine(tmp_path: Path) -> None:
    kept(tmp_path).keep(A, CRASHED)
    (file,) = (tmp_path / ".refused").iterdir()
    assert file.stat().st_mode & 0o777 == 0o644
