"""Loads to simulate with a replica's measured curve: a step, a ramp, a day, a lost zone."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from deploy.capacity.fleet import Cluster
from deploy.capacity.hpa import Autoscaling
from deploy.capacity.measured import SIMULATED, Curve, Measured
from deploy.capacity.simulation import Load, Retry, Run, simulate
from serving.loadtest import objectives

BUSY = 0.65  # planned load of a pod, as a share of the calls a second at the knee; the autoscaler's target follows from it

BEGIN_SECONDS = 600.0  # of constant load before the change
LASTING_SECONDS = 1800.0  # after the change
RAMP_SECONDS = 600.0

# Load at each full hour from midnight on, as a share of the day's peak; linear in between. Invented, after the course of a
# sorting centre's day: collected mail is sorted in the evening, outgoing mail early in the morning, and noon is quiet.
DAY = (
    *(0.40, 0.30, 0.25, 0.30, 0.40, 0.40, 0.25, 0.10, 0.08, 0.08, 0.08, 0.08),
    *(0.08, 0.08, 0.10, 0.15, 0.25, 0.55, 0.85, 1.00, 1.00, 0.90, 0.70, 0.50),
)
DAY_PODS = 15  # for the planned load of the day's peak

RETRY = Retry(attempts=4)
CLIENTS_LOOK_SECONDS = 300.0  # DIGITS_MAX_CONNECTION_AGE_SECONDS of deploy/kubernetes/base/settings.env
CLIENTS_NOTICE_SECONDS = 40.0  # keepalive of DigitClient: a ping after 30 s, and a timeout of 10 s
CRON_SECONDS = 300.0  # from the cron trigger to the load


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A load and its circumstances.

    Attributes:
        name: in words.
        load: calls a second, by time.
        seconds: length of the simulation.
        step: seconds.
        begins: time of the change, seconds.
        balanced_by_clients: True if clients balance calls, False if Envoy does.
        retry, zone_lost_at, calendar: as `simulate` takes them.
        min_replicas: the autoscaler's minimum; None for the manifest's.
    """

    name: str
    load: Load
    seconds: float = BEGIN_SECONDS + LASTING_SECONDS
    step: float = 1.0
    begins: float = BEGIN_SECONDS
    balanced_by_clients: bool = False
    retry: Retry | None = None
    zone_lost_at: float = float("inf")
    calendar: Callable[[float], int] = lambda _: 0
    min_replicas: int | None = None


@dataclass(frozen=True)
class Result:
    """A simulated scenario.

    Attributes:
        scenario: the simulated one.
        min_replicas: the autoscaler's minimum.
        run: every step of the simulation.
        outside_seconds: seconds in which an objective was missed.
        recovered_seconds: from the change until the objectives were met for good; None if they were missed at the end.
    """

    scenario: Scenario
    min_replicas: int
    run: Run
    outside_seconds: float
    recovered_seconds: float | None


