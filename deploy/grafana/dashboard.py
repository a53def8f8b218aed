"""The operator's dashboard, from top to bottom: first what happens to the mail, then why.

`make dashboards` writes digits.json. Panels use the recording rules of deploy/prometheus/rules.yaml where there are any, so
that they show the numbers behind the alerts.
"""

from pathlib import Path

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard

from deploy.grafana.mail_rows import DRIFT, GLANCE, READING, TRUTH
from deploy.grafana.panels import SOURCE, draw
from deploy.grafana.service_rows import QUEUE, REQUESTS, SATURATION, VERSIONS

JSON = Path(__file__).with_name("digits.json")

ROWS = (GLANCE, READING, REQUESTS, QUEUE, SATURATION, VERSIONS, DRIFT, TRUTH)


def build() -> str:
    """Builds the dashboard as JSON that Grafana imports."""
    whole = (
        builders.Dashboard("Postal digits")
        .uid("postal-digits")
        .description("Handwritten digits for postal sorting: what happens to the mail, and why.")
        .tags(["postal-digits", "generated"])
        .readonly()
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
        .with_variable(builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_variable("namespace", 'label_values(up{job="digits"}, namespace)'))
        .with_variable(_variable("model", 'label_values(digits_model_role{namespace=~"$namespace"}, model)'))
    )
    number = 0
    for row in ROWS:
        number += 1
        heading = builders.Row(row.title).id(number)
        if not row.closed:
            whole.with_row(heading)
        for panel in row.panels:
            number += 1
            (heading if row.closed else whole).with_panel(draw(panel, number))
        if row.closed:
            whole.with_row(heading)
    return JSONEncoder(sort_keys=True, indent=2).encode(whole.build()) + "\n"


def _variable(name: str, query: str) -> builders.QueryVariable:
    """Makes a choice of one, several or all values. All includes series without the label."""
    return (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(query)
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .current(dashboard.VariableOption(selected=True, text=["All"], value=["$__all"]))
        .include_all(True)
        .all_value(".*")
    )
