import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from deploy.capacity import hpa, measured, page
from deploy.capacity.fleet import Cluster, Pod, Senders, growth
from deploy.capacity.hpa import Autoscaler, Autoscaling, Behavior, Policy, recommended
from deploy.capacity.measured import Curve, Point
from deploy.capacity.scenarios import BUSY, CLIENTS_LOOK_SECONDS, Simulations
from deploy.capacity.simulation import Retry, Run, simulate
from deploy.quantity import parse_quantity
from serving.client import DigitClient
from serving.loadtest import objectives
from serving.samples.draw import draw
from tests.benchmarks.capacity import sender
from tests.deploy.manifests import KUBERNETES
from tests.support.service import service

OBJECTIVES = objectives.parse("p99=100ms,errors=0.1%")

# A pod that carries 100 calls a second and answers 90 of a higher rate. At the knee it has 8 in flight and a p99 of 99 ms.
CURVE = Curve(
    [
        Point(50, 1.0, 5, 10, 4, 4, 2, 5, 0.5, 0, 3),
        Point(100, 1.0, 20, 99, 8, 8, 4, 10, 1, 0, 3),
        Point(200, 0.45, 400, 900, 40, 40, 10, 45, 1.2, 0, 0),
    ],
    rounds=3,
)
UP = Behavior(0, (Policy(True, 100, 15), Policy(False, 4, 15)))
DOWN = Behavior(300, (Policy(True, 10, 60), Policy(False, 1, 60)))
AUTOSCALING = Autoscaling(3, 20, 4.0, None, UP, DOWN)
CLUSTER = Cluster(start_seconds=2.0)


def pods(run: Run) -> list[int]:
    return [moment.pods for moment in run.moments]


@pytest.mark.parametrize(
    ("current", "metrics", "missing", "pending", "expected"),
    [
        (3, [16.0] * 3, 0, 0, 6),  # twice the target
        (4, [4.0] * 4, 0, 0, 2),  # half of it
        (3, [8.7] * 3, 0, 0, 3),  # within a tenth
        (3, [9.0] * 3, 0, 0, 4),  # ceil(3 * 1.125)
        (4, [16.0] * 3, 1, 0, 6),  # scaling up, the pod without a metric counts as idle: ceil(4 * 1.5)
        (6, [16.0] * 3, 0, 3, 6),  # scaling up, pending pods count as idle: just enough
        (6, [2.0] * 4, 2, 0, 3),  # scaling down, pods without a metric count as being at the target: ceil(6 * 0.5)
        (6, [2.0] * 4, 0, 2, 1),  # scaling down, pending pods do not count: ceil(4 * 0.25)
        (6, [7.5] * 4, 0, 2, 6),  # nor do they near the target
        (6, [10.0] * 4, 2, 0, 6),  # more by the pods with a metric, fewer by all: no change
        (5, [], 5, 0, 5),  # no metric at all
    ],
)
def test_the_autoscaler_recommends_as_many_pods_as_kubernetes(
    current: int, metrics: list[float], missing: int, pending: int, expected: int
) -> None:
    assert recommended(current, 8.0, metrics, missing=missing, pending=pending) == expected


def test_scaling_up_follows_the_larger_policy_up_to_the_maximum() -> None:
    autoscaler, replicas, steps = Autoscaler(AUTOSCALING), 3, []
    for now in (0, 15, 30, 45):
        replicas = autoscaler.scale(now, replicas, 50)
        steps.append(replicas)
    assert steps == [7, 14, 20, 20]


def test_scaling_up_by_a_small_percentage_adds_one_pod() -> None:
    slowly = replace(AUTOSCALING, up=Behavior(0, (Policy(True, 10, 15),)))
    assert Autoscaler(slowly).scale(0, 3, 20) == 4


