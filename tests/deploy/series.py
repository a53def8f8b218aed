"""All series of the service in Prometheus: scraped ones and recorded ones, with their labels and label values."""

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from deploy.generate import RULES
from serving import errors
from serving.answers.decision import Decision
from serving.feedback.accuracy import AccuracyCollector
from serving.feedback.drift import DriftCollector
from serving.inference.metadata import REFUSALS
from serving.pb.digits.v1 import digit_service_pb2
from serving.pb.inference import open_inference_pb2
from serving.settings import Settings
from serving.telemetry.metrics import Metrics
from serving.telemetry.multiprocess_metrics import SupervisorMetrics
from serving.transport.http2_front.limits import REACHED
from tests.deploy import promql

Labels = frozenset[str]
Rule = dict[str, Any]

TARGET: Labels = frozenset({"job", "instance", "namespace", "pod"})
"""Labels that a scrape adds, by the operator's PodMonitor and by prometheus.yaml for compose."""

_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "counter": {"_total": ()},
    "gauge": {"": ()},
    "histogram": {"_bucket": ("le",), "_sum": (), "_count": ()},
    "summary": {"_sum": (), "_count": ()},
}


def rules() -> list[Rule]:
    """Reads all rules, in order."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def scraped() -> dict[str, Labels]:
    """Returns the labels of each scraped series by name, with one worker or several, and of `up` and `ALERTS`."""
    server, supervisor = Metrics(), SupervisorMetrics(CollectorRegistry(), list)
    own = {
        metric._name: metric._labelnames
        for metric in [*vars(server).values(), *vars(supervisor).values()]
        if isinstance(metric, MetricWrapperBase)
    }
    found = {
        "up": TARGET,
        "ALERTS": TARGET | {"alertname", "alertstate", "severity"},
    }
    for metric in [*DriftCollector(AccuracyCollector(server.registry)).collect(), *supervisor.registry.collect()]:
        names: Iterable[str] = getattr(metric, "_labelnames", None) or own.get(metric.name, ())
        for part, more in _PARTS[metric.type].items():
            found[metric.name + part] = TARGET | {*names, *more}
    return found


def metric_names() -> set[str]:
    """Returns the names of the service's series, and of its histograms and summaries without their suffixes."""
    names = {name for name in scraped() if name.startswith("digits_")}
    return names | {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


@functools.cache
def known() -> dict[str, Labels]:
    """Returns the labels of each scraped or recorded series by name.

    Raises:
        ValueError: a rule asks for an unknown series or label, or records one series with different labels.
    """
    found = scraped()
    for rule in rules():
        if "record" in rule:
            labels = promql.labels(promql.parse(rule["expr"]), found) | {*rule.get("labels", ())}
            if found.setdefault(rule["record"], labels) != labels:
                raise ValueError(f"{rule['record']} is recorded twice, with different labels")
    return found


def _reasons(kind: type[errors.RequestError]) -> Iterator[str]:
    for one in kind.__subclasses__():
        if "reason" in vars(one):
            yield one.reason
        yield from _reasons(one)


def _buckets(histogram: MetricWrapperBase, *labels: str) -> set[str]:
    (family,) = histogram.labels(*labels).collect()
    return {sample.labels["le"] for sample in family.samples if "le" in sample.labels}


VALUES: dict[tuple[str, str], set[str]] = {
    ("digits_rejected_requests_total", "reason"): {*_reasons(errors.RequestError), "cancelled"},
    ("digits_limits_reached_total", "limit"): {*REACHED},
    ("digits_model_refused", "reason"): {*REFUSALS, "missing", "routing"},
    ("digits_captured_total", "outcome"): {"stored", "failed", "skipped"},
    ("digits_shadow_images_total", "outcome"): {"agreed", "disagreed", "failed", "skipped"},
    ("digits_model_request_seconds_count", "outcome"): {"answered", "failed"},
    ("digits_model_request_seconds_sum", "outcome"): {"answered", "failed"},
    ("digits_truth_total", "outcome"): {"right", "wrong"},
    ("digits_no_digit_truth_total", "outcome"): {"accepted", "refused", "rejected", "digit_refused"},
    ("digits_request_seconds_bucket", "le"): _buckets(Metrics().request_seconds, "Recognize"),
    ("", "job"): {"digits"},
    ("", "model"): {Settings.model_fields["default_model"].default},
    ("", "code"): {code.name for code in grpc.StatusCode},
    ("", "method"): {
        method.name
        for module in (digit_service_pb2, open_inference_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    },
    ("", "decision"): {decision.label for decision in Decision if decision},
    ("", "unit"): {"digit", "field"},
    ("", "source"): {"keying", "audit", "replay"},
    ("", "role"): {"stable", "canary", "shadow"},
    ("", "bound"): {"estimate", "lower", "upper"},
}
"""Possible values by series and label; the series "" stands for all series."""
