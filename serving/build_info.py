"""The version and the commit of the code that runs."""

import functools
import os
import subprocess
from importlib import metadata
from pathlib import Path

UNKNOWN = "unknown"


@functools.cache
def version() -> str:
    """Returns the version of the installed distribution, such as "0.1.0"; "unknown" where none is installed."""
    try:
        return metadata.version("postal-digits")
    except metadata.PackageNotFoundError:
        return UNKNOWN


@functools.cache
def commit() -> str:
    """Returns the Git commit of the code, 40 hexadecimal digits, with "-dirty" where the checkout has changes.

    A container image states it in DIGITS_COMMIT. "unknown" for an installed copy that states none.
    """
    if stated := os.environ.get("DIGITS_COMMIT"):
        return stated
    here = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # a .venv inside another checkout must not report that one's commit
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
