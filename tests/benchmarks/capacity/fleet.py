"""Pods, those who send to them, and the autoscaler, step by step.

A pod does what its measured curve says at the rate that comes to it: since the service refuses what it can't answer within
its deadline, no queue outlasts a step by much. All is counted in parts of calls, so nothing here is random but what a scrape
of a gauge happens to see, and that is drawn from a seed.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving.loadtest.objectives import Objective
from tests.benchmarks.capacity.hpa import SYNC_SECONDS, Autoscaler, Autoscaling, recommended
from tests.benchmarks.capacity.measured import Curve, State

Load = Callable[[float], float]
"""Calls a second at a time, seconds."""

_MOST_GROUPS = 30  # of senders, that look for new pods at different times


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What is around the pods; what is not measured here is assumed, and deploy/CAPACITY.md says so.

    Attributes:
        start_seconds: from the start of a container to its first answer: measured.
        schedule_seconds: until it is started, its image being on the node.
        probe_seconds: until the kubelet has seen it start up and be ready: a startup probe a second, readiness every two.
        look_seconds: how often each sender sees which pods there are: 30 for Envoy, which asks each second for what DNS may
            keep as long (kubeadm's CoreDNS does); for clients that balance themselves, the age at which the service closes
            a connection, when they ask.
        notice_seconds: until senders leave a pod alone that is gone without a word: Envoy asks three times, and waits a
            second for each answer.
        scrape_seconds, window_seconds: of Prometheus, and of what the autoscaler is shown of its scrapes. CPU it is shown of
            the last such interval, by metrics-server.
        gauge: it is shown the average of scrapes of digits_in_flight_requests, each of a moment, rather than the rate of
            digits_request_seconds_sum, which is what was in flight all the time.
        eviction_seconds: until Kubernetes gives up the pods of a node that is gone, and makes others: 40 seconds until the
            node counts as lost, and the 300 of its default toleration.
    """

    start_seconds: float
    schedule_seconds: float = 5.0
    probe_seconds: float = 3.0
    look_seconds: float = 30.0
    notice_seconds: float = 5.0
    scrape_seconds: int = 15
    window_seconds: int = 60
    gauge: bool = False
    eviction_seconds: float = 340.0


@dataclass(frozen=True)
class Retry:
    """How often a client sends a call that is not answered: again after `delay_seconds`, then twice that, and so on."""

    attempts: int
    delay_seconds: float = 1.0


@dataclass(eq=False)
class Pod:
    """One of them.

    Attributes:
        number: that no other has.
        zone: where it is: one of three.
        starts, ready: when it runs, and when it is sent calls; seconds.
        lost: when its zone went.
        spent: seconds that requests were in flight, so far.
        busy: seconds of CPU time, so far.
        samples: when it was scraped, and what it said: of the gauge, or `spent`.
        usage: when `busy` was looked at, and what it was.
    """

    number: int
    zone: int
    starts: float
    ready: float
    lost: float = math.inf
    spent: float = 0.0
    busy: float = 0.0
    samples: deque[tuple[float, float]] = field(default_factory=deque)
    usage: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=2))