def test_scaling_down_waits_five_minutes_then_removes_a_tenth_a_minute() -> None:
    autoscaler, replicas, steps = Autoscaler(AUTOSCALING), 20, []
    assert autoscaler.scale(0, replicas, 20) == 20
    for now in range(15, 1200, 15):
        before, replicas = replicas, autoscaler.scale(now, replicas, 3)
        if replicas != before:
            steps.append((now, replicas))
    expected = [18, 16, 14, 12, 10, 9, 8, 7, 6, 5, 4, 3]
    assert steps == [(300 + 60 * number, pods) for number, pods in enumerate(expected)]


def test_the_curve_is_linear_between_points_and_constant_beyond_the_last() -> None:
    assert CURVE.knee.rate == 100
    assert CURVE.at(0).in_flight == 0
    assert CURVE.at(25)[:4] == (25, 5, 10, 2)
    assert CURVE.at(75)[:4] == (75, 12.5, 54.5, 6)
    assert CURVE.at(150)[:4] == (95, 210, 499.5, 24)
    assert CURVE.at(1000)[:4] == (90, 400, 900, 40)


def test_a_rate_above_one_that_missed_an_objective_is_beyond_the_knee() -> None:
    points = [replace(point, kept=kept) for point, kept in zip(CURVE.points, (3, 1, 3), strict=True)]
    assert Curve(points, rounds=3).knee.rate == 50
    with pytest.raises(ValueError, match="lower"):
        Curve([replace(point, kept=0) for point in points], rounds=3)


def test_a_constant_load_at_the_target_is_answered_without_scaling() -> None:
    run = simulate(CURVE, AUTOSCALING, CLUSTER, lambda _: 150.0, 1800)
    assert set(pods(run)) == {3}
    assert run.answered == pytest.approx(run.offered)
    assert run.pod_hours == pytest.approx(1.5)
    assert not run.outside(OBJECTIVES)


@pytest.mark.parametrize("retry", [None, Retry(4)])
@pytest.mark.parametrize("look_seconds", [5.0, 300.0])
def test_every_offered_call_is_answered_given_up_or_awaits_its_retry(retry: Retry | None, look_seconds: float) -> None:
    def load(now: float) -> float:
        return 1500.0 if now >= 100 else 150.0

    cluster = replace(CLUSTER, look_seconds=look_seconds)
    run = simulate(CURVE, AUTOSCALING, cluster, load, 400, retry=retry, zone_lost_at=200)
    assert run.offered == pytest.approx(100 * 150 + 300 * 1500)
    assert run.answered + run.given_up + run.waiting == pytest.approx(run.offered)
    assert run.given_up > 0
    assert (run.waiting > 0) == (retry is not None)


def test_pods_follow_a_step_after_the_scrapes_and_their_start() -> None:
    run = simulate(CURVE, AUTOSCALING, CLUSTER, lambda now: 300.0 if now >= 600 else 150.0, 2400)
    more = next(moment.at for moment in run.moments if moment.pods > 3)
    serving = next(moment.at for moment in run.moments if moment.ready > 3)
    assert 600 < more <= 660
    assert more + 10 <= serving <= more + 11  # 5 s scheduled, 2 s started, 3 s probed
    assert run.moments[-1].p99_ms < 100
    assert run.moments[-1].answered == pytest.approx(300)


def test_a_load_announced_by_cron_finds_its_pods_ready() -> None:
    def load(now: float) -> float:
        return 800.0 if now >= 600 else 150.0

    caught = simulate(CURVE, AUTOSCALING, CLUSTER, load, 900)
    expected = simulate(CURVE, AUTOSCALING, CLUSTER, load, 900, calendar=lambda now: 12 if now >= 300 else 0)
    assert caught.outside(OBJECTIVES)
    assert not expected.outside(OBJECTIVES)


def test_clients_that_rarely_look_for_pods_reach_new_ones_late() -> None:
    def load(now: float) -> float:
        return 450.0 if now >= 600 else 150.0

    soon, late = (
        simulate(CURVE, AUTOSCALING, replace(CLUSTER, look_seconds=seconds), load, 1500).outside(OBJECTIVES)
        for seconds in (5.0, CLIENTS_LOOK_SECONDS)
    )
    assert len(late) > len(soon)


