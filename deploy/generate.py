"""Writes the files of deploy/ that are made from others: `make dashboards`. Tests compare the files with their generators.

kubernetes/components/monitoring/prometheusrule.yaml    from prometheus/rules.yaml
grafana/digits.json                                     from grafana/dashboard.py
"""

import textwrap
from collections.abc import Callable
from pathlib import Path

from deploy.grafana import dashboard

DEPLOY = Path(__file__).parent
RULES = DEPLOY / "prometheus" / "rules.yaml"
PROMETHEUS_RULE = DEPLOY / "kubernetes" / "components" / "monitoring" / "prometheusrule.yaml"

_HEAD = """\
# Generated from deploy/prometheus/rules.yaml by `make dashboards`. Edit that file instead.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: digits
  labels:
    app.kubernetes.io/component: server
spec:
  groups:
"""


def prometheus_rule() -> str:
    """Wraps the rules, with their comments, for the Prometheus operator."""
    _, groups = RULES.read_text().split("\ngroups:\n")
    return _HEAD + textwrap.indent(groups, "  ")


FILES: dict[Path, Callable[[], str]] = {PROMETHEUS_RULE: prometheus_rule, dashboard.JSON: dashboard.build}


if __name__ == "__main__":
    for file, generate in FILES.items():
        file.write_text(generate())
