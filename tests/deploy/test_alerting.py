"""Rules, alerts and dashboard with a real service under load and the real Prometheus.

promtool does not notice a missing metric, or two series that never match. Here every recording rule, both sides of every
alert without its threshold, and every query of the dashboard must return data. tests/deploy/monitoring.py shortens the
times and changes nothing else. Then three failures are caused, and Alertmanager must notify a webhook.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trustme
from numpy.typing import NDArray

from serving.client import DigitClient
from serving.samples.draw import SAMPLES
from tests.deploy import promql, series
from tests.deploy.conftest import Prove
from tests.deploy.mail import Mail
from tests.deploy.monitoring import Prometheus, Sample, Webhook, alertmanager, needs, prometheus, shortened, webhook
from tests.deploy.test_dashboard import PANELS
from tests.support import credentials, model_files
from tests.support.calls import TIMEOUT
from tests.support.service import Service, service

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(240)]

STABLE, CANARY, SHADOW, BROKEN = 1, 2, 3, 9
DATA_SECONDS = 90  # timeout until every query has data, as windows must fill first
NOTIFIED_SECONDS = 60  # timeout until an alert arrives

# Alerts that must not fire, for any traffic and on a slow machine too.
SILENT = {
    *("DigitsDown", "DigitsAbsent", "DigitsReplicaRestarting", "DigitsWorkersRestarting", "DigitsDefaultModelMissing"),
    *("DigitsCertificateExpiresSoon", "DigitsCertificateExpiresToday", "DigitsCredentialsNotReloaded"),
    *("DigitsRoutingRefused", "DigitsVersionSkew", "DigitsLogLinesDropped", "DigitsSeriesDropped"),
}


@dataclass
class Stack:
    """Service, Prometheus, Alertmanager and webhook, all running.

    Attributes:
        models: the repository of both replicas.
        service: the first replica, which gets all calls.
        replica: the second replica, without calls, with TLS and tokens.
        prometheus: scrapes both replicas.
        webhook: receives the alerts.
    """

    models: Path
    service: Service
    replica: Service
    prometheus: Prometheus
    webhook: Webhook


def route(models: Path, stable: int = STABLE, canary: int | None = None) -> None:
    """Writes a routing.toml. A canary gets half of the calls, and is accompanied by a shadow."""
    others = f"[canary]\nversion = {canary}\npercent = 50\n[shadow]\nversion = {SHADOW}\n" if canary else ""
    file = models / "digits" / "routing.toml"
    file.with_name("new").write_text(f"stable = {stable}\n{others}")
    file.with_name("new").rename(file)


def truncate(models: Path, version: int, name: str = "digits") -> None:
    """Publishes a truncated version."""
    file = model_files.place(models, version, name)
    file.with_name("new").write_bytes(model_files.bundled().read_bytes()[:100_000])
    file.with_name("new").rename(file)


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, drawings: tuple[NDArray[np.uint8], NDArray[np.uint8]]
) -> Iterator[Stack]:
    for program in ("prometheus", "prometheus-alertmanager"):
        if reason := needs(program):
            pytest.skip(reason)
    directory = tmp_path_factory.mktemp("monitoring")
    models = directory / "models"
    for version in (STABLE, CANARY):
        model_files.publish_whole(models, version)
    model_files.publish_shifted(models, SHADOW)
    route(models, canary=CANARY)
    truncate(models, 1, "digits-small")  # a refused version without a sound one
    key, tokens, tls = directory / "key", directory / "tokens.toml", credentials.Files(directory)
    key.write_text("a key that nobody else has\n")
    tokens.write_text(credentials.entry("sorter"))
    authority = trustme.CA()
    tls.put(credentials.issue(authority), authority)
    both = ["--models", str(models), "--poll-seconds", "0.5", "--recognition-key", str(key)]
    capture = f"sqlite:///{directory / 'captured.db'}"
    protection = ["--tokens", str(tokens), "--tls-certificate", str(tls.certificate), "--tls-key", str(tls.key)]
    with ExitStack() as stack:
        first = stack.enter_context(service(*both, "--workers", "2", "--audit-rate", "0.5", "--capture", capture))
        second = stack.enter_context(service(*both, "--workers", "1", *protection))
        receiver = stack.enter_context(webhook())
        manager = stack.enter_context(alertmanager(directory / "alertmanager", receiver.url))
        targets = {"first": address(first), "second": address(second)}
        watching = stack.enter_context(prometheus(directory / "prometheus", targets, manager))
        images, labels = well_read(first, *drawings)
        stack.enter_context(Mail(first.address, images, labels, SAMPLES / "7.png"))
        yield Stack(models, first, second, watching, receiver)


def address(server: Service) -> str:
    return server.metrics.removeprefix("http://").removesuffix("/metrics")


def well_read(
    server: Service, images: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns the images that the service reads right, so that accepted answers are wrong only with a wrong model."""
    with DigitClient(server.address, TIMEOUT) as client:
        read = np.array([answer.digit for answer in client.recognize_batch(images)])
    return images[read == labels], labels[read == labels]


