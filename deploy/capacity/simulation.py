"""Simulates a load on a fleet of pods, step by step.

At each rate a pod does what its measured curve shows. The service sheds requests that it can't answer within their
deadline, so no queue outlasts a step by much. Calls are counted in fractions. The only randomness is in scrapes of a gauge,
and it is drawn from a seed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deploy.capacity.fleet import Cluster, Fleet, Senders, wanted_pods
from deploy.capacity.hpa import SYNC_SECONDS, Autoscaler, Autoscaling
from deploy.capacity.measured import Curve
from serving.loadtest.objectives import Objective

Load = Callable[[float], float]
"""Calls a second by time, seconds."""

_SCRAPE_OFFSET_SECONDS = 5  # between pods, so that Prometheus does not scrape all of them in one step


@dataclass(frozen=True)
class Retry:
    """A client's retries: the first after `delay_seconds`, then after twice that, and so on."""

    attempts: int
    delay_seconds: float = 1.0


@dataclass(frozen=True)
class Moment:
    """One step of a simulation.

    Attributes:
        at: seconds.
        offered: new calls.
        sent: new calls and retries.
        answered: calls.
        given_up: calls that were not answered and are not retried.
        p99_ms: of the busiest pod.
        ready: pods that answer calls.
        pods: pods that should exist.
    """

    at: float
    offered: float
    sent: float
    answered: float
    given_up: float
    p99_ms: float
    ready: int
    pods: int


@dataclass(frozen=True)
class Run:
    """A finished simulation.

    Attributes:
        step: seconds.
        moments: in order of time.
        waiting: calls whose retry was still due when the simulation ended.
    """

    step: float
    moments: Sequence[Moment]
    waiting: float

    @property
    def offered(self) -> float:
        """New calls."""
        return sum(moment.offered for moment in self.moments)

    @property
    def answered(self) -> float:
        """Calls that were answered."""
        return sum(moment.answered for moment in self.moments)

    @property
    def given_up(self) -> float:
        """Calls that were never answered."""
        return sum(moment.given_up for moment in self.moments)

    @property
    def pod_hours(self) -> float:
        """Hours of pods that were paid for."""
        return sum(moment.pods for moment in self.moments) * self.step / 3600

    @property
    def most_pods(self) -> int:
        """The largest number of pods at any time."""
        return max(moment.pods for moment in self.moments)

    def outside(self, objectives: Sequence[Objective]) -> list[float]:
        """Returns the times at which an objective was missed."""
        return [moment.at for moment in self.moments if not all(_keeps(moment, one) for one in objectives)]


def _keeps(moment: Moment, objective: Objective) -> bool:
    if objective.percentile is None:
        return moment.answered >= (1 - objective.limit) * moment.sent
    if objective.percentile != 99:
        raise ValueError(f"{objective} can't be simulated: the simulation knows only the 99th percentile")
    return moment.p99_ms <= objective.limit


class _Retries:
    """Calls that wait for their retry."""

    def __init__(self, retry: Retry | None, step: float):
        self._retry, self._step = retry, step
        self._due: dict[int, list[float]] = {}  # by step: calls, by how often they were sent before

    def due(self, number: int) -> list[float]:
        """Takes the retries of a step: calls that were sent once before, twice before, and so on."""
        return self._due.pop(number, [])

    def schedule(self, number: int, attempts: Sequence[float], unanswered: float) -> float:
        """Schedules the unanswered share of a step's calls, and returns the calls that are given up instead."""
        given_up = 0.0
        for before, calls in enumerate(attempts):
            if self._retry is None or before + 1 >= self._retry.attempts:
                given_up += calls * unanswered
            else:
                due = number + max(1, round(self._retry.delay_seconds * 2**before / self._step))
                waiting = self._due.setdefault(due, [0.0] * (self._retry.attempts - 1))
                waiting[before] += calls * unanswered
        return given_up

    @property
    def waiting(self) -> float:
        return sum(map(sum, self._due.values()))


def simulate(
    curve: Curve,
    autoscaling: Autoscaling,
    cluster: Cluster,
    load: Load,
    seconds: float,
    *,
    step: float = 1.0,
    replicas: int = 0,
    retry: Retry | None = None,
    zone_lost_at: float = math.inf,
    calendar: Callable[[float], int] = lambda _: 0,
    seed: int = 0,
) -> Run:
    """Simulates a load.

    Args:
        curve: of each pod.
        autoscaling: settings of the autoscaler.
        cluster: the surroundings of the pods.
        load: calls a second, by time.
        seconds: length of the simulation.
        step: seconds; 15 must be a multiple.
        replicas: pods that are ready at the start, if that is more than the autoscaler's minimum.
        retry: how clients retry refused calls; None gives them up.
        zone_lost_at: when a third of the pods is lost, seconds.
        calendar: minimum number of pods by time, as KEDA's cron trigger sets it.
        seed: of the scrapes of a gauge.
    """
    chance = np.random.default_rng(seed)
    autoscaler, senders = Autoscaler(autoscaling), Senders(cluster.look_seconds, step)
    fleet, retries = Fleet(cluster, max(autoscaling.min_replicas, replicas)), _Retries(retry, step)
    moments: list[Moment] = []
    lost = False
    for number in range(round(seconds / step)):
        now = number * step
        if now >= zone_lost_at and not lost:
            fleet.lose_zone(now)
            lost = True
        fleet.evict(now)
        if now % SYNC_SECONDS == 0:
            wanted = max(wanted_pods(fleet.pods, autoscaling, cluster, now), calendar(now))
            fleet.scale(now, autoscaler.scale(now, len(fleet.pods), wanted))
        called = [pod for pod in fleet.pods if pod.ready <= now < pod.lost + cluster.notice_seconds]
        shares = senders.shares(now, called)
        offered = load(now) * step
        attempts = [offered, *retries.due(number)]  # by how often they were sent before
        sent = sum(attempts)
        answered, p99 = 0.0, 0.0
        states = {share: curve.at(sent / step * share) for share in {0.0, *shares.values()}}
        for pod in called:
            state = states[shares[pod]]
            if now < pod.lost:
                answered += state.answered * step
                pod.spent += state.in_flight * step
                pod.busy += state.cores * step
                p99 = max(p99, state.p99_ms if shares[pod] else 0.0)
        given_up = retries.schedule(number, attempts, 1 - answered / sent if sent else 0.0)
        for pod in fleet.pods:
            offset = (now - pod.number * _SCRAPE_OFFSET_SECONDS) % cluster.scrape_seconds
            if pod.starts <= now < pod.lost and offset < step:
                pod.scrape(now, states[shares.get(pod, 0.0)], cluster, chance)
        ready = sum(now < pod.lost for pod in called)
        moments.append(Moment(now, offered, sent, answered, given_up, p99, ready, len(fleet.pods)))
    return Run(step, moments, retries.waiting)
