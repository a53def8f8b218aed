import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving import build_info
from serving.process.startup_log import calls_by_code
from serving.telemetry.multiprocess_metrics import MetricsDirectory, NoRoom, SupervisorMetrics
from tests.support.calls import TIMEOUT
from tests.support.metrics import value

EXPIRY = "digits_tls_certificate_expiry_timestamp_seconds"

COUNT = """
import os, signal, sys
from pathlib import Path
from serving.telemetry import multiprocess_metrics
number, calls, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
files = multiprocess_metrics.count_as(number, directory)
from serving.telemetry.metrics import Metrics
metrics = Metrics(files)
metrics.requests.labels("Recognize", "OK").inc(calls)
metrics.in_flight_requests.inc()
metrics.tls_certificate_expiry.set(calls)
for metric in vars(metrics).values():
    if getattr(metric, "_labelnames", ()):
        metric.labels(*metric._labelnames)  # creates a series of each metric
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[MetricsDirectory]:
    made = MetricsDirectory(2, [tmp_path])
    yield made
    made.remove()
    assert not [*tmp_path.iterdir()]


def count(directory: MetricsDirectory, number: int, calls: int) -> None:
    """Runs a worker that counts `calls` calls, with a certificate that expires at `calls` seconds, and is then killed."""
    command = [sys.executable, "-c", COUNT, str(number), str(calls), str(directory.path)]
    ended = subprocess.run(command, timeout=TIMEOUT, check=False)
    assert ended.returncode == -9


def test_counts_of_all_workers_add_up_and_survive_dead_workers(directory: MetricsDirectory) -> None:
    metrics = SupervisorMetrics(directory, list)
    count(directory, 0, 5)
    count(directory, 1, 7)
    assert value(metrics.registry, "digits_requests_total", method="Recognize", code="OK") == 12
    assert value(metrics.registry, "digits_in_flight_requests") == 2
    directory.forget(0)
    assert value(metrics.registry, "digits_in_flight_requests") == 1
    directory.reserve(0)
    count(directory, 0, 100)
    assert value(metrics.registry, "digits_requests_total", method="Recognize", code="OK") == 112
    assert calls_by_code(directory)["OK"] == 112


def test_the_build_shows_once_however_many_workers_serve(directory: MetricsDirectory) -> None:
    count(directory, 0, 1)
    count(directory, 1, 1)
    metrics = SupervisorMetrics(directory, list)
    samples = [sample for metric in metrics.registry.collect() for sample in metric.samples]
    (build,) = (sample for sample in samples if sample.name == "digits_build_info" and sample.value)
    assert (build.value, build.labels["version"]) == (1, build_info.version())


def test_the_oldest_certificate_of_all_workers_shows(directory: MetricsDirectory) -> None:
    count(directory, 0, 2000)
    count(directory, 1, 1000)
    assert value(SupervisorMetrics(directory, list).registry, EXPIRY) == 1000
    directory.forget(1)
    assert value(SupervisorMetrics(directory, list).registry, EXPIRY) == 2000


def test_a_worker_writes_only_to_blocks_that_are_allocated(directory: MetricsDirectory) -> None:
    before = {file.name: file.stat().st_size for file in directory.path.iterdir()}
    count(directory, 0, 1)
    after = {file.name: file.stat() for file in directory.path.iterdir()}
    assert before == {name: after[name].st_size for name in before}
    assert [name for name, status in after.items() if status.st_blocks * 512 < status.st_size] == []


def test_a_full_disk_is_an_error_before_any_worker_starts(
    small_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(NoRoom, match=rf"2 workers, 2 MiB \({small_disk}: No space left on device\).* --workers 1"):
        MetricsDirectory(2, [small_disk])
    assert not [*small_disk.iterdir()], "the unfinished directory is removed"
    second = tmp_path_factory.mktemp("second")
    directory = MetricsDirectory(2, [small_disk, second])
    assert directory.path.parent == second
    directory.remove()


def test_an_abandoned_directory_is_removed_after_its_last_worker(tmp_path: Path) -> None:
    abandoned = MetricsDirectory(1, [tmp_path])
    worker = subprocess.Popen(["sleep", "infinity"], pass_fds=[abandoned.lock])
    os.close(abandoned.lock)  # as if the supervisor were dead
    second = MetricsDirectory(1, [tmp_path])
    assert abandoned.path.exists(), "a worker still counts in it"
    worker.kill()
    worker.wait()
    third = MetricsDirectory(1, [tmp_path])
    assert not abandoned.path.exists()
    assert second.path.exists()
    second.remove()
    third.remove()


def test_process_metrics_are_summed_and_keep_a_dead_workers_time(directory: MetricsDirectory) -> None:
    busy = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        pids = [worker.pid]
        registry: CollectorRegistry = SupervisorMetrics(directory, lambda: pids).registry
        assert worker.stdout
        worker.stdout.readline()
        own = time.process_time()
        both = value(registry, "process_cpu_seconds_total")
        assert both >= own + 0.4
        alone = SupervisorMetrics(directory, list).registry
        for summed in ("process_resident_memory_bytes", "process_open_fds", "process_max_fds"):
            assert value(registry, summed) > value(alone, summed)
        assert value(registry, "process_start_time_seconds") == value(alone, "process_start_time_seconds")
    pids.clear()
    assert value(registry, "process_cpu_seconds_total") >= both
