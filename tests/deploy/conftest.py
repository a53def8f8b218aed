"""The report at the end of `make prove`: facts proved with real components, facts checked statically, and gaps."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from serving.settings import Settings
from tests.deploy.image_build import image, podman  # noqa: F401 - fixtures

NOT_VERIFIED = (
    "scheduling: topology spread, node selectors, tolerations, evictions",
    "enforcement of the NetworkPolicies and of Pod Security by an API server",
    "prometheus-adapter, KEDA and the HPA controller with the metrics (deploy/CAPACITY.md simulates them)",
    "KServe, the Prometheus operator and cert-manager with their objects",
    "the image for GPUs on a GPU (it was built once, by hand), and the GPU device plugin",
    "compose.yaml as a whole: its images were not available",
    "Grafana itself: every query of its dashboard has data, but the drawing was not inspected",
)
"""Facts that no test shows. deploy/README.md has the same list."""

_REAL = "with real components"

LOOPBACK = [f"127.0.0.{host}" for host in range(1, 32)]
"""The addresses of the tests' servers and replicas."""


class Prove(Protocol):
    """Adds a fact to the report of `make prove`."""

    def __call__(self, fact: str) -> None: ...


@pytest.fixture(scope="session", autouse=True)
def neutral_environment() -> Iterator[None]:
    """Removes the service's settings from the environment, and keeps calls of the loopback interface off any proxy."""
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(f"DIGITS_{name.upper()}", raising=False)
        for name in ("no_proxy", "NO_PROXY"):
            patch.setenv(name, ",".join(filter(None, (os.environ.get(name), "localhost", *LOOPBACK))))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("deploy"):
            item.user_properties.append((_REAL, True))


@pytest.fixture
def prove(record_property: Callable[[str, object], None]) -> Prove:
    return lambda fact: record_property("proved", fact)


def _sentence(report: pytest.TestReport) -> str:
    return report.nodeid.rpartition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    by_outcome = {
        outcome: [report for report in terminalreporter.getreports(outcome) if "tests/deploy/" in report.nodeid]
        for outcome in ("passed", "failed", "error", "skipped")
    }
    if not any(_is_real(report) for reports in by_outcome.values() for report in reports):
        return
    calls = [report for report in by_outcome["passed"] if report.when == "call"]
    real = [report for report in calls if _is_real(report)]
    failed = [*by_outcome["failed"], *by_outcome["error"]]
    write = terminalreporter.write_line
    terminalreporter.section("proved with the real components")
    for report in real:
        facts = [str(value) for key, value in report.user_properties if key == "proved"]
        write(f"PROVED      {_sentence(report)}" + "".join(f"\n            {fact}" for fact in facts))
    for report in failed:
        write(f"FAILED      {_sentence(report)}")
    interrupted = exitstatus == pytest.ExitCode.INTERRUPTED
    if by_outcome["skipped"] or interrupted:
        terminalreporter.section("not tried")
    for report in by_outcome["skipped"]:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        write(f"NOT TRIED   {_sentence(report)}: {reason.removeprefix('Skipped: ')}")
    if interrupted:
        write("INTERRUPTED tests that are not listed were not tried")
    terminalreporter.section("checked statically")
    for sentence, count in Counter(_sentence(report) for report in calls if not _is_real(report)).items():
        write(f"CHECKED     {sentence}" + (f" ({count} times)" if count > 1 else ""))
    terminalreporter.section("not verified here")
    for gap in NOT_VERIFIED:
        write(f"UNKNOWN     {gap}")
    write(f"{len(real)} proved, {len(failed)} failed, {len(by_outcome['skipped'])} not tried")


def _is_real(report: pytest.TestReport | pytest.CollectReport) -> bool:
    return isinstance(report, pytest.TestReport) and (_REAL, True) in report.user_properties
