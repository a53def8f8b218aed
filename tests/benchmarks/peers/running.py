"""Running peers: a context manager that starts one, and one call to it."""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.inference.model import open_model
from serving.loadtest.plan import Plan
from serving.loadtest.target import Digits, Images, Outcome, Target
from tests.benchmarks.peers.environment import installed, last_words
from tests.benchmarks.peers.peer import HERE, MODEL, SERVERS, Peer, PeerUnavailable
from tests.support.drawings import draw_many
from tests.support.service import free_ports

_END_SECONDS = 20.0


@contextmanager
def running(peer: Peer, model: Path) -> Iterator[str]:
    """Runs a peer, and yields its address once it has answered rightly; all its processes are gone after the block.

    Raises:
        PeerUnavailable: the peer can't be installed, or gives no right answer in time.
    """
    venv = installed(peer)
    ports = free_ports(3)
    fields = {
        "python": venv / "bin" / "python",
        "bin": venv / "bin",
        "servers": SERVERS,
        "model": model.absolute(),
        **dict(zip(("port", "second_port", "third_port"), ports, strict=True)),
    }
    with tempfile.TemporaryDirectory(prefix="peer-", ignore_cleanup_errors=True) as directory, peer.log.open("w") as log:
        own = {
            "MODEL": "{model}",
            "PORT": "{port}",
            "SECOND_PORT": "{second_port}",
            "PYTHONPATH": "{servers}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": directory,
            "HOME": directory,  # their files there go with the directory
            **peer.environment,
        }
        process = subprocess.Popen(
            [sys.executable, str(HERE / "leash.py"), *(part.format(**fields) for part in peer.command)],
            cwd=directory,
            env={**os.environ, **{name: value.format(**fields) for name, value in own.items()}},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            process_group=0,
        )
        try:
            address = f"127.0.0.1:{ports[0]}"
            _await_first_digit(peer, address, model, process)
            yield address
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def ask(target: Target, images: Images, timeout: float = 10.0) -> Outcome:
    """Sends one call."""
    plan = Plan(rpc="infer", images=len(images), callers=1, timeout_seconds=timeout, model=MODEL, connections=1)
    (caller,) = target.callers(plan)
    try:
        return await caller.call(target.request(plan, images))
    finally:
        await caller.close()


def expected(model: Path, images: Images) -> Digits:
    """Returns the digits by ONNX Runtime in this process."""
    return tuple(open_model(model.read_bytes(), "").predict(images).argmax(axis=1).tolist())


def _await_first_digit(peer: Peer, address: str, model: Path, process: "subprocess.Popen[bytes]") -> None:
    images = draw_many(1, seed=0)[0]
    right, answer = expected(model, images), Outcome("UNAVAILABLE")
    end = time.monotonic() + peer.start_seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise PeerUnavailable(f"ended with status {process.returncode}: {last_words(peer.log)}")
        answer = asyncio.run(ask(peer.target(address), images, 5.0))
        if answer[:2] == ("OK", right):
            return
        time.sleep(0.2)
    raise PeerUnavailable(f"no right answer in {peer.start_seconds:.0f} s, the last {answer}: {last_words(peer.log)}")
