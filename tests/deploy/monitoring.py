"""Runs the real Prometheus and the real Alertmanager for a service, in seconds rather than days.

Configuration and rules come from deploy/prometheus, with shorter times. Prometheus scrapes every second instead of every
15 s, and WINDOWS replaces each window of the expressions.
"""

import http.server
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.manifests import DEPLOY
from tests.support.service import free_ports

Alert = dict[str, Any]
Sample = dict[str, Any]

WINDOWS = {
    "5m": "5s",
    "10m": "6s",
    "30m": "8s",
    "1h": "10s",
    "6h": "14s",
    "1d": "16s",
    "3d": "18s",
    "7d": "20s",
}
"""The windows and offsets of the rules, and their replacements."""

_EVERY = "1s"
"""Interval of scrapes and evaluations, and time for which an alert is pending."""

_READY_SECONDS = 20


def needs(program: str) -> str:
    """Returns the reason to skip a test, or "" if the program is installed."""
    package = {"promtool": "prometheus", "amtool": "prometheus-alertmanager"}.get(program, program)
    return "" if shutil.which(program) else f"needs {program}: apt-get install {package}"


def shortened(expr: str) -> str:
    """Replaces the windows and offsets of an expression."""
    return re.sub(r"(?<=\[)\w+(?=\])|(?<=offset )\w+", lambda found: WINDOWS[found[0]], expr)


def shortened_rules(text: str) -> dict[str, Any]:
    """Replaces all times of the rules."""
    content: dict[str, Any] = yaml.safe_load(text)
    for group in content["groups"]:
        group["interval"] = _EVERY
        for rule in group["rules"]:
            rule["expr"] = shortened(rule["expr"])
            if "for" in rule:
                rule["for"] = _EVERY
    return content


class Webhook:
    """The alerts that Alertmanager has sent.

    Attributes:
        url: address of the webhook.
    """

    def __init__(self, url: str):
        self.url = url
        self._alerts: list[Alert] = []
        self._came = threading.Condition()

    def take(self, alerts: list[Alert]) -> None:
        with self._came:
            self._alerts += alerts
            self._came.notify_all()

    def wait_for(self, name: str, timeout_seconds: float, **labels: str) -> Alert:
        """Waits for a firing alert of that name with these labels."""

        def found() -> Alert | None:
            wanted = {"alertname": name, **labels}.items()
            matching = (alert for alert in self._alerts if alert["status"] == "firing" and wanted <= alert["labels"].items())
            return next(matching, None)

        with self._came:
            alert = self._came.wait_for(found, timeout_seconds)
            assert alert is not None, f"{name} {labels} did not arrive, these did: {self._names()}"
            return alert

    def _names(self) -> list[str]:
        return sorted({alert["labels"]["alertname"] for alert in self._alerts})


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Runs a webhook that receives alerts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.take(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *values: object) -> None:  # noqa: A002 - the name is http.server's
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Webhook(f"http://127.0.0.1:{server.server_address[1]}/")
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield receiver
        finally:
            server.shutdown()


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str):
        self._url = url

    def query(self, expr: str) -> list[Sample]:
        """Runs a query and returns its samples, without NaN."""
        return [sample for sample in self._ask("query", query=expr)["result"] if sample["value"][1] != "NaN"]

    def firing(self) -> set[str]:
        """Returns the names of all firing alerts."""
        return {alert["labels"]["alertname"] for alert in self._ask("alerts")["alerts"] if alert["state"] == "firing"}

    def rule_errors(self) -> list[str]:
        """Returns the rules whose last evaluation failed, with the errors."""
        groups = self._ask("rules")["groups"]
        return [
            f"{rule['name']}: {rule['lastError']}" for group in groups for rule in group["rules"] if rule.get("lastError")
        ]

    def _ask(self, endpoint: str, **parameters: str) -> Any:
        address = f"{self._url}/api/v1/{endpoint}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as page:
                return json.load(page)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(f"{parameters}: {json.load(error)['error']}") from None


@contextmanager
def prometheus(directory: Path, targets: Mapping[str, str], alertmanager: str) -> Iterator[Prometheus]:
    """Starts a Prometheus that scrapes `targets`, metrics addresses by pod, and notifies `alertmanager`."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": _EVERY, "scrape_timeout": _EVERY, "evaluation_interval": _EVERY}
    config["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [alertmanager]}]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [
        {"targets": [address], "labels": {"namespace": "here", "pod": pod}} for pod, address in targets.items()
    ]
    directory.mkdir()
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (directory / "rules.yaml").write_text(
        yaml.safe_dump(shortened_rules((DEPLOY / "prometheus" / "rules.yaml").read_text()))
    )
    (port,) = free_ports(1)
    flags = [f"--config.file={directory / 'prometheus.yaml'}", f"--storage.tsdb.path={directory / 'data'}"]
    with _running(["prometheus", *flags, f"--web.listen-address=127.0.0.1:{port}"], directory, port):
        yield Prometheus(f"http://127.0.0.1:{port}")


@contextmanager
def alertmanager(directory: Path, webhook_url: str) -> Iterator[str]:
    """Starts an Alertmanager that notifies the webhook at once. Yields its address."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "alertmanager.yaml").read_text())
    for route in (config["route"], *config["route"]["routes"]):
        route.update(group_wait=_EVERY, group_interval=_EVERY)
    for one in config["receivers"]:
        for hook in one["webhook_configs"]:
            hook["url"] = webhook_url
    directory.mkdir()
    (directory / "alertmanager.yaml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    flags = [f"--config.file={directory / 'alertmanager.yaml'}", f"--storage.path={directory / 'data'}"]
    flags += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]
    with _running(["prometheus-alertmanager", *flags], directory, port):
        yield f"127.0.0.1:{port}"


@contextmanager
def _running(command: list[str], directory: Path, port: int) -> Iterator[None]:
    """Starts a program, waits until it is ready, and kills it at the end of the block."""
    log = directory / "log"
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            ready = _ready(f"http://127.0.0.1:{port}/-/ready", lambda: process.poll() is None)
            assert ready, log.read_text()
            yield
        finally:
            process.kill()


def _ready(url: str, lives: Callable[[], bool]) -> bool:
    end = time.monotonic() + _READY_SECONDS
    while lives() and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except OSError:
            time.sleep(0.1)
    return False
