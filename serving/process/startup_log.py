"""The log events at the start and the end of the service, with one process or several."""

import logging
import sys
from pathlib import Path
from typing import NamedTuple

from prometheus_client.registry import Collector

from serving.build_info import commit, version
from serving.ports import address
from serving.settings import Settings
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)


class ModelDescription(NamedTuple):
    """The model that answers requests which name none.

    Attributes:
        description: in words, with how it is run.
        version: a decimal integer; empty when the model is not loaded.
    """

    description: str
    version: str


def log_started(settings: Settings, served: ModelDescription, grpc_port: int, http_port: int) -> None:
    """Logs the event `started`: the model, the addresses, the code; a text log also gets a command to try."""
    grpc, http = address(settings.host, grpc_port), address(settings.host, http_port)
    workers = f" in each of {settings.workers} workers" if settings.workers > 1 else ""
    log_event(
        log,
        logging.INFO,
        "started",
        f"{served.description}{workers}, {grpc} for gRPC, http://{http}/metrics",
        grpc_address=grpc,
        metrics_address=http,
        model=settings.default_model,
        version=served.version,
        provider=settings.provider,
        workers=settings.workers,
        instances=settings.instances,
        service_version=version(),
        commit=commit(),
    )
    if settings.log_format == "text":
        command = _from_here(Path(sys.executable).with_name("digits"))
        sample = _from_here(Path(__file__).parent.parent / "samples" / "7.png")
        flags = " ".join([f"--address {grpc}", *_credential_flags(settings)])
        log.info("send it a first digit: %s recognize %s %s", command, flags, sample)


def log_stopped(metrics: Collector) -> None:
    """Logs the event `stopped`, with the number of calls by status code."""
    calls = calls_by_code(metrics)
    log_event(log, logging.INFO, "stopped", f"stopped; calls ended, by status code: {calls}", calls=calls)


def calls_by_code(metrics: Collector) -> dict[str, int]:
    """Returns the number of calls that have ended so far, by status code."""
    calls: dict[str, int] = {}
    for metric in metrics.collect():
        for sample in metric.samples:
            if sample.name == "digits_requests_total":
                code = sample.labels["code"]
                calls[code] = calls.get(code, 0) + int(sample.value)
    return calls


def _credential_flags(settings: Settings) -> list[str]:
    """Returns the flags that a client of this service needs, with capitals for the files that only its user knows."""
    flags = []
    if settings.tls_certificate:
        flags.append("--tls-ca CA.pem")
    if settings.tls_client_ca:
        flags.append("--tls-certificate CLIENT.pem --tls-key CLIENT_KEY.pem")
    if settings.tokens:
        flags.append("--token-file TOKEN")
    return flags


def _from_here(path: Path) -> Path:
    """Returns the path relative to the working directory if it lies below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
