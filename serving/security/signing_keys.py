"""The keys that sign recognition ids, from a file."""

from pathlib import Path

from serving.security.credential_files import CredentialsError, read

LEAST_KEY_BYTES = 16


def read_signing_keys(path: Path) -> list[bytes]:
    """Reads the keys of a file, one a line, of 16 bytes or more each. The first one signs.

    Raises:
        CredentialsError: the file can't be read, is empty, or a key is too short.
    """
    keys = [key for line in read(path).splitlines() if (key := line.strip())]
    if not keys or min(map(len, keys)) < LEAST_KEY_BYTES:
        raise CredentialsError(f"{path} holds no usable keys, expected one a line, of {LEAST_KEY_BYTES} characters or more")
    return keys
