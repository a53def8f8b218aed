"""Runs the code blocks of a Markdown document in order, as a reader would, against real services.

markdown_blocks.py explains the info strings. Documents name the ports 8001 and 8002; the blocks run with free ones.

`python -m tests.support.document_reader README.md` runs a document and writes the outputs that differ into it.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import trustme

from tests.support import credentials
from tests.support.document_processes import SECONDS, Interpreter, Server
from tests.support.markdown_blocks import Block, blocks, matches, session
from tests.support.service import free_ports

ROOT = Path(__file__).parent.parent.parent
_GRPC_PORT, _METRICS_PORT = "8001", "8002"


@dataclass
class Result:
    """Outcome of one block.

    Attributes:
        block: the block that ran.
        problem: the error with its output; None where the block ran as printed.
        body: the block with the outputs of this run, where only these differ; else None.
    """

    block: Block
    problem: str | None = None
    body: str | None = None


class Reader:
    """Runs blocks in a working directory, and holds the server and the interpreter that they use."""

    def __init__(self, directory: Path, ports: dict[str, str]):
        """Starts no process yet.

        Args:
            directory: the working directory.
            ports: the ports of this run, by the ports that documents name.
        """
        self._directory = directory
        self._ports = ports
        self._server: Server | None = None
        self._compared = 0  # characters of the server's log
        self._interpreter: Interpreter | None = None
        self._printed = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._interpreter:
            self._interpreter.close()

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
            case "sh", "":
                done = self._shell(block.body)
                return Result(
                    block, f"exit status {done.returncode}\n{self._as_printed(done.stdout)}" if done.returncode else None
                )
            case "sh", "serve":
                self._serve(block.body, "")
                return Result(block)
            case "console", ("" | "serve"):
                return self._session(block)
            case "python", "":
                return self._python(block)
            case "text", "output":
                return self._compare(block, self._printed)
            case "json", ("log" | "log stop"):
                return self._log(block)
            case "promql", "":
                return self._promql(block)
            case "toml", file if re.fullmatch(r"[\w./-]+\.toml", file):
                target = self._directory / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(block.body)
                return Result(block)
        return Result(block, f"`{block.info}` is no info string that this test knows")

    def _shell(self, script: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._as_run(script)],
            cwd=self._directory,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )

    def _session(self, block: Block) -> Result:
        commands = session(block.body)
        body, differing = "", ""
        for number, (command, expected) in enumerate(commands, 1):
            if block.role == "serve" and number == len(commands):
                output = self._serve(command, expected)
            else:
                output = self._as_printed(self._shell(command).stdout)
            same = matches(expected, output)
            body += f"$ {command}{expected if same else output}"
            differing += "" if same else f"$ {command}{output}"
        return Result(block, f"the output is\n{differing}", body) if differing else Result(block)

    def _serve(self, command: str, expected: str) -> str:
        """Starts a server instead of the last one; returns its log."""
        self._stop()
        environment = self._environment(workers=2 if expected else 1)  # one starts faster, where no log is compared
        self._server = Server(self._as_run(command), self._directory, environment, self._ports[_METRICS_PORT])
        self._compared = 0
        return self._next_log(expected)

    def _log(self, block: Block) -> Result:
        if self._server is None:
            return Result(block, "no block above has started a server")
        if block.role == "log stop":
            self._server.stop()
        return self._compare(block, self._next_log(block.body))

    def _next_log(self, expected: str) -> str:
        """Returns the lines that the server has logged since the last comparison."""
        assert self._server is not None
        log = self._server.log(lambda text: matches(expected, self._as_printed(text[self._compared :])) or not expected)
        output = self._as_printed(log[self._compared :])
        self._compared = len(log)
        return output

    def _stop(self) -> None:
        if self._server:
            self._server.stop()
        self._server = None

    def _python(self, block: Block) -> Result:
        self._interpreter = self._interpreter or Interpreter(self._directory, self._environment())
        script = self._directory / f"block_{block.line}.py"
        script.write_text(self._as_run(block.body))
        self._printed, passed = self._interpreter.run(script)
        return Result(block, None if passed else self._printed)

    def _promql(self, block: Block) -> Result:
        import promql_parser

        promql_parser.parse(block.body)
        return Result(block)

    def _compare(self, block: Block, output: str) -> Result:
        if matches(block.body, output):
            return Result(block)
        return Result(block, f"the output is\n{output}", output)

    def _as_run(self, text: str) -> str:
        """Replaces the ports that a document names by the ports of this run."""
        return re.sub(rf"(?<=:)({_GRPC_PORT}|{_METRICS_PORT})\b", lambda port: self._ports[port[0]], text)

    def _as_printed(self, output: str) -> str:
        """Replaces the ports and directories of this run by those that a document names."""
        binaries = f"{Path(sys.executable).parent}/"  # of the environment that runs the test, wherever that is
        for path, named in ((binaries, ".venv/bin/"), (f"{self._directory}/", ""), (f"{ROOT}/", "")):
            output = output.replace(path, named)
        for named, used in self._ports.items():
            output = output.replace(f":{used}", f":{named}")
        return output

    def _environment(self, workers: int = 1) -> dict[str, str]:
        """Returns the variables of a command: none of the caller's settings, and two cores, as the documents show."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DIGITS_", "OTEL_", "MAKE"))}
        return {
            **kept,
            "PATH": f"{self._directory}/bin:{os.environ['PATH']}",
            "PYTHONPATH": f"{self._directory / 'installed'}:{ROOT}",
            "PYTHONSAFEPATH": "1",  # the working directory has a `serving` too
            "PIP_TARGET": str(self._directory / "installed"),
            "PIP_NO_DEPS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads 0 as: build without isolation
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_QUIET": "1",
            "DIGITS_GRPC_PORT": self._ports[_GRPC_PORT],
            "DIGITS_METRICS_PORT": self._ports[_METRICS_PORT],
            "DIGITS_WORKERS": str(workers),
            "DIGITS_INSTANCES": "2",
            "DIGITS_DRAIN_SECONDS": "0",
        }


@contextmanager
def reader() -> Iterator[Reader]:
    """Yields a reader in a directory like a checkout after `make serve`, with TLS files that a test authority signed."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="digits-documents-")))
        ports = dict(zip((_GRPC_PORT, _METRICS_PORT), map(str, free_ports(2)), strict=True))
        for name in ("Makefile", "pyproject.toml", "protos", "serving"):
            (directory / name).symlink_to(ROOT / name)

        # The commands that call the service have its address as a default, which is not that of this run.
        address = f"127.0.0.1:{ports[_GRPC_PORT]}"
        _program(
            directory / ".venv" / "bin" / "digits",
            f'case "$1" in recognize|field|truth|loadtest) name=$1; shift; set -- "$name" --address {address} "$@";; esac\n'
            f'exec {sys.executable} -m serving "$@"',
        )
        _program(directory / ".venv" / "bin" / "pip", f'exec {sys.executable} -m pip "$@"')
        # -o: make takes the test's environment for the one that it would install.
        _program(directory / "bin" / "make", f'exec {shutil.which("make")} -o .venv/.serving -o .venv/.everything "$@"')

        authority = trustme.CA()
        credentials.Files(directory).put(credentials.issue(authority), authority)
        client = authority.issue_cert("sorter-7")
        (directory / "client.crt").write_bytes(credentials.chain(client))
        (directory / "client.key").write_bytes(credentials.key(client))
        yield stack.enter_context(Reader(directory, ports))


def _program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


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
