import json
import re
import shlex
import subprocess
from typing import Any

import pytest
import yaml

from deploy import generate
from deploy.generate import RULES
from serving.feedback.accuracy import wilson_interval
from serving.settings import Settings
from tests.deploy import promql, series
from tests.deploy.conftest import Prove
from tests.deploy.manifests import DEPLOY
from tests.deploy.monitoring import needs
from tests.deploy.series import Rule
from tests.deploy.tracked import ROOT, tracked_files

RUNBOOK = (DEPLOY / "RUNBOOK.md").read_text()
SOURCES = "".join(file.read_text() for file in tracked_files("serving") if file.suffix == ".py")
RUNBOOK_URL = "https://runbooks.example/postal-digits"
ALERTS: list[Rule] = [rule for rule in series.rules() if "alert" in rule]
TESTED = ("rules_test.yaml", "rules_days_test.yaml")
CASES: list[dict[str, Any]] = [
    test for name in TESTED for test in yaml.safe_load((DEPLOY / "prometheus" / name).read_text())["tests"]
]


def test_the_prometheus_rule_matches_the_rules() -> None:
    made = generate.prometheus_rule()
    assert generate.PROMETHEUS_RULE.read_text() == made, "make dashboards"
    assert yaml.safe_load(made)["spec"] == yaml.safe_load(RULES.read_text())


def test_rules_query_existing_series_and_labels() -> None:
    known = series.known()  # checks all recorded series
    for alert in ALERTS:
        promql.labels(promql.parse(alert["expr"]), known)


def test_rules_query_existing_label_values() -> None:
    for rule in series.rules():
        assert list(promql.unknown_values(promql.parse(rule["expr"]), series.VALUES)) == [], rule["expr"]


def test_every_reason_of_a_failure_has_a_case_about_its_fault() -> None:
    tested = re.findall(r'namespace="each",pod="a",reason="(\w+)"', (DEPLOY / "prometheus" / "rules_test.yaml").read_text())
    assert set(tested) == series.VALUES["digits_rejected_requests_total", "reason"]


def test_a_recorded_series_is_named_by_level_metric_and_window() -> None:
    for rule in series.rules():
        if "record" in rule:
            assert re.fullmatch(r"digits:[a-z_]+:[a-z_]+[0-9a-z]*", rule["record"]), rule["record"]
            assert {*re.findall(r"\[(\w+)\]", rule["expr"])} <= {*re.findall(r"\d+[mhd]$", rule["record"])}, rule["record"]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_has_a_severity_texts_and_a_runbook_url(alert: Rule) -> None:
    assert alert["labels"] in ({"severity": "page"}, {"severity": "ticket"})
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOK_URL}#{alert['alert'].lower()}"
    labels = promql.labels(promql.parse(alert["expr"]), series.known())
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(alert["annotations"].values())))
    assert named <= labels, "an annotation uses a label that the alert does not have"


def test_the_readme_command_sets_the_runbook_url_of_every_alert() -> None:
    readme = (DEPLOY / "README.md").read_text()
    (command,) = re.findall(r"`(sed 's[^`]*runbook_url[^`]*)`", readme)
    edited = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    urls = re.findall(r"runbook_url: (\S+)", edited)
    assert sorted(urls) == sorted(f"https://wiki.example/digits#{alert['alert'].lower()}" for alert in ALERTS)


def test_alerts_and_entries_of_the_runbook_match() -> None:
    entries = re.findall(r"^### (\w+)\n\n\*\*Means\*\* \((\w+)\): ", RUNBOOK, re.MULTILINE)
    assert len(re.findall(r"^### ", RUNBOOK, re.MULTILINE)) == len(entries)
    assert sorted(entries) == sorted((alert["alert"], alert["labels"]["severity"]) for alert in ALERTS)
    for name, entry in zip([name for name, _ in entries], RUNBOOK.split("\n### ")[1:], strict=True):
        assert "**Look at**" in entry, name
        assert re.search(r"\*\*(and )?[Dd]o\*\*", entry), name


