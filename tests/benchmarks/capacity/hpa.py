"""The horizontal pod autoscaler of Kubernetes, autoscaling/v2, for a metric of pods, and CPU beside it.

Source: Kubernetes' documentation, "Horizontal Pod Autoscaling", and where that is silent its controller,
pkg/controller/podautoscaler: replica_calculator.go (calcPlainMetricReplicas, groupPods) and horizontal.go
(stabilizeRecommendationWithBehaviors, convertDesiredReplicasWithBehaviorRate).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.manifests import KUBERNETES, quantity

MANIFEST = KUBERNETES / "components" / "hpa" / "hpa.yaml"

POD_CORES = 2  # that a pod asks for: deploy/kubernetes/base/deployment.yaml

SYNC_SECONDS = 15  # --horizontal-pod-autoscaler-sync-period
TOLERANCE = 0.1  # --horizontal-pod-autoscaler-tolerance


@dataclass(frozen=True)
class Policy:
    """How fast it may go: `value` pods, or percent of the pods, in `period_seconds`."""

    percent: bool
    value: int
    period_seconds: int


@dataclass(frozen=True)
class Behavior:
    """How it may go up, or down.

    Attributes:
        window_seconds: how long a recommendation counts: it goes up by the lowest of them, and down by the highest.
        policies: of which the one counts that changes most, or with `least` the one that changes least.
    """

    window_seconds: int
    policies: tuple[Policy, ...]
    least: bool = False


@dataclass(frozen=True)
class Autoscaling:
    """What a HorizontalPodAutoscaler asks for.

    Attributes:
        min_replicas, max_replicas: of pods.
        in_flight: requests in flight that should fall to each; None where it does not look at that.
        cores: that each should take, likewise.
        up, down: how it goes.
    """

    min_replicas: int
    max_replicas: int
    in_flight: float | None
    cores: float | None
    up: Behavior
    down: Behavior

    def at_least(self, replicas: int) -> "Autoscaling":
        """The same with another minimum."""
        return replace(self, min_replicas=replicas)


def read(file: Path = MANIFEST) -> Autoscaling:
    """From a manifest. Raises ValueError where it asks for something that is not simulated here."""
    (manifest,) = (one for one in yaml.safe_load_all(file.read_text()) if one["kind"] == "HorizontalPodAutoscaler")
    spec = manifest["spec"]
    (metric,) = spec["metrics"]
    if metric["type"] != "Pods" or metric["pods"]["target"]["type"] != "AverageValue":
        raise ValueError(f"{file.name} goes by {metric}, expected the AverageValue of a metric of pods")
    return Autoscaling(
        spec["minReplicas"],
        spec["maxReplicas"],
        quantity(metric["pods"]["target"]["averageValue"]),
        None,
        _behavior(spec["behavior"]["scaleUp"]),
        _behavior(spec["behavior"]["scaleDown"]),
    )


def _behavior(rules: dict[str, Any]) -> Behavior:
    select = rules.get("selectPolicy", "Max")
    if select not in ("Max", "Min"):
        raise ValueError(f"selectPolicy is {select}, expected Max or Min")
    policies = tuple(Policy(one["type"] == "Percent", one["value"], one["periodSeconds"]) for one in rules["policies"])
    return Behavior(rules["stabilizationWindowSeconds"], policies, least=select == "Min")


def recommended(current: int, target: float, metrics: Sequence[float], *, missing: int = 0, pending: int = 0) -> int:
    """How many pods the metric asks for.

    Args:
        current: pods that there should be now.
        target: of the metric, for each pod.
        metrics: of the pods that run and have one.
        missing: pods that run and have none: they count as idle where more pods are asked for, else as being at the target.
        pending: pods that do not run yet, and for CPU those that are hardly ready: they count as idle where more are asked
            for, else not at all.
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
    """What it recommended and did so far, and what it does next."""

    def __init__(self, autoscaling: Autoscaling):
        self._asks = autoscaling
        self._recommendations: list[tuple[float, int]] = []
        self._changes: list[tuple[float, int]] = []  # pods more, or fewer

    def scale(self, now: float, current: int, wanted: int) -> int:
        """How many pods there should be, where the metric asks for `wanted`; to be asked every SYNC_SECONDS."""
        asks = self._asks
        if not asks.min_replicas <= current <= asks.max_replicas:
            replicas = min(max(current, asks.min_replicas), asks.max_replicas)
        else:
            stable = self._stabilized(now, current, wanted)
            low, high = (self._limit(now, current, behavior) for behavior in (asks.down, asks.up))
            replicas = min(max(stable, low, asks.min_replicas), high, asks.max_replicas)
        if replicas != current:
            self._changes.append((now, replicas - current))
        return replicas

    def _stabilized(self, now: float, current: int, wanted: int) -> int:
        self._recommendations.append((now, wanted))
        up, down = self._asks.up.window_seconds, self._asks.down.window_seconds
        self._recommendations = [one for one in self._recommendations if one[0] > now - max(up, down) or one[0] == now]
        lowest = min(replicas for at, replicas in self._recommendations if at > now - up or at == now)
        highest = max(replicas for at, replicas in self._recommendations if at > now - down or at == now)
        return min(max(current, lowest), highest)

    def _limit(self, now: float, current: int, behavior: Behavior) -> int:
        """How far it may go now."""
        up = behavior is self._asks.up
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
