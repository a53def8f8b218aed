import os
from pathlib import Path

import pytest

from serving.cores import usable_cores

ALL = len(os.sched_getaffinity(0))


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", ALL), ("100000 100000", 1), ("50000 100000", 1), ("9900000 100000", ALL)]
)
def test_a_v2_quota_limits_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/pod/main\n")
    write(tmp_path / "sys/fs/cgroup/pod/main/cpu.max", quota)
    assert usable_cores(tmp_path) == cores


def test_a_quota_on_a_parent_group_binds_too(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/pod/main\n")
    write(tmp_path / "sys/fs/cgroup/pod/main/cpu.max", "max 100000")
    write(tmp_path / "sys/fs/cgroup/pod/cpu.max", "100000 100000")
    assert usable_cores(tmp_path) == 1


def test_inside_a_container_the_quota_lies_at_the_mount(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/the/hosts/path\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "100000 100000")
    assert usable_cores(tmp_path) == 1


@pytest.mark.parametrize(("quota", "cores"), [("-1", ALL), ("100000", 1)])
def test_a_v1_quota_limits_the_cores(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path / "proc/self/cgroup", "4:cpu,cpuacct:/pod\n3:memory:/pod\n")
    write(tmp_path / "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us", quota)
    write(tmp_path / "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us", "100000")
    assert usable_cores(tmp_path) == cores


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == ALL