def test_the_runbook_names_existing_events_panels_series_and_entries() -> None:
    known = series.known()
    events = {event for found in re.findall(r"events '?([\w|\\]+)", RUNBOOK) for event in re.split(r"\\?\|", found)}
    logged = {*re.findall(r'"([a-z_]+)"', SOURCES)}
    logged |= {
        f"{name}_{state}" for name in re.findall(r'_succeeds\("(\w+)"', SOURCES) for state in ("failing", "recovered")
    }
    assert events <= logged
    rows = json.loads((DEPLOY / "grafana" / "digits.json").read_text())["panels"]
    titles: dict[str, set[str]] = {}
    for panel in rows:
        if panel["type"] == "row":
            row = panel["title"]
            titles[row] = {inner["title"] for inner in panel["panels"]}
        else:
            titles[row].add(panel["title"])
    for row, title in re.findall(r"\*([^*\n]+) → ([^*\n]+)\*", RUNBOOK):
        assert title in titles.get(row, ()), f"{row} → {title}"
    queries = re.findall(r"^```promql\n(.*?)^```", RUNBOOK, re.MULTILINE | re.DOTALL)
    queries += re.findall(r"`((?:sum|histogram_quantile)\b[^`]+)`", RUNBOOK)
    assert len(queries) > 5
    for query in map(promql.parse, queries):
        promql.labels(query, known)
        assert list(promql.unknown_values(query, series.VALUES)) == []
    anchors = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", RUNBOOK, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", RUNBOOK)) <= anchors


def test_tolerated_errors_and_the_default_model_match_the_settings() -> None:
    tolerated = {
        rule["labels"]["unit"]: rule["expr"]
        for rule in series.rules()
        if rule.get("record") == "digits:accepted_error:target"
    }
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert tolerated == {
        "digit": f"vector({defaults['target_error_rate']})",
        "field": f"vector({defaults['field_target_error_rate']})",
    }
    (missing,) = [alert["expr"] for alert in ALERTS if alert["alert"] == "DigitsDefaultModelMissing"]
    assert f'model="{defaults["default_model"]}"' in missing


def test_the_tested_interval_is_the_one_that_the_service_computes() -> None:
    (expected,) = [
        case["exp_samples"]
        for test in CASES
        for case in test.get("promql_expr_test", ())
        if case["expr"].startswith("round(digits:accepted_error")
    ]
    lower, upper = wilson_interval(120, 2280)
    assert [sample["value"] for sample in expected] == [round(share * 1e6) for share in (120 / 2280, lower, upper)]


def test_every_alert_has_a_firing_case_and_a_silent_case() -> None:
    cases = [case for test in CASES for case in test.get("alert_rule_test", ())]
    names = {alert["alert"] for alert in ALERTS}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_a_series_that_no_rule_uses_has_its_value_in_a_case() -> None:
    rules = series.rules()
    asked = {name for rule in rules for name in re.findall(r"digits:[\w:]+", rule["expr"])}
    shown = {rule["record"] for rule in rules if "record" in rule} - asked
    assert shown
    files = [yaml.safe_load((DEPLOY / "prometheus" / name).read_text()) for name in TESTED]
    cases = [case for file in files for test in file["tests"] for case in test.get("promql_expr_test", ())]
    valued = {name for case in cases if case["exp_samples"] for name in re.findall(r"digits:[\w:]+", case["expr"])}
    assert shown - valued == set()


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    checked = run("promtool", "check", "config", "prometheus.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(series.rules())} rules found" in checked.stdout


def test_alerts_fire_in_their_cases_and_in_no_other(prove: Prove) -> None:
    tested = run("promtool", "test", "rules", *TESTED)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    cases = [case for test in CASES for case in test.get("alert_rule_test", ())]
    fire = sum(bool(case.get("exp_alerts")) for case in cases)
    prove(f"{len(ALERTS)} alerts by promtool: they fire in {fire} cases, and stay silent in {len(cases) - fire}")


def test_amtool_accepts_the_configuration() -> None:
    checked = run("amtool", "check-config", "alertmanager.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    if reason := needs(program):
        pytest.skip(reason)
    directory = DEPLOY / "prometheus"
    return subprocess.run([program, *arguments], cwd=directory, capture_output=True, text=True, timeout=180, check=False)
