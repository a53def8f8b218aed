"""The pods of a Deployment, the senders that call them, and the metrics that the autoscaler gets to see."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from deploy.capacity.hpa import Autoscaling, recommended
from deploy.capacity.measured import State

ZONES = 3

_MAX_GROUPS = 30  # of senders, each of which looks for new pods at a time of its own


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The surroundings of the pods. deploy/CAPACITY.md lists which of these are assumed rather than measured.

    Attributes:
        start_seconds: from the start of a container to its first answer; measured.
        schedule_seconds: from the creation of a pod to the start of its container, with the image on the node.
        probe_seconds: until the kubelet has seen the pod start and get ready: a startup probe every second, a readiness
            probe every two.
        look_seconds: how often a sender looks up the pods. Envoy polls DNS every second, but DNS may cache an answer for
            30 s, as kubeadm's CoreDNS does. A client that balances for itself looks when the service closes its
            connection.
        notice_seconds: until senders drop a pod that is gone without a word: Envoy probes three times with a timeout of
            one second.
        scrape_seconds: Prometheus' scrape interval. metrics-server shows CPU over the last such interval.
        window_seconds: length of the window of scrapes behind the metric that the autoscaler sees.
        gauge: True shows the autoscaler the mean of scrapes of digits_in_flight_requests, each a single moment. False
            shows it the rate of digits_request_seconds_sum, which covers the whole window.
        eviction_seconds: until Kubernetes gives up the pods of a lost node and creates others: 40 s until the node counts
            as lost, and the default toleration of 300 s.
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


@dataclass(eq=False)
class Pod:
    """One pod.

    Attributes:
        number: unique in a simulation.
        zone: 0, 1 or 2.
        starts: when its container starts, seconds.
        ready: when senders may call it, seconds.
        lost: when its zone went, seconds.
        spent: seconds that requests have been in flight so far.
        busy: CPU seconds used so far.
        samples: pairs of a scrape's time and its value: the gauge, or `spent`.
        usage: pairs of a time and the value of `busy` at that time.
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

    def scrape(self, now: float, state: State, cluster: Cluster, chance: np.random.Generator) -> None:
        """Adds one sample of the metric and one of the CPU time."""
        self.samples.append((now, _moment(state, chance) if cluster.gauge else self.spent))
        self.usage.append((now, self.busy))


class Senders:
    """Groups of senders. Each looks for new pods at times of its own, and drops a pod as soon as the pod closes."""

    def __init__(self, look_seconds: float, step: float):
        groups = max(1, min(_MAX_GROUPS, int(look_seconds / step)))
        self._look_seconds = look_seconds
        self._due = [look_seconds * group / groups for group in range(groups)]
        self._known: list[list[Pod]] = [[] for _ in range(groups)]

    def shares(self, now: float, callable_pods: Sequence[Pod]) -> dict[Pod, float]:
        """Returns the share of all calls that each pod gets. A group takes the pods it knows in turn."""
        shares = dict.fromkeys(callable_pods, 0.0)
        for group, before in enumerate(self._known):
            known = [pod for pod in before if pod in shares]
            closed = len(known) < len(before)
            if closed or not known or now >= self._due[group]:
                known = [*callable_pods]
                while self._due[group] <= now:
                    self._due[group] += self._look_seconds
            self._known[group] = known
            for pod in known:
                shares[pod] += 1 / len(self._known) / len(known)
        return shares


class Fleet:
    """The pods of a Deployment.

    Attributes:
        pods: all of them, ready or not.
    """

    def __init__(self, cluster: Cluster, replicas: int):
        """Begins with `replicas` pods that are ready."""
        self._cluster = cluster
        self._created = 0
        self.pods: list[Pod] = []
        for _ in range(replicas):
            self._add(-math.inf)

    def scale(self, now: float, replicas: int) -> None:
        """Creates pods, or removes some: first pods that are not ready, then the youngest."""
        while len(self.pods) < replicas:
            self._add(now)
        if len(self.pods) > replicas:
            best_first = sorted(self.pods, key=lambda pod: (not pod.ready <= now < pod.lost, pod.number))
            self.pods = best_first[:replicas]

    def lose_zone(self, now: float) -> None:
        """Loses the zone with the most pods."""
        zones = self._pods_by_zone()
        for pod in self.pods:
            if pod.zone == zones.index(max(zones)):
                pod.lost = now

    def evict(self, now: float) -> None:
        """Replaces the pods that Kubernetes gives up after their zone was lost."""
        staying = [pod for pod in self.pods if now < pod.lost + self._cluster.eviction_seconds]
        gone, self.pods = len(self.pods) - len(staying), staying
        for _ in range(gone):
            self._add(now)

    def _pods_by_zone(self) -> list[int]:
        return [sum(pod.zone == zone for pod in self.pods) for zone in range(ZONES)]

    def _add(self, now: float) -> None:
        zones = self._pods_by_zone()
        starts = now + self._cluster.schedule_seconds
        ready = starts + self._cluster.start_seconds + self._cluster.probe_seconds
        self.pods.append(Pod(self._created, zones.index(min(zones)), starts, ready))
        self._created += 1


def wanted_pods(pods: Sequence[Pod], autoscaling: Autoscaling, cluster: Cluster, now: float) -> int:
    """Returns how many pods the metrics ask for: the most that any of them does."""
    wanted = []
    pending = sum(now < pod.starts for pod in pods)
    if autoscaling.in_flight is not None:
        shown = [value for pod in pods if (value := _in_flight(pod, cluster, now)) is not None]
        missing = len(pods) - len(shown) - pending
        wanted.append(recommended(len(pods), autoscaling.in_flight, shown, missing=missing, pending=pending))
    if autoscaling.cores is not None:
        # CPU of a young pod counts only if it was measured after the pod got ready. Source: as in hpa.py, groupPods.
        young = {pod for pod in pods if now < pod.starts or (pod.usage and pod.usage[0][0] < pod.ready)}
        old = [pod for pod in pods if pod not in young and len(pod.usage) == 2 and now < pod.lost + cluster.scrape_seconds]
        cores = [(last - first) / (end - begin) for (begin, first), (end, last) in (pod.usage for pod in old)]
        missing = len(pods) - len(young) - len(old)
        wanted.append(recommended(len(pods), autoscaling.cores, cores, missing=missing, pending=len(young)))
    return max(wanted)


def _in_flight(pod: Pod, cluster: Cluster, now: float) -> float | None:
    """Returns the adapter's value for a pod; None before it has one, and after the last sample has left the window."""
    while pod.samples and pod.samples[0][0] <= now - cluster.window_seconds:
        pod.samples.popleft()
    if cluster.gauge:
        return sum(value for _, value in pod.samples) / len(pod.samples) if pod.samples else None
    return growth(pod.samples, now, cluster.window_seconds) if len(pod.samples) > 1 else None


def growth(samples: Sequence[tuple[float, float]], now: float, window_seconds: float) -> float:
    """Returns a counter's growth per second as PromQL's `rate` computes it.

    `rate` extrapolates to the ends of the window. It covers the whole gap where a sample is as near as samples are to each
    other, else half such a distance. It never goes back before the counter was 0.
    Source: Prometheus, promql/functions.go, extrapolatedRate.

    Args:
        samples: at least two pairs of time and value, all within the window.
        now: end of the window, seconds.
        window_seconds: length of the window.
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
    """Draws one scrape of the gauge, spread as the measured scrapes were."""
    if not state.in_flight or not state.in_flight_deviation:
        return state.in_flight
    scale = state.in_flight_deviation**2 / state.in_flight
    return float(chance.gamma(state.in_flight / scale, scale))
