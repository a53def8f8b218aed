"""A PostgreSQL of a test's own, on a free port, gone when it ends."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

STARTS_WITHIN_SECONDS = 20


def programs() -> Path | None:
    """The directory with initdb and postgres; Debian keeps them out of the PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return max((file.parent for file in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)


@dataclass
class Postgres:
    """A server that can be stopped and started.

    Attributes:
        url: of its database, with the password.
    """

    url: str
    _command: list[str]
    _user: str | None
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Returns once it takes connections."""
        self._process = subprocess.Popen(self._command, user=self._user, cwd="/", stderr=subprocess.DEVNULL)
        end = time.monotonic() + STARTS_WITHIN_SECONDS
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=STARTS_WITHIN_SECONDS).close()
                return
            except psycopg.OperationalError:  # it does not listen yet, or recovers from how it was stopped
                assert time.monotonic() < end
                assert self._process.poll() is None, "postgres ended"
                time.sleep(0.05)

    def stop(self) -> None:
        """Breaks all connections, and loses nothing that was committed."""
        if self._process:
            self._process.send_signal(3)  # SIGQUIT: at once, as a crash would
            self._process.wait(STARTS_WITHIN_SECONDS)


@contextmanager
def stopped(directory: Path) -> Iterator[Postgres]:
    """One whose programs are in `directory`; it is not started yet."""
    user = "nobody" if os.getuid() == 0 else None  # it refuses to run as root
    with tempfile.TemporaryDirectory() as place, socket.socket() as probe:
        data, password = Path(place) / "data", Path(place) / "password"
        password.write_text("do-not-show-me")
        if user:
            for path in (Path(place), password):
                shutil.chown(path, user)
        making = ["-D", str(data), "-U", "digits", "-E", "UTF8", "--auth=scram-sha-256", f"--pwfile={password}"]
        subprocess.run([directory / "initdb", *making], user=user, cwd="/", check=True, capture_output=True)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        where = ["-p", str(port), "-k", place, "-c", "listen_addresses=127.0.0.1"]
        command = [str(directory / "postgres"), "-D", str(data), *where]
        made = Postgres(f"postgresql://digits:do-not-show-me@127.0.0.1:{port}/postgres", command, user)
        try:
            yield made
        finally:
            made.stop()