@dataclass(frozen=True)
class Moment:
    """A step.

    Attributes:
        at: seconds.
        offered: calls that came for the first time.
        sent: those, and calls that came again.
        answered: calls.
        given_up: calls that were not answered, and are not sent again.
        p99_ms: of the pod that has most to do.
        ready, pods: pods that are sent calls, and all that there should be.
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
    """What came of a simulation.

    Attributes:
        step: seconds.
        moments: in order.
        waiting: calls that were to be sent again when it ended.
    """

    step: float
    moments: Sequence[Moment]
    waiting: float

    @property
    def offered(self) -> float:
        """Calls."""
        return sum(moment.offered for moment in self.moments)

    @property
    def answered(self) -> float:
        """Calls."""
        return sum(moment.answered for moment in self.moments)

    @property
    def given_up(self) -> float:
        """Calls."""
        return sum(moment.given_up for moment in self.moments)

    @property
    def pod_hours(self) -> float:
        """That were paid for."""
        return sum(moment.pods for moment in self.moments) * self.step / 3600

    @property
    def most_pods(self) -> int:
        """At any time."""
        return max(moment.pods for moment in self.moments)

    def outside(self, objectives: Sequence[Objective]) -> list[float]:
        """The times at which an objective was not kept."""
        return [moment.at for moment in self.moments if not all(_keeps(moment, one) for one in objectives)]


def _keeps(moment: Moment, objective: Objective) -> bool:
    if objective.percentile is None:
        return moment.answered >= (1 - objective.limit) * moment.sent
    if objective.percentile != 99:
        raise ValueError(f"{objective}: only the 99th percentile is simulated")
    return moment.p99_ms <= objective.limit


class Senders:
    """Who knows which pods: senders look for new ones at different times, and forget one as soon as it closes."""

    def __init__(self, look_seconds: float, step: float):
        groups = max(1, min(_MOST_GROUPS, int(look_seconds / step)))
        self._look_seconds = look_seconds
        self._due = [look_seconds * group / groups for group in range(groups)]
        self._known: list[list[Pod]] = [[] for _ in range(groups)]

    def shares(self, now: float, there: Sequence[Pod]) -> dict[Pod, float]:
        """The share of all calls that each pod gets, of those that can be sent calls; senders go round those they know."""
        shares = dict.fromkeys(there, 0.0)
        for group, before in enumerate(self._known):
            known = [pod for pod in before if pod in shares]
            closed = len(known) < len(before)
            if closed or not known or now >= self._due[group]:
                known = [*there]
                while self._due[group] <= now:
                    self._due[group] += self._look_seconds
            self._known[group] = known
            for pod in known:
                shares[pod] += 1 / len(self._known) / len(known)
        return shares


class _Fleet:
    """The pods of a Deployment."""

    def __init__(self, cluster: Cluster, replicas: int):
        self._cluster = cluster
        self._made = 0
        self.pods: list[Pod] = []
        for _ in range(replicas):
            self._add(-math.inf)

    def become(self, now: float, replicas: int) -> None:
        """Makes pods, or ends some: first those that are not ready, then the youngest."""
        while len(self.pods) < replicas:
            self._add(now)
        if len(self.pods) > replicas:
            best_first = sorted(self.pods, key=lambda pod: (not pod.ready <= now < pod.lost, pod.number))
            self.pods = best_first[:replicas]

    def lose_a_zone(self, now: float) -> None:
        """The one with most pods."""
        zones = [sum(pod.zone == zone for pod in self.pods) for zone in range(3)]
        for pod in self.pods:
            if pod.zone == zones.index(max(zones)):
                pod.lost = now

    def evict(self, now: float) -> None:
        """Puts others in the place of those that have been lost for long."""
        staying = [pod for pod in self.pods if now < pod.lost + self._cluster.eviction_seconds]
        gone, self.pods = len(self.pods) - len(staying), staying
        for _ in range(gone):
            self._add(now)

    def _add(self, now: float) -> None:
        zones = [sum(pod.zone == zone for pod in self.pods) for zone in range(3)]
        starts = now + self._cluster.schedule_seconds
        ready = starts + self._cluster.start_seconds + self._cluster.probe_seconds
        self.pods.append(Pod(self._made, zones.index(min(zones)), starts, ready))
        self._made += 1


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
    """What becomes of a load.

    Args:
        curve: of each pod.
        autoscaling: how many pods there are.
        cluster: around them.
        load: calls a second, by seconds.
        seconds: how long.
        step: seconds, of which 15 must be a multiple.
        replicas: that are ready in the beginning; the fewest where that is more.
        retry: what clients do about calls that are refused; None gives them up.
        zone_lost_at: when a third of the pods is gone, seconds.
        calendar: pods that there are to be at least at a time, as KEDA's cron has them.
        seed: of what scrapes of a gauge see.
    """
    chance = np.random.default_rng(seed)
    autoscaler, senders = Autoscaler(autoscaling), Senders(cluster.look_seconds, step)
    fleet = _Fleet(cluster, max(autoscaling.min_replicas, replicas))
    again: dict[int, list[float]] = {}  # calls to be sent again in a step, by how often they were sent before
    moments: list[Moment] = []
    lost = False
    for number in range(round(seconds / step)):
        now = number * step
        if now >= zone_lost_at and not lost:
            fleet.lose_a_zone(now)
            lost = True
        fleet.evict(now)
        if now % SYNC_SECONDS == 0:
            wanted = max(_wanted(fleet.pods, autoscaling, cluster, now), calendar(now))
            fleet.become(now, autoscaler.scale(now, len(fleet.pods), wanted))
        there = [pod for pod in fleet.pods if pod.ready <= now < pod.lost + cluster.notice_seconds]
        shares = senders.shares(now, there)
        offered = load(now) * step
        sent_before = again.pop(number, [])
        attempts = [offered, *sent_before]  # by how often before
        sent = sum(attempts)
        answered, p99 = 0.0, 0.0
        states = {share: curve.at(sent / step * share) for share in {0.0, *shares.values()}}
        for pod in there:
            state = states[shares[pod]]
            if now < pod.lost:
                answered += state.answered * step
                pod.spent += state.in_flight * step
                pod.busy += state.cores * step
                p99 = max(p99, state.p99_ms if shares[pod] else 0.0)
        in_vain = 1 - answered / sent if sent else 0.0
        given_up = 0.0
        for before, calls in enumerate(attempts):
            if retry is None or before + 1 >= retry.attempts:
                given_up += calls * in_vain
            else:
                due = number + max(1, round(retry.delay_seconds * 2**before / step))
                waiting = again.setdefault(due, [0.0] * (retry.attempts - 1))
                waiting[before] += calls * in_vain
        for pod in fleet.pods:
            if pod.starts <= now < pod.lost and (now - pod.number * 5) % cluster.scrape_seconds < step:
                seen = _moment(states[shares.get(pod, 0.0)], chance) if cluster.gauge else pod.spent
                pod.samples.append((now, seen))
                pod.usage.append((now, pod.busy))
        ready = sum(now < pod.lost for pod in there)
        moments.append(Moment(now, offered, sent, answered, given_up, p99, ready, len(fleet.pods)))
    return Run(step, moments, sum(map(sum, again.values())))


def _wanted(pods: Sequence[Pod], autoscaling: Autoscaling, cluster: Cluster, now: float) -> int:
    """What the metrics ask for: the most that any of them does."""
    wanted = []
    pending = sum(now < pod.starts for pod in pods)
    if autoscaling.in_flight is not None:
        shown = [value for pod in pods if (value := _in_flight(pod, cluster, now)) is not None]
        missing = len(pods) - len(shown) - pending
        wanted.append(recommended(len(pods), autoscaling.in_flight, shown, missing=missing, pending=pending))
    if autoscaling.cores is not None:
        # Of a pod that is hardly ready, CPU counts once it was measured from when it was: source as in hpa.py, groupPods.
        young = {pod for pod in pods if now < pod.starts or (pod.usage and pod.usage[0][0] < pod.ready)}
        old = [pod for pod in pods if pod not in young and len(pod.usage) == 2 and now < pod.lost + cluster.scrape_seconds]
        cores = [(last - first) / (end - begin) for (begin, first), (end, last) in (pod.usage for pod in old)]
        missing = len(pods) - len(young) - len(old)
        wanted.append(recommended(len(pods), autoscaling.cores, cores, missing=missing, pending=len(young)))
    return max(wanted)


def _in_flight(pod: Pod, cluster: Cluster, now: float) -> float | None:
    """What the adapter shows of a pod; None where it has nothing yet, or nothing any more."""
    while pod.samples and pod.samples[0][0] <= now - cluster.window_seconds:
        pod.samples.popleft()
    if cluster.gauge:
        return sum(value for _, value in pod.samples) / len(pod.samples) if pod.samples else None
    return growth(pod.samples, now, cluster.window_seconds) if len(pod.samples) > 1 else None


def growth(samples: Sequence[tuple[float, float]], now: float, window_seconds: float) -> float:
    """A counter's rate as PromQL's `rate` has it, of two samples or more in the window that ends now.

    What lies between the samples and the ends of the window is thought to have grown as they did: all of it where a sample
    is as near as others are to each other, else half such a distance, and to no time before the counter was 0.
    Source: Prometheus, promql/functions.go, extrapolatedRate.
    """
    (first_at, first), (last_at, last) = samples[0], samples[-1]
    between, grown = last_at - first_at, last - first
    apart = between / (len(samples) - 1)
    before, after = first_at - (now - window_seconds), now - last_at
    before = before if before < 1.1 * apart else apart / 2
    if grown:
        before = min(before, between * first / grown)
    after = after if after < 1.1 * apart else apart / 2
    return grown * (between + before + after) / between / window_seconds


def _moment(state: State, chance: np.random.Generator) -> float:
    """What a scrape of the gauge happens to see: spread as the scrapes were that were measured."""
    if not state.in_flight or not state.in_flight_deviation:
        return state.in_flight
    scale = state.in_flight_deviation**2 / state.in_flight
    return float(chance.gamma(state.in_flight / scale, scale))
