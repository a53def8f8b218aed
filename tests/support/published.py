"""Finds the versions that a command published."""

from pathlib import Path


def certified(version: Path) -> Path:
    """The newest version that was published beside `version`."""
    return max((path for path in version.parent.iterdir() if path != version), key=lambda path: int(path.name))
