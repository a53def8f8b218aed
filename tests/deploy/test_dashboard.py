import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from deploy.grafana import dashboard, selectors
from tests.deploy import promql, series

Panel = dict[str, Any]

DASHBOARD: dict[str, Any] = json.loads(dashboard.JSON.read_text())
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def rows() -> Iterator[tuple[Panel, list[Panel]]]:
    """Yields each row with its panels. A closed row contains its panels."""
    top = DASHBOARD["panels"]
    starts = [index for index, panel in enumerate(top) if panel["type"] == "row"]
    for start, end in zip(starts, [*starts[1:], len(top)], strict=True):
        yield top[start], top[start]["panels"] + top[start + 1 : end]


PANELS: list[Panel] = [panel for _, panels in rows() for panel in panels]
each_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: str(panel["title"]))


def test_the_dashboard_matches_its_generator() -> None:
    assert dashboard.JSON.read_text() == dashboard.build(), "make dashboards"


def test_the_dashboard_has_every_panel_that_operators_need() -> None:
    asked = {
        *("Read rate", "Rejects by reason", "Audited error among the accepted", "Accuracy by version"),
        *("p50 by method", "p99 by method", "p99.9 by method", "Errors by code"),
        *("Queue length", "Time in the queue", "Batch size"),
        *("Requests in flight", "Concurrent runs", "CPU", "Memory", "Worker restarts"),
        *("Read rate by role", "Failed by role", "Audited error by role", "Shadow", "Versions by pod", "Builds"),
        *("Stability index", "Estimated accuracy"),
    }
    assert asked <= {panel["title"] for panel in PANELS}


@each_panel
def test_a_panel_has_a_description_a_unit_and_a_data_source(panel: Panel) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == SOURCE
    assert [target["datasource"] for target in panel["targets"]] == [SOURCE] * len(panel["targets"])
    references = [target["refId"] for target in panel["targets"]]
    assert len(set(references)) == len(references) > 0


@each_panel
def test_a_panel_queries_existing_series_labels_and_values(panel: Panel) -> None:
    known = series.known()
    for target in panel["targets"]:
        expr = promql.parse(promql.filled(target["expr"]))
        labels = promql.labels(expr, known)
        assert list(promql.unknown_values(expr, series.VALUES)) == []
        assert set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", ""))) <= labels, "a legend names labels"
        if panel["type"] == "table":
            (shown,) = panel["transformations"]
            assert set(shown["options"]["include"]["names"]) - {"Value"} == labels


def test_no_two_panels_share_a_number_or_overlap() -> None:
    heads = [row for row, _ in rows()]
    numbers = [panel["id"] for panel in (*heads, *PANELS)]
    assert len(set(numbers)) == len(numbers)
    for _, panels in rows():
        for one, other in combinations([panel["gridPos"] for panel in panels], 2):
            beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            assert beside or above
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_the_variables_are_data_source_namespace_and_model() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "namespace", "model"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    known = series.known()
    for name in ("namespace", "model"):
        asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variables[name]["query"])
        assert asked
        assert asked[2] in promql.labels(promql.parse(promql.filled(asked[1])), known)
        assert variables[name]["datasource"] == SOURCE
        assert variables[name]["allValue"] == ".*"


def test_the_lines_of_panels_are_the_thresholds_of_alerts() -> None:
    rules = {rule["alert"]: rule["expr"] for rule in series.rules() if "alert" in rule}
    assert f"> 14.4 * {1 - selectors.AVAILABILITY:g} " in rules["DigitsAvailabilityBurnFast"]
    assert f"> 14.4 * {1 - selectors.IN_TIME:g} " in rules["DigitsLatencyBurnFast"]
    assert f"digits:drift_psi:avg > {selectors.MUCH_MOVED}" in rules["DigitsDrift"]
