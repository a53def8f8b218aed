"""A PostgreSQL server for one test, on a free port."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.support.service import free_ports

STARTS_WITHIN_SECONDS = 20


def programs() -> Path | None:
    """Finds the directory with initdb and postgres, which Debian keeps out of the PATH. None if they are not installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return max((file.parent for file in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)


@dataclass
class Postgres:
    """A server that can be stopped and started.

    Attributes:
        url: URL of its database, with the password.
    """

    url: str
    _command: list[str]
    _user: str | None
    _process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Starts the server, and waits until it takes connections."""
        self._process = subprocess.Popen(self._command, user=self._user, cwd="/", stderr=subprocess.DEVNULL)
        end = time.monotonic() + STARTS_WITHIN_SECONDS
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=STARTS_WITHIN_SECONDS).close()
                return
            except psycopg.OperationalError:  # it does not listen yet, or recovers from the last stop
                assert time.monotonic() < end
                assert self._process.poll() is None, "postgres ended"
                time.sleep(0.05)

    def stop(self) -> None:
        """Stops the server at once. All connections break, and committed rows stay."""
        if self._process:
            self._process.send_signal(3)  # SIGQUIT, which has the effect of a crash
            self._process.wait(STARTS_WITHIN_SECONDS)


@contextmanager
def stopped(directory: Path) -> Iterator[Postgres]:
    """Creates a server with the programs in `directory`, without starting it. It is stopped and removed after the block."""
    user = "nobody" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root
    with tempfile.TemporaryDirectory() as home:
        data, password = Path(home) / "data", Path(home) / "password"
        password.write_text("do-not-show-me")
        if user:
            for path in (Path(home), password):
                shutil.chown(path, user)
        options = ["-D", str(data), "-U", "digits", "-E", "UTF8", "--auth=scram-sha-256", f"--pwfile={password}"]
        subprocess.run([directory / "initdb", *options], user=user, cwd="/", check=True, capture_output=True)
        (port,) = free_ports(1)
        listen = ["-p", str(port), "-k", home, "-c", "listen_addresses=127.0.0.1"]
        command = [str(directory / "postgres"), "-D", str(data), *listen]
        postgres = Postgres(f"postgresql://digits:do-not-show-me@127.0.0.1:{port}/postgres", command, user)
        try:
            yield postgres
        finally:
            postgres.stop()
