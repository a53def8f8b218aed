"""The servers measured beside ours: the command, the settings and the protocol of each."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import Distribution
from pathlib import Path

from serving.loadtest.calls import GrpcTarget
from serving.loadtest.target import Target
from tests.benchmarks.peers.targets import HttpTarget

HERE = Path(__file__).parent
SERVERS = HERE / "servers"
CACHE = Path("build") / "peers"
MODEL = "digits"  # the name of the model in every server
PYTHON = (sys.executable,)
DEBIAN_FIRST = ("/usr/bin/python3", sys.executable)  # Triton's Python backend finds the libpython of Debian's Python


class PeerUnavailable(Exception):
    """A peer can't be installed or started on this machine; the message has the reason."""


@dataclass(frozen=True)
class Peer:
    """A model server.

    Placeholders in `command` and `environment`: {python} and {bin} of its virtual environment, {servers} for our directory
    of server scripts, {model} for the ONNX file, and the free ports {port}, {second_port} and {third_port}. The server
    answers on {port}.

    Attributes:
        name: its name in a report.
        distribution: its package on the index; also the name of its requirements and of its environment.
        command: starts the server, in an empty directory.
        settings: its settings in words, for the report.
        target: makes the load test's target from its address.
        environment: variables added to those that every peer gets.
        pythons: candidates for its environment; the first that exists is used.
        start_seconds: time limit for the first answer.
        version_in_log: regular expression for the version in its log, where it differs from the package's version.
    """

    name: str
    distribution: str
    command: tuple[str, ...]
    settings: str
    target: Callable[[str], Target]
    environment: Mapping[str, str] = field(default_factory=dict)
    pythons: tuple[str, ...] = PYTHON
    start_seconds: float = 60.0
    version_in_log: str = ""

    @property
    def directory(self) -> Path:
        """Directory of its environment and its log."""
        return CACHE.absolute() / self.distribution

    @property
    def log(self) -> Path:
        """Log file of its last run."""
        return self.directory / f"{self.name.replace(' ', '_')}.log"

    def version(self) -> str:
        """Returns the measured version; the peer must have run."""
        if self.version_in_log and (found := re.search(self.version_in_log, self.log.read_text(errors="replace"))):
            return found[1]
        site_packages = [str(path) for path in self.directory.glob("venv/lib/python*/site-packages")]
        return next(iter(Distribution.discover(name=self.distribution, path=site_packages))).version


_TWO_INSTANCES = "two instances of one ONNX Runtime thread"

PEERS = (
    Peer(
        "KServe SDK",
        "kserve",
        ("{python}", "{servers}/on_kserve.py", "--grpc_port={port}", "--http_port={second_port}"),
        "gRPC; one process, ONNX Runtime in two threads of its executor; the SDK does not batch; logs warnings only",
        GrpcTarget,
        {"KSERVE_LOGLEVEL": "WARNING"},
    ),
    Peer(
        "MLServer",
        "mlserver",
        ("{bin}/mlserver", "start", "{servers}/mlserver"),
        "gRPC; one process, ONNX Runtime in two threads; parallel_workers 0 and no adaptive batching, both of which were "
        "slower; debug off",
        GrpcTarget,
        {
            "MLSERVER_GRPC_PORT": "{port}",
            "MLSERVER_HTTP_PORT": "{second_port}",
            "MLSERVER_METRICS_PORT": "{third_port}",
        },
    ),
    Peer(
        "Triton",
        "nvidia-pytriton",
        ("{python}", "{servers}/on_triton.py"),
        f"gRPC; the server that PyTriton brings, Python backend, {_TWO_INSTANCES}; dynamic batching of up to 1,024 images, "
        "no queue delay",
        GrpcTarget,
        pythons=DEBIAN_FIRST,
        version_in_log=r"server_version +\| +([\d.]+)",
    ),
    Peer(
        "PyTriton",
        "nvidia-pytriton",
        ("{python}", "{servers}/on_pytriton.py"),
        f"gRPC; {_TWO_INSTANCES} (two callables with @batch); dynamic batching of up to 1,024 images, no queue delay",
        GrpcTarget,
        pythons=DEBIAN_FIRST,
    ),
    Peer(
        "Mosec",
        "mosec",
        ("{python}", "{servers}/on_mosec.py", "--address=127.0.0.1", "--port={port}", "--log-level=warning"),
        f"HTTP, raw bytes; {_TWO_INSTANCES} (two workers); batches of up to 64 calls, max_wait_time 1 ms, its minimum",
        lambda address: HttpTarget(address, "/inference"),
    ),
    Peer(
        "LitServe",
        "litserve",
        ("{python}", "{servers}/on_litserve.py"),
        f"HTTP, raw bytes; {_TWO_INSTANCES} (workers_per_device 2), two API servers, fast_queue; batches of up to 64 calls, "
        "batch_timeout 1 ms, because it polls without a pause at 0",
        lambda address: HttpTarget(address, "/predict"),
    ),
    Peer(
        "BentoML",
        "bentoml",
        ("{bin}/bentoml", "serve", "on_bentoml:Digits", "--host=127.0.0.1", "--port={port}", "--working-dir={servers}"),
        f"HTTP, JSON, its format for arrays; {_TWO_INSTANCES} (workers 2); adaptive batching of up to 4,096 images; "
        "access log off",
        lambda address: HttpTarget(address, "/predict", "json"),
        {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": "bentoml"},
    ),
    Peer(
        "Ray Serve",
        "ray",
        ("{python}", "{servers}/on_ray.py"),
        f"HTTP, raw bytes; {_TWO_INSTANCES} (two replicas); serve.batch of up to 64 calls, batch_wait_timeout_s 0; "
        "RAY_SERVE_THROUGHPUT_OPTIMIZED; access log off",
        lambda address: HttpTarget(address, "/"),
        {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        start_seconds=120.0,
    ),
)
