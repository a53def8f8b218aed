"""What may come, and what becomes of it: simulated with a replica's measured curve."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from serving.loadtest import objectives
from tests.benchmarks.capacity.fleet import Cluster, Load, Retry, Run, simulate
from tests.benchmarks.capacity.hpa import Autoscaling
from tests.benchmarks.capacity.measured import SIMULATED, Curve, Measured

BUSY = 0.65  # of the calls a second at the knee: what is planned for a pod, and what the autoscaler is to aim at

BEGIN_SECONDS = 600.0  # before anything happens
LASTING_SECONDS = 1800.0  # afterwards
RAMP_SECONDS = 600.0

# The share of a day's peak that each hour brings, from midnight on, and what comes in between on a straight line. Made up,
# after how mail goes: what was collected is sorted in the evening, what goes out is sorted early, little happens at noon.
DAY = (
    *(0.40, 0.30, 0.25, 0.30, 0.40, 0.40, 0.25, 0.10, 0.08, 0.08, 0.08, 0.08),
    *(0.08, 0.08, 0.10, 0.15, 0.25, 0.55, 0.85, 1.00, 1.00, 0.90, 0.70, 0.50),
)
DAY_PODS = 15  # that its peak is planned for

RETRY = Retry(attempts=4)
CLIENTS_LOOK_SECONDS = 300.0  # DIGITS_MAX_CONNECTION_AGE_SECONDS of deploy/kubernetes/base/settings.env
CLIENTS_NOTICE_SECONDS = 40.0  # keepalive of DigitClient: asked after 30, given up after 10 more
CRON_SECONDS = 300.0  # before the load, in which pods are made for it


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A load, and what else is special.

    Attributes:
        name: in words.
        load: calls a second, by seconds.
        seconds: how long it is simulated.
        step: seconds.
        begins: when something happens.
        balanced_by_clients: rather than by Envoy.
        retry, zone_lost_at, calendar: as `simulate` takes them.
        min_replicas: to begin with; None for the manifest's.
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
    """What came of a scenario.

    Attributes:
        scenario: which.
        min_replicas: with how many pods at least.
        run: all of it.
        outside_seconds: in which an objective was not kept.
        recovered_seconds: after it began, when the objectives were kept for good; None if they were not at the end.
    """

    scenario: Scenario
    min_replicas: int
    run: Run
    outside_seconds: float
    recovered_seconds: float | None


class Simulations:
    """The scenarios, with an autoscaler."""

    def __init__(self, measured: Measured, autoscaling: Autoscaling, *, gauge: bool = False):
        """`gauge` is what the autoscaler is shown, as Cluster has it."""
        self.curve: Curve = measured.curve(SIMULATED)
        self.autoscaling = autoscaling
        self._cluster = Cluster(start_seconds=measured.start_seconds, gauge=gauge)
        self._objectives = objectives.parse(measured.objectives)
        self.pod_rate = BUSY * self.curve.knee.rate
        """Calls a second that are planned for a pod."""
        self.base = autoscaling.min_replicas * self.pod_rate
        """Calls a second that are planned for the fewest pods."""

    def run(self, scenario: Scenario, *, min_replicas: int | None = None) -> Result:
        """What comes of a scenario."""
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
        """The same with the fewest pods at least that keep the objectives; None where none do."""
        low, high = scenario.min_replicas or self.autoscaling.min_replicas, self.autoscaling.max_replicas
        best = None
        while low <= high:
            middle = (low + high) // 2
            result = self.run(scenario, min_replicas=middle)
            if self.kept(result):
                best, high = result, middle - 1
            else:
                low = middle + 1
        return best

    def kept(self, result: Result) -> bool:
        """Whether the objectives were, but until a loss was noticed."""
        lost = result.scenario.zone_lost_at < result.scenario.seconds
        return result.outside_seconds <= (self._cluster.notice_seconds if lost else 0)

    def steady(self, seconds: float = BEGIN_SECONDS + LASTING_SECONDS) -> Scenario:
        """What the fewest pods carry."""
        return Scenario(name="as much all the time", load=lambda _: self.base, seconds=seconds)

    def step(self, factor: float) -> Scenario:
        """So many times as much from one second to the next."""
        return Scenario(
            name=f"{factor:g} times as much, at once",
            load=lambda now: self.base * (factor if now >= BEGIN_SECONDS else 1.0),
        )

    def ramp(self, factor: float, seconds: float) -> Scenario:
        """So many times as much in the end."""

        def load(now: float) -> float:
            return self.base * (1 + (factor - 1) * min(1.0, max(0.0, now - BEGIN_SECONDS) / seconds))

        return Scenario(name=f"{factor:g} times as much, within {seconds / 60:g} minutes", load=load)

    def day(self) -> Scenario:
        """A sorting centre's."""
        peak = DAY_PODS * self.pod_rate

        def load(now: float) -> float:
            hour, part = divmod(now / 3600, 1)
            before, after = DAY[int(hour) % 24], DAY[(int(hour) + 1) % 24]
            return peak * (before + part * (after - before))

        return Scenario(name="a day", load=load, seconds=86_400, step=15.0, begins=0.0)

    def zone(self, pods: int) -> Scenario:
        """A third of the pods is gone, where so many carry what is planned for them."""
        return Scenario(
            name=f"a zone lost, of {pods} pods",
            load=lambda _: pods * self.pod_rate,
            zone_lost_at=BEGIN_SECONDS,
            min_replicas=pods,
        )

    def balanced_by_clients(self, scenario: Scenario) -> Scenario:
        """The same without Envoy."""
        return replace(scenario, name=f"{scenario.name}, clients balance", balanced_by_clients=True)

    def asked_again(self, scenario: Scenario) -> Scenario:
        """The same with clients that send again what is refused."""
        return replace(scenario, name=f"{scenario.name}, clients ask {RETRY.attempts} times", retry=RETRY)

    def announced(self, scenario: Scenario, pods: int) -> Scenario:
        """The same where the calendar knows of it."""
        return replace(
            scenario,
            name=f"{scenario.name}, on the calendar",
            calendar=lambda now: pods if now >= BEGIN_SECONDS - CRON_SECONDS else 0,
        )
