"""Virtual environments of the peers: made once, and made again when the requirements change."""

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.peers.peer import HERE, Peer, PeerUnavailable

_INSTALL_SECONDS = 900.0


def installed(peer: Peer) -> Path:
    """Returns the directory of the peer's environment, with the same ONNX Runtime as ours.

    Raises:
        PeerUnavailable: the environment can't be made.
    """
    python = next((python for python in peer.pythons if _makes_environments(python)), None)
    if python is None:
        raise PeerUnavailable(f"no Python that makes virtual environments among {', '.join(peer.pythons)}")
    requirements = HERE / "requirements" / f"{peer.distribution}.txt"
    runtime = f"onnxruntime=={version('onnxruntime')}"
    venv, stamp = peer.directory / "venv", peer.directory / "installed"
    made_of = f"{requirements.read_text()}{runtime}\n{python}\n"
    if stamp.exists() and stamp.read_text() == made_of:
        return venv
    shutil.rmtree(peer.directory, ignore_errors=True)
    peer.directory.mkdir(parents=True)
    log = peer.directory / "install.log"
    _run([python, "-m", "venv", str(venv)], log)
    pip = [
        str(venv / "bin" / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--quiet",
        "--no-input",
        "--retries",
        "2",
    ]
    _run([*pip, "install", "--prefer-binary", "-r", str(requirements), runtime], log)
    stamp.write_text(made_of)
    return venv


def last_words(log: Path, lines: int = 8) -> str:
    """Returns the end of a log on one line, for a report."""
    written = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return " | ".join(line[:300] for line in written[-lines:])


def _makes_environments(python: str) -> bool:
    """Checks that a Python exists, is new enough, and has ensurepip, which Debian packages separately."""
    check = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([python, "-c", check], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _run(command: list[str], log: Path) -> None:
    with log.open("a") as out:
        try:
            status = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=_INSTALL_SECONDS, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            raise PeerUnavailable(f"not installed in {_INSTALL_SECONDS:.0f} s: {last_words(log, 3)}") from None
    if status:
        raise PeerUnavailable(f"can't be installed: {last_words(log, 3)}")