class Simulations:
    """Scenarios for one replica and one autoscaler.

    Attributes:
        curve: of each pod.
        autoscaling: settings of the autoscaler.
        pod_rate: planned calls a second for a pod.
        base: planned calls a second for the minimum of pods.
    """

    def __init__(self, measured: Measured, autoscaling: Autoscaling, *, gauge: bool = False):
        """Plans the load of a pod from the knee. `gauge` is Cluster's."""
        self.curve: Curve = measured.curve(SIMULATED)
        self.autoscaling = autoscaling
        self._cluster = Cluster(start_seconds=measured.start_seconds, gauge=gauge)
        self._objectives = objectives.parse(measured.objectives)
        self.pod_rate = BUSY * self.curve.knee.rate
        self.base = autoscaling.min_replicas * self.pod_rate

    def run(self, scenario: Scenario, *, min_replicas: int | None = None) -> Result:
        """Simulates a scenario."""
        least = min_replicas or scenario.min_replicas or self.autoscaling.min_replicas
        cluster = self._cluster
        if scenario.balanced_by_clients:
            cluster = replace(cluster, look_seconds=CLIENTS_LOOK_SECONDS, notice_seconds=CLIENTS_NOTICE_SECONDS)
        run = simulate(
            self.curve,
            self.autoscaling.at_least(least),
            cluster,
            scenario.load,
            scenario.seconds,
            step=scenario.step,
            replicas=math.ceil(scenario.load(0.0) / self.pod_rate),
            retry=scenario.retry,
            zone_lost_at=scenario.zone_lost_at,
            calendar=scenario.calendar,
        )
        outside = run.outside(self._objectives)
        recovered: float | None = 0.0
        if outside:
            last = outside[-1] + scenario.step
            recovered = None if last >= scenario.seconds else max(0.0, last - scenario.begins)
        return Result(scenario, least, run, len(outside) * scenario.step, recovered)

    def with_headroom(self, scenario: Scenario) -> Result | None:
        """Finds the lowest minimum of pods that meets the objectives. Returns None if even the maximum misses them."""
        low, high = scenario.min_replicas or self.autoscaling.min_replicas, self.autoscaling.max_replicas
        best = None
        while low <= high:
            middle = (low + high) // 2
            result = self.run(scenario, min_replicas=middle)
            if self.meets_objectives(result):
                best, high = result, middle - 1
            else:
                low = middle + 1
        return best

    def meets_objectives(self, result: Result) -> bool:
        """Returns True if the objectives were met, except between the loss of a zone and its detection."""
        lost = result.scenario.zone_lost_at < result.scenario.seconds
        return result.outside_seconds <= (self._cluster.notice_seconds if lost else 0)

    def steady(self, seconds: float = BEGIN_SECONDS + LASTING_SECONDS) -> Scenario:
        """Returns the planned load of the minimum of pods, constant."""
        return Scenario(name="constant load", load=lambda _: self.base, seconds=seconds)

    def step(self, factor: float) -> Scenario:
        """Returns a load that multiplies within a second."""
        return Scenario(
            name=f"{factor:g} times the load, at once",
            load=lambda now: self.base * (factor if now >= BEGIN_SECONDS else 1.0),
        )

    def ramp(self, factor: float, seconds: float) -> Scenario:
        """Returns a load that grows linearly by a factor."""

        def load(now: float) -> float:
            return self.base * (1 + (factor - 1) * min(1.0, max(0.0, now - BEGIN_SECONDS) / seconds))

        return Scenario(name=f"{factor:g} times the load, within {seconds / 60:g} minutes", load=load)

    def day(self) -> Scenario:
        """Returns the load of a sorting centre's day."""
        peak = DAY_PODS * self.pod_rate

        def load(now: float) -> float:
            hour, part = divmod(now / 3600, 1)
            before, after = DAY[int(hour) % 24], DAY[(int(hour) + 1) % 24]
            return peak * (before + part * (after - before))

        return Scenario(name="a day", load=load, seconds=86_400, step=15.0, begins=0.0)

    def zone(self, pods: int) -> Scenario:
        """Returns a constant load for `pods` pods, a third of which is lost."""
        return Scenario(
            name=f"a zone of {pods} pods lost",
            load=lambda _: pods * self.pod_rate,
            zone_lost_at=BEGIN_SECONDS,
            min_replicas=pods,
        )

    def balanced_by_clients(self, scenario: Scenario) -> Scenario:
        """Returns the scenario without Envoy."""
        return replace(scenario, name=f"{scenario.name}, client-side balancing", balanced_by_clients=True)

    def retried(self, scenario: Scenario) -> Scenario:
        """Returns the scenario with clients that retry refused calls."""
        return replace(scenario, name=f"{scenario.name}, {RETRY.attempts} attempts a call", retry=RETRY)

    def scheduled(self, scenario: Scenario, pods: int) -> Scenario:
        """Returns the scenario with a cron trigger that creates pods before the load arrives."""
        return replace(
            scenario,
            name=f"{scenario.name}, with a cron trigger",
            calendar=lambda now: pods if now >= BEGIN_SECONDS - CRON_SECONDS else 0,
        )
