"""The real Prometheus and the real Alertmanager around a real service, on this machine alone, in seconds rather than days.

The configuration is that of deploy/prometheus, and so are the rules, but for their times: a scrape a second in the place of
one in fifteen, and each window in the expressions as WINDOWS has it, as nobody waits three days for a test.
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
"""The windows and offsets of the rules, and what they are here."""

_EVERY = "1s"
"""How often is scraped and evaluated, and for how long an alert is pending."""

_READY_SECONDS = 20


def needs(program: str) -> str:
    """Why a test can't be tried here; nothing where the program is installed."""
    package = {"promtool": "prometheus", "amtool": "prometheus-alertmanager"}.get(program, program)
    return "" if shutil.which(program) else f"needs {program}: apt-get install {package}"


def shortened(expr: str) -> str:
    """An expression with its windows and offsets as they are here."""
    return re.sub(r"(?<=\[)\w+(?=\])|(?<=offset )\w+", lambda found: WINDOWS[found[0]], expr)


def shortened_rules(text: str) -> dict[str, Any]:
    """The rules with all their times as they are here."""
    content: dict[str, Any] = yaml.safe_load(text)
    for group in content["groups"]:
        group["interval"] = _EVERY
        for rule in group["rules"]:
            rule["expr"] = shortened(rule["expr"])
            if "for" in rule:
                rule["for"] = _EVERY
    return content


class Webhook:
    """What Alertmanager tells.

    Attributes:
        url: where.
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
        """The first firing alert of that name with these labels, once it is here."""

        def found() -> Alert | None:
            wanted = {"alertname": name, **labels}.items()
            told = (alert for alert in self._alerts if alert["status"] == "firing" and wanted <= alert["labels"].items())
            return next(told, None)

        with self._came:
            alert = self._came.wait_for(found, timeout_seconds)
            assert alert is not None, f"{name} {labels} did not come; these did: {self._names()}"
            return alert

    def _names(self) -> list[str]:
        return sorted({alert["labels"]["alertname"] for alert in self._alerts})


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Somebody who takes alerts while the block lasts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taker.take(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *values: object) -> None:  # noqa: A002 - the name is http.server's
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        taker = Webhook(f"http://127.0.0.1:{server.server_address[1]}/")
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        try:
            yield taker
        finally:
            server.shutdown()


class Prometheus:
    """A Prometheus that answers."""

    def __init__(self, url: str):
        self._url = url

    def query(self, expr: str) -> list[Sample]:
        """The samples of an answer that are numbers."""
        return [sample for sample in self._ask("query", query=expr)["result"] if sample["value"][1] != "NaN"]

    def firing(self) -> set[str]:
        """The names of all alerts that fire now."""
        return {alert["labels"]["alertname"] for alert in self._ask("alerts")["alerts"] if alert["state"] == "firing"}

    def troubles(self) -> list[str]:
        """Rules whose last evaluation failed, each with the reason."""
        groups = self._ask("rules")["groups"]
        return [
            f"{rule['name']}: {rule['lastError']}" for group in groups for rule in group["rules"] if rule.get("lastError")
        ]

    def _ask(self, what: str, **parameters: str) -> Any:
        address = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(address, timeout=10) as page:
                return json.load(page)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(f"{parameters}: {json.load(error)['error']}") from None


@contextmanager
def prometheus(directory: Path, targets: Mapping[str, str], alertmanager: str) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `targets`, the addresses of metrics by the name of their pod, and tells `alertmanager`."""
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
def alertmanager(directory: Path, receiver: str) -> Iterator[str]:
    """An Alertmanager that tells `receiver` at once; its address."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "alertmanager.yaml").read_text())
    for route in (config["route"], *config["route"]["routes"]):
        route.update(group_wait=_EVERY, group_interval=_EVERY)
    for one in config["receivers"]:
        for hook in one["webhook_configs"]:
            hook["url"] = receiver
    directory.mkdir()
    (directory / "alertmanager.yaml").write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    flags = [f"--config.file={directory / 'alertmanager.yaml'}", f"--storage.path={directory / 'data'}"]
    flags += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="]
    with _running(["prometheus-alertmanager", *flags], directory, port):
        yield f"127.0.0.1:{port}"


@contextmanager
def _running(command: list[str], directory: Path, port: int) -> Iterator[None]:
    """A program that is ready when the block begins, and gone when it ends."""
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