def queries() -> dict[str, str]:
    """Returns all queries that must have data, by their source."""
    found = {}
    for number, rule in enumerate(series.rules()):
        if "record" in rule:
            labels = ",".join(f'{name}="{value}"' for name, value in rule.get("labels", {}).items())
            found[f"rule {number}"] = f"{rule['record']}{{{labels}}}"
        else:
            for part, expr in enumerate(promql.vectors(promql.parse(shortened(rule["expr"])))):
                found[f"{rule['alert']}, part {part}"] = expr
    for panel in PANELS:
        for target in panel["targets"]:
            found[f"panel {panel['id']}, {panel['title']}, {target['refId']}"] = shortened(promql.filled(target["expr"]))
    return found


def test_every_rule_alert_and_panel_has_data_under_load(stack: Stack, prove: Prove) -> None:
    queried = queries()
    answers: dict[str, list[Sample]] = {}
    unanswered = dict(queried)
    end = time.monotonic() + DATA_SECONDS
    while unanswered and time.monotonic() < end:
        time.sleep(1)
        answers |= {source: stack.prometheus.query(expr) for source, expr in unanswered.items()}
        unanswered = {source: expr for source, expr in unanswered.items() if not answers[source]}
    assert not unanswered, "\n".join(f"{source}: {expr}" for source, expr in unanswered.items())
    assert stack.prometheus.rule_errors() == []
    assert stack.prometheus.firing() & SILENT == set()
    recorded = sum(source.startswith("rule") for source in queried)
    shown = sum(source.startswith("panel") for source in queried)
    prove(
        f"with data: {recorded} recording rules, {len(queried) - recorded - shown} parts of "
        f"{len({source.partition(',')[0] for source in queried if source.startswith('Digits')})} alerts, "
        f"{shown} queries of {len(PANELS)} panels"
    )
    for source, samples in answers.items():
        if source.startswith("panel"):
            prove(f"{source}: {len(samples)} series, the first {float(samples[0]['value'][1]):.4g}")


def test_a_version_that_can_not_be_served_reaches_the_webhook(stack: Stack, prove: Prove) -> None:
    truncate(stack.models, BROKEN)
    began = time.monotonic()
    route(stack.models, canary=BROKEN)
    alert = stack.webhook.wait_for("DigitsModelRefused", NOTIFIED_SECONDS, version=str(BROKEN))
    assert alert["labels"]["reason"] == "unreadable"
    prove(f"{time.monotonic() - began:.0f} s after: {alert['annotations']['summary']}")


def test_a_model_that_misreads_reaches_the_webhook(stack: Stack, prove: Prove) -> None:
    assert "DigitsAcceptedErrorHigh" not in stack.prometheus.firing()
    began = time.monotonic()
    route(stack.models, stable=SHADOW)  # answers every digit with the next one
    alert = stack.webhook.wait_for("DigitsAcceptedErrorHigh", NOTIFIED_SECONDS, version=str(SHADOW), unit="digit")
    assert alert["labels"]["severity"] == "page"
    prove(f"{time.monotonic() - began:.0f} s after: {alert['annotations']['summary']}")


def test_a_killed_replica_reaches_the_webhook(stack: Stack, prove: Prove) -> None:
    began = time.monotonic()
    os.killpg(stack.replica.process.pid, signal.SIGKILL)
    alert = stack.webhook.wait_for("DigitsReplicaDown", NOTIFIED_SECONDS, pod="second")
    assert alert["labels"]["instance"] == address(stack.replica)
    assert "DigitsDown" not in stack.prometheus.firing(), "the other replica still answers"
    prove(f"{time.monotonic() - began:.0f} s after: {alert['annotations']['summary']}")