def test_senders_find_new_pods_on_a_lookup_or_when_one_closes() -> None:
    first, second, third = (Pod(number, 0, 0.0, 0.0) for number in range(3))
    senders = Senders(look_seconds=300.0, step=1.0)
    assert senders.shares(0, [first, second]) == pytest.approx({first: 0.5, second: 0.5})
    late = senders.shares(150, [first, second, third])
    assert 0.1 < late[third] < 0.25
    assert sum(late.values()) == pytest.approx(1)
    assert senders.shares(151, [first, third]) == pytest.approx({first: 0.5, third: 0.5})


def test_lost_pods_count_as_idle_until_kubernetes_replaces_them() -> None:
    run = simulate(CURVE, AUTOSCALING.at_least(6), CLUSTER, lambda _: 300.0, 1200, zone_lost_at=300)
    ready = {moment.at: moment.ready for moment in run.moments}
    assert (ready[299], ready[300], ready[300 + 340]) == (6, 4, 4)
    assert ready[300 + 340 + 11] == 6
    lost = [moment.at for moment in run.moments if moment.answered < moment.sent * 0.999]
    assert lost == [300, 301, 302, 303, 304]  # until the senders notice


@pytest.mark.parametrize(
    ("values", "expected"),  # as computed by promtool 2.42 for rate(...[1m]) at 98 s
    [({45: 90, 60: 120, 75: 150, 90: 180}, 2.0), ({60: 0, 75: 30, 90: 60}, 1.2667), ({60: 4, 75: 30, 90: 60}, 1.2489)],
)
def test_a_counter_grows_as_prometheus_computes_it(values: dict[float, float], expected: float) -> None:
    assert growth([*values.items()], 98, 60) == pytest.approx(expected, abs=0.0001)


def test_scrapes_of_a_gauge_are_random_and_reproducible() -> None:
    seen = [simulate(CURVE, AUTOSCALING, replace(CLUSTER, gauge=True), lambda _: 150.0, 3600) for _ in range(2)]
    assert pods(seen[0]) == pods(seen[1])
    assert len(set(pods(seen[0]))) > 1


@pytest.mark.parametrize(("rate", "expected"), [(1, 3), (195, 3), (196, 4), (201, 5), (650, 11)])
def test_the_pods_of_the_table_survive_the_loss_of_a_zone(rate: float, expected: int) -> None:
    # The planned load of a pod is 65 calls a second, and its knee 100. Of 10 pods for 650, 6 would be left; of 11, 7.
    assert page.pods_for(rate, CURVE) == expected


def test_refused_calls_are_the_quickest_and_late_calls_the_slowest() -> None:
    seconds = np.array([*[0.001] * 20, *[0.1] * 70, *[1.0] * 10])
    tally = sender._tally(np.random.default_rng(0).permutation(seconds), refused=0.3, late=0.1, ended=100)
    assert tally.codes == {"RESOURCE_EXHAUSTED": 20, "DEADLINE_EXCEEDED": 10, "OK": 70}
    assert tally.milliseconds(1) == tally.milliseconds(99) == pytest.approx(100, rel=0.01)
    assert tally.errors == pytest.approx(0.3)


def test_a_scrape_counts_the_calls_of_the_service() -> None:
    with service("--workers", "1") as server, DigitClient(server.address) as client:
        for _ in range(3):
            client.recognize(draw(7))
        found = sender.scrape(server.metrics)
        assert (found.ok, found.ended, found.late, found.in_flight) == (3, 3, 0, 0)
        assert found.seconds == server.scrape("digits_request_seconds_sum") > 0
        assert 0 < found.cpu <= server.scrape("process_cpu_seconds_total")


