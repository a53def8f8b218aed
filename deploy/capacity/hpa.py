"""Simulates Kubernetes' horizontal pod autoscaler, autoscaling/v2, for a metric of pods and for CPU.

Source: Kubernetes' documentation, "Horizontal Pod Autoscaling", and for its gaps the controller,
pkg/controller/podautoscaler: replica_calculator.go (calcPlainMetricReplicas, groupPods) and horizontal.go
(stabilizeRecommendationWithBehaviors, convertDesiredReplicasWithBehaviorRate).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from deploy.quantity import parse_quantity

MANIFEST = Path(__file__).parents[1] / "kubernetes" / "components" / "hpa" / "hpa.yaml"

POD_CORES = 2  # CPU request of a pod in deploy/kubernetes/base/deployment.yaml

SYNC_SECONDS = 15  # --horizontal-pod-autoscaler-sync-period
TOLERANCE = 0.1  # --horizontal-pod-autoscaler-tolerance


@dataclass(frozen=True)
class Policy:
    """A limit on scaling: `value` pods, or `value` percent of the pods, within `period_seconds`."""

    percent: bool
    value: int
    period_seconds: int


@dataclass(frozen=True)
class Behavior:
    """The rules for scaling up, or for scaling down.

    Attributes:
        window_seconds: stabilization window. Scaling up follows the lowest recommendation in it, scaling down the highest.
        policies: the one that changes most counts, or with `least` the one that changes least.
        least: selectPolicy is Min rather than Max.
    """

    window_seconds: int
    policies: tuple[Policy, ...]
    least: bool = False


@dataclass(frozen=True)
class Autoscaling:
    """The settings of a HorizontalPodAutoscaler.

    Attributes:
        min_replicas, max_replicas: bounds of the number of pods.
        in_flight: target of requests in flight for each pod; None for no such metric.
        cores: target of CPU cores in use for each pod; None for no such metric.
        up, down: rules for scaling up and down.
    """

    min_replicas: int
    max_replicas: int
    in_flight: float | None
    cores: float | None
    up: Behavior
    down: Behavior

    def at_least(self, replicas: int) -> "Autoscaling":
        """Returns the settings with another minimum."""
        return replace(self, min_replicas=replicas)


def read(file: Path = MANIFEST) -> Autoscaling:
    """Reads the settings from a manifest.

    Raises:
        ValueError: the manifest has settings that this module does not simulate.
    """
    (manifest,) = (one for one in yaml.safe_load_all(file.read_text()) if one["kind"] == "HorizontalPodAutoscaler")
    spec = manifest["spec"]
    (metric,) = spec["metrics"]
    if metric["type"] != "Pods" or metric["pods"]["target"]["type"] != "AverageValue":
        raise ValueError(f"{file.name} scales by {metric}: only the AverageValue of a metric of type Pods can be simulated")
    return Autoscaling(
        spec["minReplicas"],
        spec["maxReplicas"],
        parse_quantity(metric["pods"]["target"]["averageValue"]),
        None,
        _behavior(spec["behavior"]["scaleUp"]),
        _behavior(spec["behavior"]["scaleDown"]),
    )


def _behavior(rules: dict[str, Any]) -> Behavior:
    select = rules.get("selectPolicy", "Max")
    if select not in ("Max", "Min"):
        raise ValueError(f"selectPolicy is {select!r}, expected Max or Min")
    policies = tuple(Policy(one["type"] == "Percent", one["value"], one["periodSeconds"]) for one in rules["policies"])
    return Behavior(rules["stabilizationWindowSeconds"], policies, least=select == "Min")


def recommended(current: int, target: float, metrics: Sequence[float], *, missing: int = 0, pending: int = 0) -> int:
    """Returns how many pods a metric asks for.

    Args:
        current: pods that should exist now.
        target: of the metric, for each pod.
        metrics: values of the pods that run and have one.
        missing: pods that run and have no value. They count as idle when scaling up, else as being at the target.
        pending: pods that do not run yet; for CPU also pods that have just got ready. They count as idle when scaling up,
            else not at all.
    """
    if not metrics:
        return current
    ratio = sum(metrics) / len(metrics) / target
    pending = pending if ratio > 1 else 0
    if not missing and not pending:
        return current if _near(ratio) else math.ceil(ratio * len(metrics))
    values = [*metrics, *[target if ratio < 1 else 0.0] * missing, *[0.0] * pending]
    again = sum(values) / len(values) / target
    if _near(again) or (again > 1) != (ratio > 1):
        return current
    wanted = math.ceil(again * len(values))
    return current if (wanted > current) != (again > 1) else wanted


def _near(ratio: float) -> bool:
    return abs(1 - ratio) <= TOLERANCE


class Autoscaler:
    """The controller, with its past recommendations and changes."""

    def __init__(self, autoscaling: Autoscaling):
        self._settings = autoscaling
        self._recommendations: list[tuple[float, int]] = []
        self._changes: list[tuple[float, int]] = []  # time and number of pods added, negative for removed

    def scale(self, now: float, current: int, wanted: int) -> int:
        """Returns how many pods should exist when the metrics ask for `wanted`. Call this every SYNC_SECONDS."""
        settings = self._settings
        if not settings.min_replicas <= current <= settings.max_replicas:
            replicas = min(max(current, settings.min_replicas), settings.max_replicas)
        else:
            stable = self._stabilized(now, current, wanted)
            low, high = (self._limit(now, current, behavior) for behavior in (settings.down, settings.up))
            replicas = min(max(stable, low, settings.min_replicas), high, settings.max_replicas)
        if replicas != current:
            self._changes.append((now, replicas - current))
        return replicas

    def _stabilized(self, now: float, current: int, wanted: int) -> int:
        self._recommendations.append((now, wanted))
        up, down = self._settings.up.window_seconds, self._settings.down.window_seconds
        self._recommendations = [one for one in self._recommendations if one[0] > now - max(up, down) or one[0] == now]
        lowest = min(replicas for at, replicas in self._recommendations if at > now - up or at == now)
        highest = max(replicas for at, replicas in self._recommendations if at > now - down or at == now)
        return min(max(current, lowest), highest)

    def _limit(self, now: float, current: int, behavior: Behavior) -> int:
        """Returns the furthest number of pods that the policies allow now."""
        up = behavior is self._settings.up
        limits = []
        for policy in behavior.policies:
            begun = current - sum(change for at, change in self._changes if at > now - policy.period_seconds)
            if policy.percent and up:
                limits.append(math.ceil(begun * (1 + policy.value / 100)))
            elif policy.percent:
                limits.append(int(begun * (1 - policy.value / 100)))
            else:
                limits.append(begun + policy.value if up else begun - policy.value)
        furthest = max if up != behavior.least else min
        limit = furthest(limits)
        return max(limit, current) if up else min(limit, current)
