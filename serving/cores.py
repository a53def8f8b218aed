"""How many processor cores this process may use, which in a container is not how many the machine has."""

import os
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Whole cores this process may use at once: the least of its CPU affinity and its cgroups' quotas, at least 1.

    A quota of 1.5 cores counts as 1: a second busy thread would have the kernel stop both for part of each period.

    Args:
        root: where /proc and /sys are looked for.
    """
    quotas = [float(len(os.sched_getaffinity(0))), *_quotas(root)]
    return max(1, int(min(quotas)))


def _quotas(root: Path) -> list[float]:
    """Every CPU quota above this process, in cores, from cgroup v2 and v1.

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
        # A limit on any ancestor binds; inside a container the path may be the host's, and only the mount itself is there.
        group = mount / path.lstrip("/")
        for directory in (group, *group.parents):
            found.extend(_quota(directory))
            if directory == mount:
                break
    return found


def _quota(directory: Path) -> list[float]:
    """The quota set on one cgroup directory, in cores; nothing when there is none."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (directory / "cpu.cfs_quota_us").read_text().strip()
            period = (directory / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return []
    return [] if quota in ("max", "-1") else [int(quota) / int(period)]
