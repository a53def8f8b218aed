import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import values

from serving.telemetry import multiprocess_metrics
from serving.telemetry.metrics import Metrics
from serving.telemetry.multiprocess_metrics import DIRECTORY, MetricsDirectory, SupervisorMetrics
from serving.telemetry.retired_series import RetiredSeries
from serving.telemetry.series_files import VERSION_SIZES, merge, version_key
from serving.telemetry.version_metrics import VersionMetrics
from tests.support.calls import TIMEOUT
from tests.support.metrics import value

FILL = """
import sys
from pathlib import Path
from serving.telemetry.multiprocess_metrics import count_as
files = count_as(0, Path(sys.argv[1]))
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
metrics = Metrics(files)
for version in range(60):
    VersionMetrics(metrics, "digits", str(version)).batch_size.observe(1)
metrics.requests.labels("Recognize", "OK").inc()
metrics.count_dropped()
"""

FILL_LOG_AND_DISK = """
import logging, resource, sys
from pathlib import Path
from serving.telemetry.logs import configure, count_dropped_lines
from serving.telemetry.multiprocess_metrics import count_as
configure("text", "info")
files = count_as(0, Path(sys.argv[1]))
from serving.telemetry.metrics import Metrics
from serving.telemetry.version_metrics import VersionMetrics
metrics = Metrics(files)
count_dropped_lines(metrics.log_lines_dropped.inc)
for size in (5000, 1):
    dropped = metrics.log_lines_dropped._value.get()
    while metrics.log_lines_dropped._value.get() == dropped:
        logging.getLogger("serving").error("x" * size)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
VersionMetrics(metrics, "digits", "1")
metrics.count_dropped()
print(files.dropped, flush=True)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[MetricsDirectory]:
    made = MetricsDirectory(1, [tmp_path])
    yield made
    made.remove()


@pytest.fixture
def in_files(directory: MetricsDirectory, monkeypatch: pytest.MonkeyPatch) -> Metrics:
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    monkeypatch.setenv(DIRECTORY, "")
    return Metrics(multiprocess_metrics.count_as(0, directory.path))


@pytest.fixture(params=["alone", "worker"])
def metrics(request: pytest.FixtureRequest) -> Metrics:
    return Metrics() if request.param == "alone" else request.getfixturevalue("in_files")


def pages(metrics: Metrics) -> set[str]:
    """Returns the versions on the page that a scrape of this process, or of its supervisor, yields."""
    collected = merge(metrics._files.directory) if metrics._files else metrics.registry.collect()
    return {sample.labels["version"] for metric in collected for sample in metric.samples if "model" in sample.labels}


def expire(retired: RetiredSeries, serving: set[tuple[str, str]], on_disk: set[tuple[str, str]]) -> None:
    retired.expire(serving, on_disk)
    retired.delete_files()


def test_series_do_not_grow_with_the_number_of_versions(metrics: Metrics) -> None:
    retired = RetiredSeries(metrics)
    for number in range(100):
        VersionMetrics(metrics, "digits", str(number)).batch_size.observe(1)
        expire(retired, {("digits", "0"), ("digits", str(number))}, {("digits", str(n)) for n in range(100)})
    assert pages(metrics) == {"0", *(str(number) for number in range(89, 100))}
    if metrics._files:
        files = [*metrics._files.directory.glob("*_0-*.db")]
        assert {file.name.rpartition("-")[2] for file in files} == {f"{version_key('digits', n)}.db" for n in pages(metrics)}


def test_a_version_that_is_gone_from_disk_keeps_its_series_for_an_hour(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("serving.telemetry.retired_series.time.monotonic", lambda: now)
    retired = RetiredSeries(metrics)
    for version in ("1", "2", "3"):
        VersionMetrics(metrics, "digits", version).batch_size.observe(1)
    for later in (0, 3599):
        now = 1000 + later
        expire(retired, {("digits", "3")}, {("digits", "2"), ("digits", "3")})
        assert pages(metrics) == {"1", "2", "3"}
    now = 1000 + 3600
    expire(retired, {("digits", "3")}, {("digits", "2"), ("digits", "3")})
    assert pages(metrics) == {"2", "3"}, "version 2 is still on disk and may serve again"
    VersionMetrics(metrics, "digits", "1").batch_size.observe(5)
    assert pages(metrics) == {"1", "2", "3"}


def test_counts_of_a_retired_version_go_on_where_no_one_sees_them(metrics: Metrics) -> None:
    old, new = VersionMetrics(metrics, "digits", "1"), VersionMetrics(metrics, "digits", "2")
    new.batch_size.observe(7)
    metrics.forget(("digits", "1"))
    metrics.delete_files(version_key("digits", "1"))
    old.batch_size.observe(3)  # a last run
    new.batch_size.observe(7)
    assert pages(metrics) == {"2"}
    assert metrics.statistics([("digits", "2")])["digits", "2"].images == 14


def test_series_that_a_dead_worker_has_left_end_too(in_files: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("serving.telemetry.retired_series.time.monotonic", lambda: now)
    VersionMetrics(in_files, "digits", "1").batch_size.observe(3)
    VersionMetrics(in_files, "digits", "2").batch_size.observe(3)
    assert in_files._files
    replacement = Metrics(multiprocess_metrics.count_as(0, in_files._files.directory))
    VersionMetrics(replacement, "digits", "2").batch_size.observe(4)
    retired = RetiredSeries(replacement)
    expire(retired, {("digits", "2")}, set())
    assert pages(replacement) == {"1", "2"}
    assert replacement.statistics([("digits", "2")])["digits", "2"].images == 7, "counts should continue"
    now += 3600
    expire(retired, {("digits", "2")}, set())
    assert pages(replacement) == {"2"}
    assert replacement.statistics([("digits", "2")])["digits", "2"].images == 7


def test_a_version_that_serves_again_before_its_files_are_deleted_shows(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("serving.telemetry.retired_series.time.monotonic", lambda: now)
    retired = RetiredSeries(metrics)
    for version in ("1", "2"):
        VersionMetrics(metrics, "digits", version).batch_size.observe(1)
    expire(retired, {("digits", "2")}, set())
    now += 3600
    retired.expire({("digits", "2")}, set())
    VersionMetrics(metrics, "digits", "1").batch_size.observe(5)
    retired.delete_files()
    assert pages(metrics) == {"1", "2"}
    assert metrics.statistics([("digits", "1")])["digits", "1"].images >= 5


def test_a_version_of_a_dead_worker_that_serves_again_shows(in_files: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("serving.telemetry.retired_series.time.monotonic", lambda: now)
    VersionMetrics(in_files, "digits", "1").batch_size.observe(3)
    assert in_files._files
    replacement = Metrics(multiprocess_metrics.count_as(0, in_files._files.directory))
    retired = RetiredSeries(replacement)
    expire(retired, set(), set())
    now += 3600
    retired.expire(set(), set())
    VersionMetrics(replacement, "digits", "1").batch_size.observe(5)
    retired.delete_files()
    assert replacement.statistics([("digits", "1")])["digits", "1"].images == 8


def test_a_dead_worker_leaves_no_live_gauge_of_any_version(directory: MetricsDirectory, in_files: Metrics) -> None:
    VersionMetrics(in_files, "digits", "1").queue_length.set(5)
    assert "digits_queue_length_images" in {metric.name for metric in directory.collect()}
    directory.forget(0)
    names = {metric.name for metric in directory.collect()}
    assert "digits_queue_length_images" not in names
    assert "digits_predictions" in names


def test_series_without_room_are_dropped_and_counted_and_kill_no_worker(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", small], capture_output=True, check=False)
    if mounting.returncode:
        pytest.skip("only root can mount a small file system")
    try:
        directory = MetricsDirectory(1, [small])
        filling = subprocess.run(
            [sys.executable, "-c", FILL, directory.path], capture_output=True, timeout=TIMEOUT, check=True
        )
        registry = SupervisorMetrics(directory, list).registry
        assert filling.stderr.decode().count("no room for metrics") == 1
        assert value(registry, "digits_dropped_series") > 100
        assert value(registry, "digits_requests_total", code="OK") == 1
        assert value(registry, "digits_batch_size_images_sum", version="0") == 1
        assert os.statvfs(small).f_bavail * os.statvfs(small).f_frsize < sum(VERSION_SIZES.values())
        directory.remove()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_full_log_and_a_full_disk_together_stop_no_worker(directory: MetricsDirectory) -> None:
    command = [sys.executable, "-c", FILL_LOG_AND_DISK, str(directory.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:  # no one reads its log
        try:
            assert worker.wait(TIMEOUT) == 0
            assert worker.stdout
            assert int(worker.stdout.read()) > 10
        finally:
            worker.kill()
