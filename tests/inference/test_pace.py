import math

import pytest

from serving.inference.pace import Pace


def two_runners(runs: int) -> Pace:
    """Two runners finish runs of 100 images, each in 20 ms and one every 10 ms, while 500 images wait."""
    pace = Pace()
    for run in range(runs):
        end = 1.0 + 0.01 * run
        pace.learn(end - 0.02, end, 100, run_seconds=0.02, runners=2, waiting=500)
    return pace


@pytest.mark.parametrize("runs", [1, 2, 100])
def test_the_pace_of_the_documented_example_is_its_documented_one(runs: int) -> None:
    pace = two_runners(runs)
    assert pace.seconds_per_image == pytest.approx(0.0001)
    assert pace.run_seconds_per_image == pytest.approx(0.0002)
    assert pace.seconds_late(500, 1, 0.0, in_turns=False) == pytest.approx(0.1001)
    assert pace.seconds_late(500, 1, 0.08, in_turns=False) == pytest.approx(0.0201)
    assert pace.seconds_late(500, 1, 0.2, in_turns=False) == pytest.approx(-0.0999)


def test_a_request_in_turns_is_expected_after_twice_the_wait() -> None:
    assert two_runners(10).seconds_late(500, 1, 0.0, in_turns=True) == pytest.approx(0.2001)


def test_no_request_is_late_before_the_first_run_or_without_a_deadline() -> None:
    assert Pace().seconds_late(1_000_000, 1, 0.001, in_turns=True) < 0
    assert two_runners(10).seconds_late(1_000_000, 1, math.inf, in_turns=True) == -math.inf


def test_older_runs_lose_weight_with_each_later_run() -> None:
    pace = Pace()
    pace.learn(0.0, 0.1, 100, run_seconds=0.1, runners=1, waiting=0)
    pace.learn(5.0, 5.2, 100, run_seconds=0.2, runners=1, waiting=0)
    assert pace.seconds_per_image == pytest.approx((0.95 * 0.1 + 0.2) / (0.95 * 100 + 100))
    assert pace.run_seconds_per_image == pytest.approx(0.95 * 0.001 + 0.05 * 0.002)


def test_a_slow_run_of_one_image_counts_as_one_image_only() -> None:
    pace = two_runners(100)
    pace.learn(2.0, 2.02, 1, run_seconds=0.02, runners=1, waiting=0)
    assert pace.seconds_per_image < 0.0006, "by runs instead of images, it would be 0.02 at a weight of 5 %"


def test_time_without_work_does_not_count_as_time_of_images() -> None:
    pace = two_runners(10)
    pace.break_backlog()
    pace.learn(100.0, 100.02, 100, run_seconds=0.02, runners=2, waiting=0)
    assert pace.seconds_per_image == pytest.approx(0.0001)
    pace.learn(200.0, 200.02, 100, run_seconds=0.02, runners=2, waiting=0)
    assert pace.seconds_per_image == pytest.approx(0.0001), "no images waited when the previous run ended"


def test_a_forgotten_run_time_is_unknown_until_the_next_run() -> None:
    pace = two_runners(10)
    pace.forget_run_time()
    assert pace.run_seconds_per_image == 0
    pace.learn(2.0, 2.1, 100, run_seconds=0.1, runners=2, waiting=0)
    assert pace.run_seconds_per_image == pytest.approx(0.001)
