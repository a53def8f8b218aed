import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from serving.process.startup_log import calls_by_code
from serving.telemetry.multiprocess_metrics import MetricsDirectory, NoRoom, SupervisorMetrics
from tests.conftest import TIMEOUT, value

EXPIRY = "digits_tls_certificate_expiry_timestamp_seconds"

COUNT = """
import os, signal, sys
from pathlib import Path
from serving.telemetry import multiprocess_metrics
number, calls, directory = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
multiprocess_metrics.count_as(number, directory)
from serving.telemetry.metrics import Metrics
metrics = Metrics(directory)
metrics.requests.labels("Recognize", "OK").inc(calls)
metrics.in_flight_requests.inc()
metrics.tls_certificate_expiry.set(calls)
for metric in vars(metrics).values():
    if getattr(metric, "_labelnames", ()):
        metric.labels(*metric._labelnames)  # as if each had been used
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[MetricsDirectory]:
    made = MetricsDirectory(2, [tmp_path])
    yield made
    made.remove()
    assert not [*tmp_path.iterdir()]


def count(directory: MetricsDirectory, number: int, calls: int) -> None:
    """A worker that counts its calls and is then killed; its certificate expires at as many seconds."""
    command = [sys.executable, "-c", COUNT, str(number), str(calls), str(directory.path)]
    ended = subprocess.run(command, timeout=TIMEOUT, check=False)
    assert ended.returncode == -9


def test_the_counts_of_all_workers_add_up_and_outlive_those_that_die(directory: MetricsDirectory) -> None:
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


def test_a_worker_on_an_older_certificate_than_the_others_shows(directory: MetricsDirectory) -> None:
    count(directory, 0, 2000)
    count(directory, 1, 1000)
    assert value(SupervisorMetrics(directory, list).registry, EXPIRY) == 1000
    directory.forget(1)
    assert value(SupervisorMetrics(directory, list).registry, EXPIRY) == 2000


def test_a_worker_writes_in_no_file_but_those_that_were_reserved(directory: MetricsDirectory) -> None:
    before = {file.name: file.stat().st_size for file in directory.path.iterdir()}
    count(directory, 0, 1)
    assert {file.name: file.stat().st_size for file in directory.path.iterdir()} == before


def test_a_full_disk_is_found_out_before_a_worker_could_die_of_it(
    small_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(NoRoom, match=rf"2 workers, 8 MiB \({small_disk}: No space left on device\).* --workers 1"):
        MetricsDirectory(2, [small_disk])
    assert not [*small_disk.iterdir()], "what was begun should be gone"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    directory = MetricsDirectory(2, [small_disk, elsewhere])
    assert directory.path.parent == elsewhere
    directory.remove()


def test_what_a_killed_supervisor_left_is_swept_away_once_its_workers_are_gone(tmp_path: Path) -> None:
    left = MetricsDirectory(1, [tmp_path])
    worker = subprocess.Popen(["sleep", "infinity"], pass_fds=[left.lock])
    os.close(left.lock)  # the supervisor is gone
    second = MetricsDirectory(1, [tmp_path])
    assert left.path.exists(), "a worker still counts in it"
    worker.kill()
    worker.wait()
    third = MetricsDirectory(1, [tmp_path])
    assert not left.path.exists()
    assert second.path.exists()
    second.remove()
    third.remove()


def test_process_metrics_are_summed_and_never_lose_the_time_of_a_dead_worker(directory: MetricsDirectory) -> None:
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
