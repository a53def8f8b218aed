"""The files of the repository, as Git lists them. Caches and editor files on the disk do not count."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tracked_files(directory: str) -> list[Path]:
    """Lists a directory's files that are committed or staged and still exist, in alphabetical order.

    Args:
        directory: relative to the root of the repository, such as "deploy/kubernetes".

    Raises:
        subprocess.CalledProcessError: the tests run outside a Git checkout.
    """
    # Root may test a checkout that belongs to somebody else, which Git refuses to read by default.
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--", directory]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in sorted(paths) if path.is_file()]
