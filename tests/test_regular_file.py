import os
from pathlib import Path

import pytest

from serving.answers.lexicon import Lexicon, LexiconError
from serving.regular_file import NotRegular, read_regular
from serving.security import credential_files
from serving.security.credential_files import CredentialsError


def test_a_regular_file_is_read_up_to_its_bound_and_through_links(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(file)
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="it is larger than 4 bytes"):
        read_regular(file, 4)


@pytest.mark.parametrize("kind", ["fifo", "device", "directory"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "us.txt"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.mkdir()
    with pytest.raises(NotRegular):
        read_regular(file, 100)
    with pytest.raises(LexiconError, match="cannot read the lexicon"):
        Lexicon.from_file(file)
    with pytest.raises(CredentialsError, match="cannot be read"):
        credential_files.read(file)
