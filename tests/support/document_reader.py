"""Runs the code blocks of a Markdown document in order, as a reader would, against real services.

markdown_blocks.py explains the info strings. Documents name the ports 8001 and 8002; the blocks run with free ones.

`python -m tests.support.document_reader README.md` runs a document and writes the outputs that differ into it.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import trustme

from tests.support import credentials
from tests.support.markdown_blocks import Block, blocks, matches, session

ROOT = Path(__file__).parent.parent.parent
SECONDS = 60  # for one command or block; the longest take about two
LOG_SECONDS = 5  # a line that is not in the log by then is not written

_GRPC_PORT, _METRICS_PORT = "8001", "8002"

_INTERPRETER = """
import sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    try:
        with open(line.strip(), encoding="utf-8") as file:
            exec(compile(file.read(), line.strip(), "exec"), names)
        ending = "passed"
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        ending = "failed"
    print(f"\\0{ending}", flush=True)
"""


@dataclass
class Result:
    """Outcome of one block.

    Attributes:
        block: the block that ran.
        problem: what went wrong, with the output; None where the block ran as printed.
        body: the block with the outputs of this run, where only these differ; else None.
    """

    block: Block
    problem: str | None = None
    body: str | None = None


@dataclass
class Reader:
    """Runs blocks in a working directory, and holds the server and the interpreter that they use.

    Attributes:
        directory: the working directory.
        ports: the ports of this run, by the ports that documents name.
        server: the server that the last `serve` block has started.
        interpreter: runs all Python blocks.
        printed: output of the last Python block.
        logged: number of the server's log lines that were compared.
    """

    directory: Path
    ports: dict[str, str]
    server: "subprocess.Popen[bytes] | None" = None
    interpreter: "subprocess.Popen[str] | None" = None
    printed: str = ""
    logged: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self.interpreter:
            assert self.interpreter.stdin is not None
            assert self.interpreter.stdout is not None
            self.interpreter.stdin.close()
            self.interpreter.stdout.close()
            self.interpreter.wait(SECONDS)

    def run(self, block: Block) -> Result:
        """Runs one block."""
        try:
            return self._run(block)
        except (RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
            return Result(block, str(error))

    def _run(self, block: Block) -> Result:
        if block.no_run is not None or block.info == "text":
            return Result(block)
        match block.language, block.role:
            case (("sh" | "console"), ("" | "serve")):
                return self._commands(block)
            case "python", "":
                return self._python(block)
            case "text", "output":
                return self._compared(block, block.body, self.printed)
            case "json", ("log" | "log stop"):
                return self._log(block)
            case "promql", "":
                return self._promql(block)
            case "toml", file if re.fullmatch(r"[\w./-]+\.toml", file):
                target = self.directory / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.body)
                return Result(block)
        return Result(block, f"`{block.info}` is no info string that this test knows")

    def stop(self) -> None:
        """Sends SIGTERM to the server, and waits until it is gone."""
        if self.server is None:
            return
        try:
            self.server.terminate()
            self.server.wait(SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.server.pid, signal.SIGKILL)
        self.server = None

    @property
    def log(self) -> Path:
        return self.directory / "server.log"

    def _commands(self, block: Block) -> Result:
        """Runs a script, a session or a server."""
        if block.language == "sh" and block.role == "serve":
            self._serve(block.body, "")
            return Result(block)
        if block.language == "sh":
            done = self._shell(block.body)
            return Result(block, f"exit status {done.returncode}\n{self._read(done.stdout)}" if done.returncode else None)
        commands = session(block.body)
        body, differing = "", ""
        for number, (command, expected) in enumerate(commands, 1):
            serves = block.role == "serve" and number == len(commands)
            output = self._serve(command, expected) if serves else self._read(self._shell(command).stdout)
            same = matches(expected, output)
            body += f"$ {command}{expected if same else output}"
            differing += "" if same else f"$ {command}{output}"
        return Result(block, f"the output is\n{differing}", body) if differing else Result(block)

    def _shell(self, script: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._here(script)],
            cwd=self.directory,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )

    def _serve(self, command: str, expected: str) -> str:
        """Starts a server in the place of the last one; returns its log.

        Raises:
            RuntimeError: the server did not start.
        """
        self.stop()
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(
                ["bash", "-euc", self._here(f"exec env {command}")],
                cwd=self.directory,
                env=self._environment(workers=2 if expected else 1),  # one starts faster, where no log is compared
                stdout=log,
                stderr=log,
                process_group=0,
            )
        deadline = time.monotonic() + SECONDS
        while not self._ready():
            if self.server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start\n{''.join(self._lines())}")
            time.sleep(0.05)
        deadline = time.monotonic() + LOG_SECONDS
        while not matches(expected, "".join(lines := self._lines())) and expected and time.monotonic() < deadline:
            time.sleep(0.05)
        self.logged = len(lines)
        return "".join(lines)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[_METRICS_PORT]}/readyz", timeout=SECONDS) as page:
                return bool(page.status == 200)
        except OSError:
            return False

    def _lines(self) -> list[str]:
        lines = self._read(self.log.read_bytes()).splitlines(keepends=True)
        return [line for line in lines if "GET /readyz" not in line]  # this test asked, not the reader

    def _log(self, block: Block) -> Result:
        if block.role == "log stop":
            self.stop()
        deadline = time.monotonic() + LOG_SECONDS
        while not matches(block.body, "".join(lines := self._lines()[self.logged :])) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.logged += len(lines)
        return self._compared(block, block.body, "".join(lines))

    def _python(self, block: Block) -> Result:
        if self.interpreter is None:
            self.interpreter = subprocess.Popen(
                [sys.executable, "-c", _INTERPRETER],
                cwd=self.directory,
                env=self._environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self.interpreter.stdin is not None
        assert self.interpreter.stdout is not None
        script = self.directory / f"block_{block.line}.py"
        script.write_text(self._here(block.body))
        self.interpreter.stdin.write(f"{script}\n")
        self.interpreter.stdin.flush()
        self.printed = ""
        for line in self.interpreter.stdout:
            text, ended, ending = line.partition("\0")
            self.printed += text
            if ended:
                return Result(block) if ending == "passed\n" else Result(block, self.printed)
        return Result(block, f"the interpreter ended\n{self.printed}")

    def _promql(self, block: Block) -> Result:
        import promql_parser

        try:
            promql_parser.parse(block.body)
        except ValueError as error:
            return Result(block, str(error))
        return Result(block)

    def _compared(self, block: Block, expected: str, actual: str) -> Result:
        if matches(expected, actual):
            return Result(block)
        return Result(block, f"the output is\n{actual}", actual)

    def _here(self, text: str) -> str:
        """Replaces the ports that a document names by those of this run."""
        return re.sub(rf"(?<=:)({_GRPC_PORT}|{_METRICS_PORT})\b", lambda port: self.ports[port[0]], text)

    def _read(self, output: bytes) -> str:
        text = output.decode(errors="replace")
        # The programs are those of the environment that runs the test, wherever that lies.
        for path, named in ((f"{Path(sys.executable).parent}/", ".venv/bin/"), (f"{self.directory}/", ""), (f"{ROOT}/", "")):
            text = text.replace(path, named)
        for named, used in self.ports.items():
            text = text.replace(f":{used}", f":{named}").replace(f"={used}", f"={named}")
        return text

    def _environment(self, workers: int = 1) -> dict[str, str]:
        """Returns the variables of a command: none of the caller's settings, and two cores, as the documents show."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DIGITS_", "OTEL_", "MAKE"))}
        return {
            **kept,
            "PATH": f"{self.directory}/bin:{os.environ['PATH']}",
            "PYTHONPATH": f"{self.directory / 'installed'}:{ROOT}",
            "PYTHONSAFEPATH": "1",  # the working directory has a `serving` too
            "PIP_TARGET": str(self.directory / "installed"),
            "PIP_NO_DEPS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads 0 as: build without isolation
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_QUIET": "1",
            "DIGITS_GRPC_PORT": self.ports[_GRPC_PORT],
            "DIGITS_METRICS_PORT": self.ports[_METRICS_PORT],
            "DIGITS_WORKERS": str(workers),
            "DIGITS_INSTANCES": "2",
            "DIGITS_DRAIN_SECONDS": "0",
        }


