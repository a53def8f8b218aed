"""Versions of the running code and of the library that runs the models."""

import functools
import os
import subprocess
from importlib import metadata
from pathlib import Path

UNKNOWN = "unknown"


@functools.cache
def version() -> str:
    """Returns the version of the installed distribution, such as "0.1.0"; "unknown" for a bare checkout."""
    try:
        return metadata.version("postal-digits")
    except metadata.PackageNotFoundError:
        return UNKNOWN


@functools.cache
def commit() -> str:
    """Returns the Git commit of the code: 40 hexadecimal digits, and "-dirty" if the checkout has changes.

    A container image sets it in DIGITS_COMMIT. An installed copy without this variable returns "unknown".
    """
    if stated := os.environ.get("DIGITS_COMMIT"):
        return stated
    here = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", here.name
        )  # a copy in a .venv must not report the commit of the checkout around it
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def onnxruntime_version() -> str:
    """Returns the version of the installed ONNX Runtime, such as "1.23.2", without importing it; "unknown" without one."""
    for distribution in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return UNKNOWN
