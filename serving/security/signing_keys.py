"""Keys that sign recognition ids."""

from pathlib import Path

from serving.security.credential_files import CredentialsError, read

MIN_KEY_BYTES = 16


def read_signing_keys(path: Path) -> list[bytes]:
    """Reads a file of keys, one a line, of 16 bytes or more each. The first key signs; every key verifies.

    Raises:
        CredentialsError: the file can't be read, is empty, or has a key that is too short.
    """
    keys = [key for line in read(path).splitlines() if (key := line.strip())]
    if not keys or min(map(len, keys)) < MIN_KEY_BYTES:
        raise CredentialsError(f"{path} holds no usable keys, expected one a line, of {MIN_KEY_BYTES} characters or more")
    return keys
