"""What the log says when the service begins to answer, and when it has ended; the same with one process or several."""

import logging
import sys
from pathlib import Path
from typing import NamedTuple

from prometheus_client.registry import Collector

from serving.ports import address
from serving.settings import Settings
from serving.telemetry.logs import log_event

log = logging.getLogger(__name__)


class Described(NamedTuple):
    """What answers when a request names no model: in words, and the version; empty when it is unloaded."""

    words: str
    version: str


def announce(settings: Settings, what: Described, grpc_port: int, http_port: int) -> None:
    """Logs what serves, and where; to people also a command that sends it a first digit."""
    grpc, http = address(settings.host, grpc_port), address(settings.host, http_port)
    workers = f" in each of {settings.workers} workers" if settings.workers > 1 else ""
    log_event(
        log,
        logging.INFO,
        "started",
        f"{what.words}{workers}, {grpc} for gRPC, http://{http}/metrics",
        grpc_address=grpc,
        metrics_address=http,
        model=settings.default_model,
        version=what.version,
        provider=settings.provider,
        workers=settings.workers,
        instances=settings.instances,
    )
    if settings.log_format == "text":
        command = _from_here(Path(sys.executable).with_name("digits"))
        sample = _from_here(Path(__file__).parent.parent / "samples" / "7.png")
        log.info("send it a first digit: %s recognize --address %s %s", command, grpc, sample)


def log_stopped(metrics: Collector) -> None:
    """Logs the end, with how many calls have ended, by status code, as the metrics say."""
    calls = calls_by_code(metrics)
    log_event(log, logging.INFO, "stopped", f"stopped; calls ended, by status code: {calls}", calls=calls)


def calls_by_code(metrics: Collector) -> dict[str, int]:
    """How many calls have ended so far, by status code."""
    calls: dict[str, int] = {}
    for metric in metrics.collect():
        for sample in metric.samples:
            if sample.name == "digits_requests_total":
                code = sample.labels["code"]
                calls[code] = calls.get(code, 0) + int(sample.value)
    return calls


def _from_here(path: Path) -> Path:
    """The path as one would type it: from the working directory where it lies below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
