import json

from tests.deploy import series
from tests.deploy.conftest import NOT_VERIFIED
from tests.deploy.manifests import DEPLOY
from tests.deploy.mutations import MUTATIONS


def test_the_readme_and_the_report_list_the_same_gaps() -> None:
    readme = (DEPLOY / "README.md").read_text().partition("Not verified here:\n\n")[2].split("\n\n")[0]
    assert readme.strip().splitlines() == [f"- {gap}" for gap in NOT_VERIFIED]


def test_the_readme_has_the_right_number_of_rules_panels_and_mistakes() -> None:
    readme = " ".join((DEPLOY / "README.md").read_text().split())
    rules = series.rules()
    recorded, alerts = (sum(kind in rule for rule in rules) for kind in ("record", "alert"))
    dashboard = json.loads((DEPLOY / "grafana" / "digits.json").read_text())
    everything = [panel for row in dashboard["panels"] for panel in (row, *row.get("panels", ()))]
    panels = [panel for panel in everything if panel.get("targets")]
    queries = sum(len(panel["targets"]) for panel in panels)
    assert f"{recorded} recording rules, {alerts} alerts and {queries} queries of {len(panels)} panels" in readme
    assert f"find {len(MUTATIONS)} mistakes of {len(MUTATIONS)}" in readme
