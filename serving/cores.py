"""The number of processor cores that this process may use; in a container, fewer than the machine has."""

import os
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Returns the whole cores that this process may use at a time: CPU affinity and cgroup quotas, at least 1.

    A quota of 1.5 cores counts as 1: with a second busy thread, the kernel would stop both for a part of each period.

    Args:
        root: directory in which /proc and /sys are read.
    """
    quotas = [float(len(os.sched_getaffinity(0))), *_quotas(root)]
    return max(1, int(min(quotas)))


def _quotas(root: Path) -> list[float]:
    """Reads the CPU quotas of this process and its ancestors, in cores, from cgroup v2 and v1.

    Source: Linux kernel documentation, admin-guide/cgroup-v2 (cpu.max) and scheduler/sched-bwc (cpu.cfs_quota_us).
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers == "":  # v2
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):  # v1
            mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        # Every ancestor's limit applies. In a container the path may be the host's, and then only the mount exists.
        group = mount / path.lstrip("/")
        for directory in (group, *group.parents):
            found.extend(_quota(directory))
            if directory == mount:
                break
    return found


def _quota(directory: Path) -> list[float]:
    """Reads the quota of one cgroup directory, in cores; an empty list if it has no quota."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (directory / "cpu.cfs_quota_us").read_text().strip()
            period = (directory / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return []
    return [] if quota in ("max", "-1") else [int(quota) / int(period)]