@contextmanager
def reader() -> Iterator[Reader]:
    """Yields a reader in a directory that looks like a checkout after `make serve`, with TLS files as of an authority."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="digits-documents-")))
        one = stack.enter_context(Reader(directory, dict(zip((_GRPC_PORT, _METRICS_PORT), _ports(), strict=True))))
        for name in ("Makefile", "pyproject.toml", "protos", "serving"):
            (directory / name).symlink_to(ROOT / name)

        address = f"127.0.0.1:{one.ports[_GRPC_PORT]}"
        _program(
            directory / ".venv" / "bin" / "digits",
            f'case "$1" in recognize|field|truth|loadtest) name=$1; shift; set -- "$name" --address {address} "$@";; esac\n'
            f'exec {sys.executable} -m serving "$@"',
        )
        _program(directory / ".venv" / "bin" / "python", f'exec {sys.executable} "$@"')
        _program(directory / ".venv" / "bin" / "pip", f'exec {sys.executable} -m pip "$@"')
        # -o: the test's own environment stands in the place of the one that `make` would install.
        make = shutil.which("make") or "make"
        _program(directory / "bin" / "make", f'exec {make} -o .venv/.serving -o .venv/.everything "$@"')

        authority = trustme.CA()
        credentials.Files(directory).put(credentials.issue(authority), authority)
        client = authority.issue_cert("sorter-7")
        (directory / "client.crt").write_bytes(credentials.chain(client))
        (directory / "client.key").write_bytes(credentials.key(client))
        yield one


def _program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def _ports() -> list[str]:
    """Returns two free ports below those that the kernel gives out for port 0, which other tests use meanwhile."""
    found: list[str] = []
    while len(found) < 2:
        port = random.randrange(20_000, 32_000)  # noqa: S311 # no secret
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.append(str(port))
    return found


def rewrite(document: Path) -> list[Result]:
    """Runs a document and writes the outputs of this run where they differ. Returns the blocks that failed otherwise."""
    text = document.read_text()
    lines = text.splitlines(keepends=True)
    failed: list[Result] = []
    with reader() as one:
        results = [one.run(block) for block in blocks(text)]
    for result in reversed(results):
        if result.body is not None:
            length = len(result.block.body.splitlines())
            lines[result.block.line : result.block.line + length] = [result.body]
        elif result.problem:
            failed.append(result)
    document.write_text("".join(lines))
    return failed


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        for result in rewrite(Path(argument)):
            print(f"{argument}:{result.block.line}: {result.problem}")
