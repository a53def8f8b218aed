"""Atomic file writes."""

import tempfile
from pathlib import Path


def require_writable(directory: Path) -> None:
    """Creates `directory` if it is missing.

    Raises:
        OSError: the directory can't be written to; the message names it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise OSError(f"cannot write to {directory}: {error.strerror}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically: a reader sees either the old content or all of the new."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error.strerror}") from error