def test_a_measurement_survives_writing_and_reading(tmp_path: Path) -> None:
    found = measured.read(measured.COMMITTED)
    measured.write(found, tmp_path / "capacity.json")
    assert measured.read(tmp_path / "capacity.json") == found
    assert (tmp_path / "capacity.json").read_text() == measured.COMMITTED.read_text()


def test_the_page_matches_the_committed_measurement_and_the_manifests() -> None:
    tables = page.tables(measured.read(measured.COMMITTED), hpa.read())
    assert page.fill(page.PAGE.read_text(), tables) == page.PAGE.read_text(), "python -m deploy.capacity"


def test_the_target_of_the_autoscaler_is_the_planned_load() -> None:
    curve = measured.read(measured.COMMITTED).curve(measured.SIMULATED)
    aims_at = curve.rate_with(in_flight=hpa.read().in_flight) / curve.knee.rate
    assert aims_at == pytest.approx(BUSY, abs=0.05)


def test_keda_scales_like_the_autoscaler() -> None:
    keda = yaml.safe_load((KUBERNETES / "components" / "keda" / "scaledobject.yaml").read_text())["spec"]
    spec = yaml.safe_load(hpa.MANIFEST.read_text())["spec"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (spec["minReplicas"], spec["maxReplicas"])
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == spec["behavior"]
    (prometheus,) = (trigger for trigger in keda["triggers"] if trigger["type"] == "prometheus")
    assert parse_quantity(prometheus["metadata"]["threshold"]) == hpa.read().in_flight
    assert re.match(r"sum\(rate\(digits_request_seconds_sum\{.*\}\[1m\]\)\)", prometheus["metadata"]["query"])


def test_the_adapter_computes_the_simulated_metric() -> None:
    (rule,) = yaml.safe_load((hpa.MANIFEST.parent / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    (metric,) = yaml.safe_load(hpa.MANIFEST.read_text())["spec"]["metrics"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    assert rule["seriesQuery"].startswith("digits_request_seconds_sum{")
    assert "(rate(<<.Series>>{<<.LabelMatchers>>}[1m]))" in rule["metricsQuery"]
    assert (CLUSTER.window_seconds, CLUSTER.gauge) == (60, False)


def test_an_autoscaler_of_two_metrics_follows_the_one_that_asks_for_more() -> None:
    def load(now: float) -> float:
        return 300.0 if now >= 600 else 150.0

    by_cpu = simulate(CURVE, replace(AUTOSCALING, in_flight=None, cores=0.5), CLUSTER, load, 1200)
    by_both = simulate(CURVE, replace(AUTOSCALING, in_flight=2.0, cores=0.5), CLUSTER, load, 1200)
    assert (pods(by_cpu)[599], pods(by_cpu)[-1]) == (3, 6)
    assert (pods(by_both)[599], pods(by_both)[-1]) == (6, 12)


def test_clients_look_up_pods_as_often_as_connections_close() -> None:
    settings = dict(
        line.split("=", 1) for line in (KUBERNETES / "base" / "settings.env").read_text().splitlines() if "=" in line
    )
    assert float(settings["DIGITS_MAX_CONNECTION_AGE_SECONDS"]) == CLIENTS_LOOK_SECONDS


def test_a_manifest_that_can_not_be_simulated_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "hpa.yaml"
    manifest.write_text(hpa.MANIFEST.read_text().replace("AverageValue", "Value"))
    with pytest.raises(ValueError, match="AverageValue"):
        hpa.read(manifest)
    assert parse_quantity("7500m") == 7.5


def test_headroom_is_the_lowest_minimum_that_meets_the_objectives() -> None:
    simulations = Simulations(measured.read(measured.COMMITTED), hpa.read())
    scenario = simulations.step(2.0)
    found = simulations.with_headroom(scenario)
    assert found is not None
    assert not found.outside_seconds
    fewer = simulations.run(scenario, min_replicas=found.min_replicas - 1)
    assert fewer.outside_seconds
    assert not math.isinf(fewer.outside_seconds)
