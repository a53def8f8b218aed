"""Rules, alerts and dashboard against a real service, which the real Prometheus scrapes under load.

promtool can't see that a metric does not exist, or that two series never match. Here every recording rule, both sides of
every alert without its threshold, and every query of the dashboard have to be answered. Times are shorter, as
tests/deploy/monitoring.py has them; nothing else is changed. Then three things really go wrong, and Alertmanager tells a
webhook.
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
from tests.conftest import TIMEOUT
from tests.deploy import promql, series
from tests.deploy.conftest import Prove
from tests.deploy.mail import Mail
from tests.deploy.monitoring import Prometheus, Sample, Webhook, alertmanager, needs, prometheus, shortened, webhook
from tests.deploy.test_dashboard import PANELS
from tests.support import credentials, model_files
from tests.support.drawn_digits import SAMPLES
from tests.support.service import Service, service

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(240)]

STABLE, CANARY, SHADOW, BROKEN = 1, 2, 3, 9
ANSWERED_SECONDS = 90  # until all is answered, at the latest: windows must fill first
TOLD_SECONDS = 60  # until an alert is there, at the latest

# What nothing is wrong with, whatever callers do and however slow this machine is.
WELL = {
    *("DigitsDown", "DigitsAbsent", "DigitsReplicaRestarting", "DigitsWorkersRestarting", "DigitsDefaultModelMissing"),
    *("DigitsCertificateExpiresSoon", "DigitsCertificateExpiresToday", "DigitsCredentialsNotReloaded"),
    *("DigitsRoutingRefused", "DigitsVersionSkew"),
}


@dataclass
class Stack:
    """All of it, running.

    Attributes:
        models: the repository that both replicas serve.
        replica: a second one, which nobody calls; with TLS and tokens.
    """

    models: Path
    service: Service
    replica: Service
    prometheus: Prometheus
    webhook: Webhook


def route(models: Path, stable: int = STABLE, canary: int | None = None) -> None:
    """Half of the calls to the canary, if there is one, and a shadow to it."""
    others = f"[canary]\nversion = {canary}\npercent = 50\n[shadow]\nversion = {SHADOW}\n" if canary else ""
    file = models / "digits" / "routing.toml"
    file.with_name("new").write_text(f"stable = {stable}\n{others}")
    file.with_name("new").rename(file)


def break_off(models: Path, version: int, name: str = "digits") -> None:
    """A version that was copied no further than to here."""
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
        model_files.publish(models, version)
    model_files.publish_shifted(models, SHADOW)
    route(models, canary=CANARY)
    break_off(models, 1, "digits-small")  # of which nobody knows better
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
        taker = stack.enter_context(webhook())
        manager = stack.enter_context(alertmanager(directory / "alertmanager", taker.url))
        targets = {"first": address(first), "second": address(second)}
        watching = stack.enter_context(prometheus(directory / "prometheus", targets, manager))
        images, labels = well_read(first, *drawings)
        stack.enter_context(Mail(first.address, images, labels, SAMPLES / "7.png"))
        yield Stack(models, first, second, watching, taker)


def address(server: Service) -> str:
    return server.metrics.removeprefix("http://").removesuffix("/metrics")


def well_read(
    server: Service, images: NDArray[np.uint8], labels: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Those that are read right, so that what is accepted is wrong only once the model is."""
    with DigitClient(server.address, TIMEOUT) as client:
        read = np.array([answer.digit for answer in client.recognize_batch(images)])
    return images[read == labels], labels[read == labels]


def questions() -> dict[str, str]:
    """What is to be answered, by where it is asked."""
    asked = {}
    for number, rule in enumerate(series.rules()):
        if "record" in rule:
            labels = ",".join(f'{name}="{value}"' for name, value in rule.get("labels", {}).items())
            asked[f"rule {number}"] = f"{rule['record']}{{{labels}}}"
        else:
            for part, expr in enumerate(promql.vectors(promql.parse(shortened(rule["expr"])))):
                asked[f"{rule['alert']}, part {part}"] = expr
    for panel in PANELS:
        for target in panel["targets"]:
            asked[f"panel {panel['id']}, {panel['title']}, {target['refId']}"] = shortened(promql.filled(target["expr"]))
    return asked


def test_prometheus_answers_every_rule_alert_and_panel_of_the_service_under_load(stack: Stack, prove: Prove) -> None:
    asked = questions()
    answers: dict[str, list[Sample]] = {}
    unanswered = dict(asked)
    end = time.monotonic() + ANSWERED_SECONDS
    while unanswered and time.monotonic() < end:
        time.sleep(1)
        answers |= {place: stack.prometheus.query(expr) for place, expr in unanswered.items()}
        unanswered = {place: expr for place, expr in unanswered.items() if not answers[place]}
    assert not unanswered, "\n".join(f"{place}: {expr}" for place, expr in unanswered.items())
    assert stack.prometheus.troubles() == []
    assert stack.prometheus.firing() & WELL == set()
    recorded = sum(place.startswith("rule") for place in asked)
    shown = sum(place.startswith("panel") for place in asked)
    prove(
        f"answered, none empty: {recorded} recording rules, {len(asked) - recorded - shown} parts of "
        f"{len({place.partition(',')[0] for place in asked if place.startswith('Digits')})} alerts, "
        f"{shown} queries of {len(PANELS)} panels"
    )
    for place, samples in answers.items():
        if place.startswith("panel"):
            prove(f"{place}: {len(samples)} series, the first {float(samples[0]['value'][1]):.4g}")


def test_a_version_that_can_not_be_served_is_told_to_the_webhook(stack: Stack, prove: Prove) -> None:
    break_off(stack.models, BROKEN)
    began = time.monotonic()
    route(stack.models, canary=BROKEN)
    alert = stack.webhook.wait_for("DigitsModelRefused", TOLD_SECONDS, version=str(BROKEN))
    assert alert["labels"]["reason"] == "unreadable"
    prove(f"{time.monotonic() - began:.0f} s after: {alert['annotations']['summary']}")


def test_a_model_that_reads_wrongly_is_told_to_the_webhook(stack: Stack, prove: Prove) -> None:
    assert "DigitsAcceptedErrorHigh" not in stack.prometheus.firing()
    began = time.monotonic()
    route(stack.models, stable=SHADOW)  # it says of every digit that it is the next one
    alert = stack.webhook.wait_for("DigitsAcceptedErrorHigh", TOLD_SECONDS, version=str(SHADOW), unit="digit")
    assert alert["labels"]["severity"] == "page"
    prove(f"{time.monotonic() - began:.0f} s after: {alert['annotations']['summary']}")


def test_a_replica_that_is_killed_is_told_to_the_webhook(stack: Stack, prove: Prove) -> None:
    began = time.monotonic()
    os.killpg(stack.replica.process.pid, signal.SIGKILL)
    alert = stack.webhook.wait_for("DigitsReplicaDown", TOLD_SECONDS, pod="second")
    assert alert["labels"]["instance"] == address(stack.replica)
    assert "DigitsDown" not in stack.prometheus.firing(), "the other answers still"
    prove(f"{time.monotonic() - began:.0f} s after: {alert['annotations']['summary']}")
